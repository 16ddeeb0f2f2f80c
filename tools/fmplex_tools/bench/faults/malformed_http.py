"""Malformed requests over HTTP: each kind makes one out of a good one, by chance, as bytes for the socket."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

from fmplex_tools.bench.faults.mutations import NUMBERS, PIECES, TEXTS, damage_bytes, damage_json

OUTPUTS = ("logits", "info")
DEEPEST_JSON = 10_000
"""Of what is not `_too_deep`."""
BOMB_BYTES = 8 << 20
"""Of a gzip bomb once it has gone off."""
_ODD_BYTES = (b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xf8\x88\x80\x80\x80", b"\x80")


def post(path: str | bytes, body: bytes, headers: Mapping[str, object] = {}) -> bytes:
    """A request; a ``Content-Length`` among ``headers`` takes the place of the true one."""
    lines = {"Host": "a", "Content-Length": len(body), **headers}
    head = b"".join(f"{name}: {value}\r\n".encode() for name, value in lines.items())
    return b"POST " + (path if isinstance(path, bytes) else path.encode()) + b" HTTP/1.1\r\n" + head + b"\r\n" + body


def path_of(vfm: str) -> str:
    """Where it is asked."""
    return f"/v2/models/{vfm}/infer"


def good_body(text: str) -> dict[str, Any]:
    """A good request's, one row."""
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    return {"id": "1", "parameters": {}, "inputs": [tensor], "outputs": [{"name": name} for name in OUTPUTS]}


def _json_kind(change: Callable[[random.Random, dict[str, Any]], None]) -> HttpKind:
    def make(chance: random.Random, vfm: str, text: str) -> bytes:
        body = good_body(text)
        change(chance, body)
        return post(path_of(vfm), json.dumps(body).encode())

    return make


HttpKind = Callable[[random.Random, str, str], bytes]
"""Chance, the vFM and a good text → a request."""


def _damaged_json(chance: random.Random, vfm: str, text: str) -> bytes:
    return post(path_of(vfm), damage_json(json.dumps(good_body(text)).encode(), chance))


def _deep_json(chance: random.Random, vfm: str, text: str) -> bytes:
    deep = chance.choice((10, 100, DEEPEST_JSON))
    value = chance.choice((b"[" * deep + b"]" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"[" * deep))
    body = json.dumps(good_body(text)).encode()
    return post(path_of(vfm), chance.choice((value, body.replace(b'["' + text.encode() + b'"]', value))))


def _not_utf8(chance: random.Random, vfm: str, text: str) -> bytes:
    body = json.dumps(good_body(text)).encode()
    field = chance.choice((b'"1"', b'"text"', text.encode(), b'"logits"', b"{}"))
    odd = chance.choice(_ODD_BYTES)
    put = b'{"a": "' + odd + b'", "' + odd + b'": 1}' if field == b"{}" else field[:1] + odd + field[1:]
    return post(path_of(vfm), body.replace(field, put, 1))


def _damaged_http(chance: random.Random, vfm: str, text: str) -> bytes:
    return damage_bytes(post(path_of(vfm), json.dumps(good_body(text)).encode()), chance)


def _cut_off(chance: random.Random, vfm: str, text: str) -> bytes:
    whole = post(path_of(vfm), json.dumps(good_body(text)).encode())
    return whole[: chance.randrange(len(whole))]


def _wrong_length(chance: random.Random, vfm: str, text: str) -> bytes:
    body = json.dumps(good_body(text)).encode()
    lengths = (0, 1, len(body) - 1, len(body) + 1, len(body) * 2, -1, 2**31, 2**63, 2**64, "ten", "1e3", "")
    return post(path_of(vfm), body, {"Content-Length": chance.choice(lengths)})


