"""Malformed requests over gRPC: each kind makes the bytes of a message, or of several for a stream."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from tritonclient.grpc import service_pb2

from fmplex_tools.bench.faults.malformed_http import OUTPUTS, lying_bytes, odd_shape
from fmplex_tools.bench.faults.mutations import NUMBERS, TEXTS, damage_bytes

_SERVICE = "/inference.GRPCInferenceService/"
INFER, STREAM = f"{_SERVICE}ModelInfer", f"{_SERVICE}ModelStreamInfer"
OTHERS = tuple(
    _SERVICE + name
    for name in ("ModelMetadata", "ModelConfig", "ModelReady", "ModelStatistics", "SystemSharedMemoryStatus")
)
"""Methods that only tell; those that load models, map memory or change logs are for who may change the server."""
_TEXTS = [text for text in TEXTS if text.isprintable() or not text or text == "\0"]
_INTEGERS = [int(number) for number in NUMBERS if isinstance(number, int) and -(2**63) <= number < 2**63]

GrpcKind = Callable[[random.Random, str, str], bytes]
"""Chance, the vFM and a good text → a message for `INFER`, `STREAM` or one of `OTHERS`."""


def good_request(vfm: str, text: str) -> Any:
    """A good one, one row."""
    request = service_pb2.ModelInferRequest(model_name=vfm, id="1")
    request.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(text.encode())) + text.encode())
    for name in OUTPUTS:
        request.outputs.add(name=name)
    return request


def _kind(change: Callable[[random.Random, Any], None]) -> GrpcKind:
    def make(chance: random.Random, vfm: str, text: str) -> bytes:
        request = good_request(vfm, text)
        change(chance, request)
        return bytes(request.SerializeToString())

    return make


def _damaged(chance: random.Random, vfm: str, text: str) -> bytes:
    return damage_bytes(good_request(vfm, text).SerializeToString(), chance)


def _not_utf8(chance: random.Random, vfm: str, text: str) -> bytes:
    message: bytes = good_request(vfm, text).SerializeToString()
    return message.replace(chance.choice((b"text", b"BYTES", b"logits", vfm.encode())), b"\xff\xfe\xfd\xfc", 1)


def _raw_contents(chance: random.Random, request: Any) -> None:
    raw = request.raw_input_contents.pop()
    wrong: tuple[list[bytes], ...] = ([], [raw] * 2, [b""], [raw[:-1]], [raw + b"x"], [raw[:3]], [raw * 65])
    request.raw_input_contents.extend(chance.choice(wrong))


def _lying_bytes(chance: random.Random, request: Any) -> None:
    request.raw_input_contents[0] = lying_bytes(chance, "good film")
    request.inputs[0].shape[0] = chance.randint(1, 3)


def _typed_contents(chance: random.Random, request: Any) -> None:
    if chance.random() < 0.7:
        request.ClearField("raw_input_contents")
    contents = request.inputs[0].contents
    for _ in range(chance.randint(1, 3)):
        values = chance.choice((contents.int_contents, contents.uint64_contents, contents.bool_contents))
        values.extend([1] * chance.choice((0, 1, 100)))
        contents.bytes_contents.extend([b"\xff"] * chance.choice((0, 1, 100)))
    request.inputs[0].datatype = chance.choice(("BYTES", "BYTES", "INT32", "FP16", "BF16", "FP32", "BOOL", "x", ""))


def _shape(chance: random.Random, request: Any) -> None:
    request.inputs[0].shape[:] = odd_shape(chance)


def _names(chance: random.Random, request: Any) -> None:
    text = chance.choice((*_TEXTS, "port0.vector", "status", "x" * 100_000))
    where, field = chance.choice(
        ((request.inputs[0], "name"), (request.outputs[0], "name"), (request.inputs[0], "datatype"), (request, "id"))
    )
    setattr(where, field, text)
    if chance.random() < 0.2:
        where = chance.choice((request.inputs, request.outputs))
        where.extend([where[0]] * chance.choice((1, 100)))


def _address(chance: random.Random, request: Any) -> None:
    if chance.random() < 0.5:
        request.model_name = chance.choice((*_TEXTS, "nobody", "../x", "minilm", "a" * 60_000))
    request.model_version = chance.choice(("", "0", "-1", "2", "99999999999999999999", "one", "1.0", " "))


def _set(chance: random.Random, parameter: Any) -> None:
    kind = chance.choice(("bool_param", "int64_param", "string_param", "double_param", "uint64_param", None))
    if kind is not None:
        values: dict[str, Any] = {"bool_param": True, "string_param": chance.choice(_TEXTS), "double_param": 1e308}
        integer = chance.choice(_INTEGERS)
        setattr(parameter, kind, values.get(kind, abs(integer) if kind == "uint64_param" else integer))


def _parameters(chance: random.Random, request: Any) -> None:
    names = ("timeout", "priority", "binary_data_output", "x-fmplex-token", "X-FMPLEX-TOKEN", "triton_x", "", "headers")
    where = chance.choice((request, request.inputs[0], request.outputs[0]))
    for _ in range(chance.randint(1, 4)):
        _set(chance, where.parameters[chance.choice((*names, "classification"))])


def _sequence(chance: random.Random, request: Any) -> None:
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if chance.random() < 0.7:
            _set(chance, request.parameters[name])


def _shared_memory(chance: random.Random, request: Any) -> None:
    where = chance.choice((request.inputs[0], request.outputs[0]))
    where.parameters["shared_memory_region"].string_param = chance.choice(("none", "", "x" * 5000))
    for name in ("shared_memory_byte_size", "shared_memory_offset"):
        _set(chance, where.parameters[name])


GRPC_KINDS: dict[str, GrpcKind] = {
    "damaged messages": _damaged,
    "no UTF-8": _not_utf8,
    "wrong raw contents": _kind(_raw_contents),
    "lying BYTES lengths": _kind(_lying_bytes),
    "typed contents": _kind(_typed_contents),
    "wrong shapes": _kind(_shape),
    "wrong names": _kind(_names),
    "wrong addresses": _kind(_address),
    "odd parameters": _kind(_parameters),
    "odd sequences": _kind(_sequence),
    "wrong shared memory": _kind(_shared_memory),
}
