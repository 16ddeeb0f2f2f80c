"""What both clients do with a call before it is sent and after it came back. Pure."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmplex_client.errors import FMplexClientError, InvalidRequest, ServerError, UnknownTask
from fmplex_client.results import Answer, Result
from fmplex_client.rows import chunks, text_tensor
from fmplex_client.tasks import Task
from fmplex_client.wire import Request, Response, split

STATUS_OUTPUT = "status"
"""Output of a physical FM that tells what it serves."""


def check_protocol(protocol: str, tls_ca: str) -> None:
    """Raises `InvalidRequest` unless the clients speak it, with TLS where there is a ``tls_ca``."""
    if protocol not in ("http", "grpc"):
        raise InvalidRequest(f"protocol {protocol!r}: it is 'http' or 'grpc'")
    if tls_ca and protocol == "http":
        raise InvalidRequest("tls_ca goes with protocol 'grpc': Triton has no TLS for HTTP")
    if tls_ca and not Path(tls_ca).is_file():
        raise InvalidRequest(f"tls_ca {tls_ca!r}: there is no such file")


def plan(
    task: Task, rows: Sequence[Any], text_pairs: Sequence[str] | None, request_id: str, version: str, token: str = ""
) -> list[Request]:
    """The requests for one ``predict``. Raises `InvalidRequest` for rows that it does not read."""
    if task.kind == "model":
        raise InvalidRequest(f"{task.name!r} is no task but the model behind tasks; tasks() lists the tasks")
    if text_pairs is not None and not task.takes_pairs and "text" in task.inputs:
        raise InvalidRequest(f"task {task.name!r} takes single texts; leave text_pairs out")
    if text_pairs is None and task.takes_pairs:
        raise InvalidRequest(f"task {task.name!r} takes text pairs; give text_pairs, one for each text")
    # max_batch_size 0 is a model without a batch dimension, whose tensors are shaped otherwise than FMplex's.
    if task.max_batch_size < 1:
        raise InvalidRequest(f"model {task.name!r} takes no batches (max_batch_size 0), so it is no FMplex task")
    parts = chunks(task.inputs, rows, text_pairs, task.max_batch_size)
    made = split(task.name, parts, request_id=request_id, version=version)
    return [replace(request, token=token) for request in made]


def new_request_id() -> str:
    """One that no other request has."""
    return uuid.uuid4().hex


@contextmanager
def named(request: Request) -> Iterator[None]:
    """Errors inside it name ``request``."""
    try:
        yield
    except FMplexClientError as error:
        error.request_id = request.request_id
        raise


def should_reread(error: FMplexClientError) -> bool:
    """Whether a stale idea of the task may be what went wrong."""
    return isinstance(error, (InvalidRequest, UnknownTask, ServerError))


def checked(task: str, answers: list[Answer], expect: type[Result] | None) -> list[Any]:
    """``answers``, each of the type that the caller expects. Raises `InvalidRequest`."""
    if expect is not None:
        for answer in answers:
            if not isinstance(answer, expect):
                found = "bundle" if isinstance(answer, dict) else type(answer).__name__
                raise InvalidRequest(f"task {task!r} answers with {found}, not with {expect.__name__}")
    return answers


def status_request(fm: str) -> Request:
    """A request for a physical FM's status; its input is there because the model has one."""
    return Request(fm, {"text": text_tensor(["status"], "text")}, (STATUS_OUTPUT,))


def status_of(fm: str, response: Response) -> dict[str, Any]:
    """The JSON object in the answer. Raises `ServerError`."""
    try:
        status = json.loads(response.tensors[STATUS_OUTPUT].reshape(-1)[0])
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ServerError(f"physical FM {fm!r}: its status is no JSON: {error}") from None
    if not isinstance(status, dict):
        raise ServerError(f"physical FM {fm!r}: its status is no JSON object")
    return status