def _binary(chance: random.Random, vfm: str, text: str) -> bytes:
    raw = struct.pack("<I", len(text.encode())) + text.encode()
    body = good_body(text)
    del body["inputs"][0]["data"]
    size: Any = chance.choice((len(raw), len(raw) - 1, len(raw) + 1, 0, -1, 2**31, 2**63, "1", None, 0.5))
    body["inputs"][0]["parameters"] = {"binary_data_size": size}
    head = json.dumps(body).encode()
    told = chance.choice((len(head), len(head), len(head) - 1, len(head) + 9, 0, -1, 2**63, "x"))
    return post(path_of(vfm), head + raw, {"Inference-Header-Content-Length": told})


def _lying_bytes(chance: random.Random, vfm: str, text: str) -> bytes:
    raw = lying_bytes(chance, text)
    body = good_body(text)
    del body["inputs"][0]["data"]
    body["inputs"][0] |= {"parameters": {"binary_data_size": len(raw)}, "shape": [chance.randint(1, 3), 1]}
    head = json.dumps(body).encode()
    return post(path_of(vfm), head + raw, {"Inference-Header-Content-Length": len(head)})


def lying_bytes(chance: random.Random, text: str) -> bytes:
    """BYTES elements whose lengths are not theirs."""
    content = text.encode()
    length = chance.choice((0, len(content) - 1, len(content) + 1, 2**31 - 1, 2**31, 2**32 - 1))
    return (struct.pack("<I", length) + content) * chance.randint(1, 2) + content[: chance.randint(0, 5)]


def odd_shape(chance: random.Random) -> list[int]:
    """One that is not that of the data."""
    dims = (-(2**63), -2, -1, 0, 1, 2, 65, 2**31, 2**32 + 1, 2**62, 2**63 - 1)
    return [chance.choice(dims) for _ in range(chance.choice((0, 1, 2, 2, 2, 3, 40)))]


def _shape(chance: random.Random, body: dict[str, Any]) -> None:
    body["inputs"][0]["shape"] = odd_shape(chance)


def _names(chance: random.Random, body: dict[str, Any]) -> None:
    where = chance.choice((body["inputs"][0], body["outputs"][0]))
    where["name"] = chance.choice((*TEXTS, "port0.vector", "status", "text_pair", "x" * 100_000))


def _datatype(chance: random.Random, body: dict[str, Any]) -> None:
    types = ("INT32", "FP32", "BOOL", "UINT64", "FP16", "BF16", "STRING", "bytes", "", None, 7)
    datas: tuple[Any, ...] = ([1], [1.5], [True], ["a"], [[["a"]]], [None], [], {}, "a", [2**70], [-1])
    body["inputs"][0] |= {"datatype": chance.choice(types), "data": chance.choice(datas)}


def _parameters(chance: random.Random, body: dict[str, Any]) -> None:
    names = (
        "timeout",
        "priority",
        "binary_data_output",
        "x-fmplex-token",
        "X-Fmplex-Token",
        "",
        "triton_x",
        "a" * 9999,
    )
    values: tuple[Any, ...] = (*NUMBERS, *TEXTS, True, None, [], {}, [1], {"a": {}})
    where = chance.choice((body, body["inputs"][0], body["outputs"][0]))
    where["parameters"] = {chance.choice(names): chance.choice(values) for _ in range(chance.randint(1, 4))}
    if where is body["outputs"][0]:
        where["parameters"]["classification"] = chance.choice((-1, 0, 1, 2**31, 2**63, "1"))


def _sequence(chance: random.Random, body: dict[str, Any]) -> None:
    names = ("sequence_id", "sequence_start", "sequence_end")
    body["parameters"] = {name: chance.choice((*NUMBERS, *TEXTS, True)) for name in names}


def _shared_memory(chance: random.Random, body: dict[str, Any]) -> None:
    where = chance.choice((body["inputs"][0], body["outputs"][0]))
    where["parameters"] = {
        "shared_memory_region": chance.choice(("none", "", "x" * 5000, "/dev/shm/x", 1)),
        "shared_memory_byte_size": chance.choice((0, 1, -1, 2**63 - 1, "1")),
        "shared_memory_offset": chance.choice((0, 1, -1, 2**63 - 1, "1")),
    }
    if where is body["inputs"][0]:
        del where["data"]


