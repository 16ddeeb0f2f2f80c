"""From tensors to Triton requests and back; nothing is sent here. Both protocols, sync and async, share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, TypeAlias

from tritonclient.utils import np_to_triton_dtype

from fmplex_client.errors import FMplexClientError, InvalidRequest, ServerError, error_from
from fmplex_client.results import Array
from fmplex_client.rows import Tensors

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
    """One inference request: tensors [rows, …] by input name."""

    model: str
    tensors: Tensors
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


def split(
    model: str, parts: Sequence[Tensors], *, request_id: str = "", version: str = "", outputs: Sequence[str] = ()
) -> list[Request]:
    """One request for each of ``parts``, in order.

    Where there are several, their ids are ``request_id`` with ``.0``, ``.1`` … behind it.
    """
    several = bool(request_id) and len(parts) > 1
    return [
        Request(model, part, tuple(outputs), f"{request_id}.{i}" if several else request_id, version)
        for i, part in enumerate(parts)
    ]


def encode(request: Request, module: ModuleType, timeout_us: int) -> dict[str, Any]:
    """Arguments of ``infer`` (or ``generate_request_body``) of ``tritonclient.http`` or ``tritonclient.grpc``.

    The model's name and version are left out.
    """
    inputs = []
    for name, tensor in request.tensors.items():
        item = module.InferInput(name, list(tensor.shape), np_to_triton_dtype(tensor.dtype))
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
