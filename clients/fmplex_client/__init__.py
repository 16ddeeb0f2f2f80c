"""A thin client for FMplex on Triton: texts, images, sounds or series in, one typed answer for each out.

Nobody needs it (any Triton client will do, see ``clients/examples/raw_tritonclient.py``); it saves writing tensors,
splits long lists, retries what is worth retrying and gives errors that say what to do. Needs numpy and tritonclient
only.
"""

from fmplex_client.aio import AsyncClient
from fmplex_client.client import Client
from fmplex_client.errors import (
    DeadlineExceeded,
    FMplexClientError,
    InvalidRequest,
    ServerError,
    ServerUnavailable,
    UnknownTask,
)
from fmplex_client.results import (
    Anomaly,
    Answer,
    Classification,
    Embedding,
    Forecast,
    Imputation,
    MultiLabel,
    Regression,
    Result,
    Tensors,
    Token,
    TokenClassification,
)
from fmplex_client.retry import Retry
from fmplex_client.tasks import Task

__all__ = [
    "Anomaly",
    "Answer",
    "AsyncClient",
    "Classification",
    "Client",
    "DeadlineExceeded",
    "Embedding",
    "FMplexClientError",
    "Forecast",
    "Imputation",
    "InvalidRequest",
    "MultiLabel",
    "Regression",
    "Result",
    "Retry",
    "ServerError",
    "ServerUnavailable",
    "Task",
    "Tensors",
    "Token",
    "TokenClassification",
    "UnknownTask",
]