def _address(chance: random.Random, vfm: str, text: str) -> bytes:
    body = json.dumps(good_body(text)).encode()
    versions = ("0", "-1", "2", "99999999999999999999", "one", "", "../1", "%00")
    names = ("nobody", "%ff%fe", "..%2f..%2fetc", "", "a" * 60_000, vfm.upper(), f"{vfm}%00", "%", "minilm/../" + vfm)
    if chance.random() < 0.5:
        return post(f"/v2/models/{vfm}/versions/{chance.choice(versions)}/infer", body)
    other = chance.choice(("infer", "generate", "generate_stream", "config", "stats", "ready", "infer/infer", ""))
    return post(f"/v2/models/{chance.choice((*names, vfm))}/{other}", body)


def _unknown_encoding(chance: random.Random, vfm: str, text: str) -> bytes:
    body = json.dumps(good_body(text)).encode()
    encoding = chance.choice(("br", "zstd", "gzip, gzip", "identity, br", "x" * 1000, ""))
    return post(path_of(vfm), chance.choice((body, _gzip(body))), {"Content-Encoding": encoding})


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # the same bytes at any time


def _compressed(chance: random.Random, vfm: str, text: str) -> bytes:
    body = json.dumps(good_body(text)).encode()
    packed = _gzip(body)
    odd = (body, packed[:-4], damage_bytes(packed, chance), _gzip(b""), b"", _gzip(packed), _BOMB)
    return post(path_of(vfm), chance.choice(odd), {"Content-Encoding": chance.choice(("gzip", "deflate"))})


_BOMB = _gzip(b" " * BOMB_BYTES)


def _chunked(chance: random.Random, vfm: str, text: str) -> bytes:
    body = json.dumps(good_body(text)).encode()
    parts = [body[start : start + 40] for start in range(0, len(body), 40)]
    sizes = [chance.choice((f"{len(part):x}",) * 20 + ("0", "-1", "zz", "f" * 20, "")) for part in parts]
    chunks = b"".join(size.encode() + b"\r\n" + part + b"\r\n" for size, part in zip(sizes, parts, strict=True))
    lines = f"POST {path_of(vfm)} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    return lines.encode() + chunks + chance.choice((b"0\r\n\r\n", b"", b"0\r\n", chance.choice(PIECES)))


def _too_deep(chance: random.Random, vfm: str, text: str) -> bytes:
    body = json.dumps(good_body(text)).encode()
    return post(path_of(vfm), body.replace(json.dumps([text]).encode(), b"[" * 100_000 + b"]" * 100_000))


def _too_many_chunks(chance: random.Random, vfm: str, text: str) -> bytes:
    lines = f"POST {path_of(vfm)} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    return lines.encode() + b"1\r\n \r\n" * 2_000_000 + b"0\r\n\r\n"


HTTP_KINDS: dict[str, HttpKind] = {
    "damaged JSON": _damaged_json,
    "deep JSON": _deep_json,
    "no UTF-8": _not_utf8,
    "wrong binary sizes": _binary,
    "lying BYTES lengths": _lying_bytes,
    "wrong shapes": _json_kind(_shape),
    "wrong names": _json_kind(_names),
    "wrong types": _json_kind(_datatype),
    "odd parameters": _json_kind(_parameters),
    "odd sequences": _json_kind(_sequence),
    "wrong shared memory": _json_kind(_shared_memory),
    "wrong addresses": _address,
    "unknown encodings": _unknown_encoding,
    "compressed": _compressed,
    "damaged HTTP": _damaged_http,
    "cut off": _cut_off,
    "wrong Content-Length": _wrong_length,
    "chunked": _chunked,
    "too deep": _too_deep,
    "too many chunks": _too_many_chunks,
}
INCOMPLETE = frozenset({"damaged HTTP", "cut off", "wrong Content-Length", "chunked", "wrong addresses"})
"""Kinds of which a server may wait for more than is sent: the client closes its half of the connection behind them."""
