"""A client's request below Triton's types: parameters, tensors, routing, tokenizing, queueing, and its one reply."""

from __future__ import annotations

import functools
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from support.fake_engine import FakeEngine

from fmplex_backend.arrays import Array
from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.errors import FMplexError, Refused
from fmplex_backend.host.access import TOKEN, token_hash, token_in
from fmplex_backend.host.dispatcher import Dispatcher
from fmplex_backend.host.generations import Generation
from fmplex_backend.host.intake import Intake, is_status
from fmplex_backend.host.log import HostLog
from fmplex_backend.host.requests import Ask, Pending, Reply, RowTask
from fmplex_backend.host.routes import Blocked, Route, Serving
from fmplex_backend.messages import BatchDone, GroupAnswer
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.config import Policy
from fmplex_backend.repository.sockets import parse_output_name
from fmplex_backend.scheduling.cost import UNKNOWN
from fmplex_backend.scheduling.interface import VfmPolicy
from fmplex_backend.scheduling.policies import make_queue
from fuzz import parts
from fuzz.artifact import FACTS
from fuzz.told import check_told

_ROWS = b"\x1e"
_BACKBONE = {"name": "small", "fingerprint": FACTS.fingerprint}
_LABELS = ["no", "yes"]
_ARTIFACTS: tuple[dict[str, Any], ...] = (
    {"kind": "classification", "labels": _LABELS},
    {"kind": "multi_label", "labels": _LABELS, "encoder": {"pair": True, "max_length": 8, "max_bytes": 64}},
    {"kind": "token_classification", "pooling": "none", "labels": _LABELS},
    {"kind": "embedding", "pooling": "none", "encoder": {"truncation": False, "lowercase": True}},
    {"kind": "regression", "encoder": {"prefix": "query: ", "collapse_whitespace": True}},
)
SECRET = "secret"


def _ask(outputs: list[str], rows: list[bytes], pairs: list[bytes] | None = None, **more: Any) -> bytes:
    document = {"outputs": outputs, "timeout": 0, "parameters": "{}", "shapes": {}, **more}
    made = {"ask.json": json.dumps(document).encode(), "text": _ROWS.join(rows)}
    return parts.join(made if pairs is None else made | {"text_pair": _ROWS.join(pairs)})


def seeds() -> list[bytes]:
    """Good ones, one for each vFM and one for two of them, and one for the physical FM's status."""
    token = json.dumps({TOKEN.title(): SECRET, "priority": 1})
    return [
        _ask(["port0.vector", "port0.text", "port0.info"], [b"a good film", b"bad"]),
        _ask(["port1.scores"], [b"good"], [b"bad"], timeout=5_000_000),
        _ask(["port2.matrix", "port2.info"], ["Ünïcode 🙂 a".encode(), b"b"], parameters=token),
        _ask(["port3.matrix"], [b"long " * 4, b"x"], shapes={"text": [2, 1]}),
        _ask(["port0.vector", "port4.vector"], [b"  a  b  "]),
        _ask(["status"], [b""]),
    ]


damage = parts.damage


def check(data: bytes, folder: Path) -> None:
    """Refused, or queued; then run, and answered once, whole: each output that was asked for, a line a row."""
    replies: list[Reply] = []
    read = _read(data, replies)
    if read is None or is_status(read):
        return
    queue = make_queue("fair", 8, UNKNOWN)
    finished: list[Pending] = []
    engine: Any = FakeEngine(FACTS)
    dispatcher = Dispatcher(queue, [engine], finished.append, lambda _: None)
    for vfm in _VFMS:
        dispatcher.set_policy(vfm, VfmPolicy(max_queue_size=16), new=True)
    site: Any = _Site()
    try:
        Intake("small", _encoder(), site, dispatcher, HostLog(lambda line: line.encode())).take(read)
    except FMplexError as error:
        check_told(error)
        assert not finished
        assert queue.waiting() == 0
        return
    expired = _run(queue, dispatcher)
    dispatcher.stop()
    assert len(finished) == (0 if expired else 1)
    for request in finished:
        _check_reply(request.reply(), read)


def _read(data: bytes, replies: list[Reply]) -> Ask | None:
    """As the edge reads it out of Triton's objects; None for what is no request at all."""
    files = parts.split(data)
    try:
        document = json.loads(files.pop("ask.json"))
        outputs, timeout = frozenset(document["outputs"]), document["timeout"]
        parameters, shapes = document["parameters"], dict(document["shapes"])
        parameters.encode()
        assert all(isinstance(name, str) for name in outputs)
        assert type(timeout) is int
        assert 0 <= timeout < 1 << 64
        json.loads(parameters).items()
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError, RecursionError):
        return None
    return Ask(
        outputs=outputs,
        inputs={name: _tensor(content, shapes.get(name)) for name, content in files.items()},
        respond=replies.append,
        timeout=timeout / 1e6 if timeout else None,
        token=token_in(parameters),
    )


def _tensor(content: bytes, shape: Any) -> Array:
    rows = np.array(content.split(_ROWS), dtype=object)
    try:
        return rows.reshape(shape)
    except (ValueError, TypeError, OverflowError):
        return rows.reshape(-1, 1)


class _Site:
    """A registry's routes."""

    def __init__(self) -> None:
        self.routes: dict[int, Route] = {5: Blocked(Refused("vFM 'broken': is broken"))}
        for port, (name, artifact) in enumerate(_VFMS.items()):
            tokens = token_hash(SECRET) if port == 2 else ""
            generation = Generation(port, name, 1, artifact, len(_LABELS), Path("none"), ())
            self.routes[port] = Serving(generation, Policy(access_tokens=tokens))


_VFMS = {str(content["kind"]): Artifact.model_validate({"backbone": _BACKBONE, **content}) for content in _ARTIFACTS}


def _run(queue: Any, dispatcher: Dispatcher) -> int:
    """Run what waits as an engine would; how many rows had no time left."""
    now = time.monotonic()
    decision = queue.expire(now)
    expired = len(decision.expired)
    if decision.wake_at is not None:
        assert decision.wake_at - now <= threading.TIMEOUT_MAX, "no thread can wait for this deadline"
    while queue.waiting():
        now = time.monotonic()
        decision = queue.next_batch(now)
        expired += len(decision.expired)
        if decision.batch is not None:
            dispatcher.batch_done(decision.batch, _answer(decision.batch), now)
    return expired


def _answer(batch: Any) -> BatchDone:
    """Every row by itself."""
    groups = [
        GroupAnswer(row.payload.member.generation.number, [place], _columns(row.payload))
        for place, row in enumerate(batch.rows)
    ]
    return BatchDone(batch.number, groups, 0.001)


def _columns(task: RowTask) -> dict[str, Any]:
    tokens, width = task.encoded.size, len(_LABELS)
    by_token = task.member.generation.artifact.pooling == "none"
    return {
        "vector": np.zeros((1, width), np.float32),
        "scores": [np.zeros(tokens, np.float32)] if by_token else np.zeros((1, width), np.float32),
        "matrix": [np.zeros((tokens, width), np.float32)],
        "text": [["no"] * (tokens if by_token else 1)],
    }


def _check_reply(reply: Reply, asked: Ask) -> None:
    assert not isinstance(reply, FMplexError)
    assert reply.keys() == {name for name in asked.outputs if parse_output_name(name)}
    assert {len(array) for array in reply.values()} == {len(asked.inputs["text"])}


_encoder = functools.cache(lambda: TextEncoder(FACTS))
