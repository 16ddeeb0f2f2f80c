"""From texts to Triton requests and back; nothing is sent here. Both protocols, sync and async, share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np

from fmplex_client.errors import FMplexClientError, InvalidRequest, ServerError, error_from
from fmplex_client.results import Array

Protocol: TypeAlias = Literal["http", "grpc"]

TOKEN = "x-fmplex-token"
"""Request parameter."""
CHANNEL_ARGS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # gRPC's own back-off between connection attempts starts at 1 s and grows to 2 min: a server that comes up late
    # would be found late. Ours is `Retry`.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True)
class Request:
    """One inference request: text tensors [rows, 1] by input name."""

    model: str
    tensors: dict[str, Array]
    outputs: tuple[str, ...] = ()
    """Outputs asked for; none is all of them."""
    request_id: str = ""
    version: str = ""
    token: str = field(default="", repr=False)
    """For vFMs that answer only to tokens."""

    @property
    def rows(self) -> int:
        """Length of the batch dimension."""
        return max(len(tensor) for tensor in self.tensors.values())


@dataclass(frozen=True)
class Response:
    """What came back: tensors by output name."""

    tensors: dict[str, Array] = field(default_factory=dict)


def text_tensor(texts: Sequence[str], what: str) -> Array:
    """[rows, 1] BYTES. Raises `InvalidRequest` for what is no text, or has no UTF-8 form (lone surrogates)."""
    if isinstance(texts, (str, bytes)):
        raise InvalidRequest(f"{what} is one string; give a list of them")
    rows = np.empty((len(texts), 1), dtype=np.object_)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"{what}[{i}] is of type {type(text).__name__}; texts are str")
        try:
            rows[i, 0] = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{what}[{i}] cannot be written as UTF-8: {error}") from None
    return rows


def split(
    model: str,
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    limit: int,
    *,
    request_id: str = "",
    version: str = "",
    outputs: Sequence[str] = (),
) -> list[Request]:
    """Requests of at most ``limit`` rows each, in order; none for no texts.

    Where there are several, their ids are ``request_id`` with ``.0``, ``.1`` … behind it. Raises `InvalidRequest`.
    """
    tensors = {"text": text_tensor(texts, "texts")}
    if text_pairs is not None:
        tensors["text_pair"] = text_tensor(text_pairs, "text_pairs")
        if len(text_pairs) != len(texts):
            raise InvalidRequest(f"{len(texts)} texts but {len(text_pairs)} text_pairs; give one for each")
    step = max(1, limit)
    starts = range(0, len(texts), step)
    return [
        Request(
            model,
            {name: tensor[start : start + step] for name, tensor in tensors.items()},
            tuple(outputs),
            f"{request_id}.{i}" if request_id and len(starts) > 1 else request_id,
            version,
        )
        for i, start in enumerate(starts)
    ]


def encode(request: Request, module: ModuleType, timeout_us: int) -> dict[str, Any]:
    """Arguments of ``infer`` (or ``generate_request_body``) of ``tritonclient.http`` or ``tritonclient.grpc``.

    The model's name and version are left out.
    """
    inputs = []
    for name, tensor in request.tensors.items():
        item = module.InferInput(name, list(tensor.shape), "BYTES")
        item.set_data_from_numpy(tensor)
        inputs.append(item)
    outputs = [module.InferRequestedOutput(name) for name in request.outputs] or None
    parameters = {TOKEN: request.token} if request.token else None
    return {
        "inputs": inputs,
        "outputs": outputs,
        "request_id": request.request_id,
        "timeout": timeout_us,
        "parameters": parameters,
    }


def decode(result: Any) -> Response:
    """From an ``InferResult`` of either protocol."""
    response = result.get_response()
    names = [item["name"] if isinstance(item, dict) else item.name for item in _outputs(response)]
    tensors = {}
    for name in names:
        tensor = result.as_numpy(name)
        if tensor is None:
            raise ServerError(f"output {name!r} came without data")
        tensors[name] = tensor
    return Response(tensors)


def tls(ca: str) -> dict[str, Any]:
    """Arguments of tritonclient's gRPC clients for a server whose certificate the PEM file ``ca`` vouches for."""
    return {"ssl": True, "root_certificates": ca} if ca else {}


def _outputs(response: Any) -> Any:
    return response["outputs"] if isinstance(response, dict) else response.outputs


def translate(error: Exception) -> FMplexClientError:
    """Our error for tritonclient's ``InferenceServerException`` (taken by its methods: each protocol has its own)."""
    status: str | None = error.status()  # type: ignore[attr-defined]
    message: str | None = error.message()  # type: ignore[attr-defined]
    return error_from(status, message)


def host_port(url: str) -> tuple[str, int, str]:
    """``(host, port, base path)`` of ``host:port[/path]``. Raises `InvalidRequest` where it is written otherwise."""
    if "://" in url:
        raise InvalidRequest(f"url {url!r}: leave the scheme out, e.g. 127.0.0.1:8000")
    address, _, path = url.partition("/")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise InvalidRequest(f"url {url!r}: write HOST:PORT, e.g. 127.0.0.1:8000")
    return host.strip("[]"), int(port), f"/{path.strip('/')}" if path.strip("/") else ""
