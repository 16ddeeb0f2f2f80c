"""Shows 4: vFMs come, change, break and go while load runs on the others; no request there fails."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from support.broken import parameter
from support.live import TEXTS, LiveServer, Load, ask, wait_for
from support.recipes import Recipe, publish, stage, write_version, write_vfm
from support.reference import Reference
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.live

NEIGHBOURS = ("bare_two", "lora_qv_4", "lora_all_16", "lora_biases", "embed", "tokens", "imported_sequence", "short")


def recipe(version: int) -> Recipe:
    """Versions lie 10 apart in every logit, so that an answer tells which of them computed it."""
    return Recipe(outputs=3, bias=10.0 * version, lora={"r": 4 * version, "target_modules": ("query", "value")})


@pytest.fixture(scope="module")
def load(server: LiveServer) -> Iterator[Load]:
    """12 clients at the neighbours for as long as this module's tests run; at the end none may have failed."""
    before = server.status()
    with Load(server, NEIGHBOURS, threads=12) as load:
        yield load
    load.check()
    after = server.status()
    assert after["host_pid"] == before["host_pid"]
    assert after["engine_pids"] == before["engine_pids"]
    generations = {v["name"]: v.get("generation") for v in before["vfms"]}
    assert all(v.get("generation") == generations[v["name"]] for v in after["vfms"] if v["name"] in NEIGHBOURS)
    print(f"\n{load.answered.total()} requests answered at the neighbours, {len(load.failures)} failed")


@pytest.fixture
def client(server: LiveServer) -> Iterator[Any]:
    with grpc.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture
def vfm(server: LiveServer, load: Load, request: pytest.FixtureRequest) -> Iterator[str]:
    """A vFM of its own for each test, at version 1; gone afterwards."""
    name = f"life_{request.node.name.removeprefix('test_')}"
    write_vfm(server.repository, name, 800, recipe(1), server.backbone)
    server.wait_serving(name)
    yield name
    if (server.repository / name).exists():
        remove(server, name)
    wait_for(lambda: server.vfm(name) is None, f"{name!r} is gone")


def remove(server: LiveServer, name: str) -> None:
    os.rename(server.repository / name, stage(server.repository, f"removed-{name}"))


def publish_version(server: LiveServer, name: str, version: int, breaks: Callable[[Path], None] | None = None) -> None:
    """Make ``version`` beside the repository and move it in by one rename."""
    staging = stage(server.repository, f"{name}.{version}")
    write_version(staging / "1", recipe(version), server.backbone, seed=version)
    if breaks is not None:
        breaks(staging)
    publish(staging / "1", server.repository / name / str(version))


def timed(what: str, look: Callable[[], Any]) -> Any:
    """Wait for ``look`` and say how long it took."""
    start = time.monotonic()
    found = wait_for(look, what)
    print(f"\n{what}: {time.monotonic() - start:.2f} s")
    return found


def answered(client: Any, name: str) -> Any:
    """Provenance of one answer, or None where it is refused."""
    try:
        return ask(client, name, ["good film"])["info"][0]
    except InferenceServerException:
        return None


def test_add(server: LiveServer, load: Load, client: Any) -> None:
    name = "life_added"
    write_vfm(server.repository, name, 801, recipe(1), server.backbone)
    try:
        timed("added, says info", lambda: answered(client, name))
        expected = Reference(server.repository / name / "1", server.backbone)(["good film"])
        np.testing.assert_allclose(ask(client, name, ["good film"])["logits"], expected, atol=1e-5, rtol=1e-5)
    finally:
        remove(server, name)


def test_edit_weight(server: LiveServer, vfm: str) -> None:
    generation = server.vfm(vfm)["generation"]
    parameter("weight", "4")(server.repository / vfm)
    timed("weight edited, says status", lambda: server.vfm(vfm)["policy"]["weight"] == 4)
    assert server.vfm(vfm)["generation"] == generation, "a policy is not a new generation"


def test_bad_weight_keeps_the_old_one(server: LiveServer, client: Any, vfm: str) -> None:
    parameter("weight", "0")(server.repository / vfm)
    record = timed("bad weight told", lambda: _with_reason(server, vfm))
    assert "'weight' is '0'" in record["reason"]
    assert record["state"] == "serving"
    assert record["policy"]["weight"] == 1
    assert answered(client, vfm)["version"] == 1


def test_publish_versions(server: LiveServer, client: Any, vfm: str) -> None:
    """Versions 2 and 3 under multi-row requests without a pause: each answer is of exactly one version."""
    texts = list(TEXTS[:5])
    seen: list[tuple[set[int], set[int], np.ndarray]] = []
    stop = threading.Event()

    def hammer() -> None:
        with grpc.InferenceServerClient(server.grpc) as own:
            while not stop.is_set():
                answer = ask(own, vfm, texts, client_timeout=30)
                info = answer["info"]
                seen.append(({i["version"] for i in info}, {i["generation"] for i in info}, answer["logits"]))

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for version in (2, 3):
            publish_version(server, vfm, version)
            timed(f"version {version} published, says info", lambda v=version: answered(client, vfm)["version"] == v)
            wait_for(lambda v=version: any(v in versions for versions, *_ in list(seen)), "its answers to all")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    expected = {v: np.stack(Reference(server.repository / vfm / str(v), server.backbone)(texts)) for v in (1, 2, 3)}
    for versions, generations, logits in seen:
        assert len(versions) == 1
        assert len(generations) == 1
        np.testing.assert_allclose(logits, expected[versions.pop()], atol=1e-5, rtol=1e-5)
    counts = {v: sum(bool(abs(logits.mean() - 10 * v) < 5) for *_, logits in seen) for v in (1, 2, 3)}
    assert all(counts.values()), f"a version never answered, so this proved nothing: {counts}"
    print(f"\n{len(seen)} requests of 5 rows across two swaps: {counts} by version")


def test_remove(server: LiveServer, client: Any, vfm: str) -> None:
    remove(server, vfm)
    timed("removed, says status", lambda: server.vfm(vfm) is None)
    timed("removed, says the client", lambda: answered(client, vfm) is None)


def _with_reason(server: LiveServer, name: str) -> Any:
    record = server.vfm(name)
    return record if record is not None and record["reason"] else None


def _truncate(folder: Path) -> None:
    path = folder / "1/adapter/adapter_model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def test_break_by_a_version(server: LiveServer, client: Any, vfm: str) -> None:
    """A truncated version 2 is refused by name, and version 1 goes on; version 3 mends it."""
    publish_version(server, vfm, 2, _truncate)
    record = timed("broken version told", lambda: _with_reason(server, vfm))
    assert f"vFM '{vfm}': version 2: 2/adapter/adapter_model.safetensors is not a whole safetensors" in record["reason"]
    assert record["state"] == "serving"
    assert record["version"] == answered(client, vfm)["version"] == 1
    publish_version(server, vfm, 3)
    timed("mended by version 3", lambda: answered(client, vfm)["version"] == 3)
    assert server.vfm(vfm)["reason"] is None


def test_break_by_garbage_in_the_config(server: LiveServer, client: Any, vfm: str) -> None:
    path = server.repository / vfm / "config.pbtxt"
    good = path.read_text()
    path.write_text("platform { 'ensemble'")
    record = timed("garbage told", lambda: _with_reason(server, vfm))
    assert vfm in record["reason"]
    assert "not a valid model configuration" in record["reason"]
    path.write_text(good)
    timed("mended", lambda: server.vfm(vfm)["reason"] is None)
    # Triton too has to poll twice: it unloaded nothing, or loads it again.
    wait_for(lambda: answered(client, vfm), "it answers again")


def test_pinned_version(server: LiveServer, client: Any, vfm: str) -> None:
    """A rollback: the version policy pins version 1 while version 2 is there."""
    publish_version(server, vfm, 2)
    wait_for(lambda: answered(client, vfm)["version"] == 2, "version 2")
    path = server.repository / vfm / "config.pbtxt"
    path.write_text(path.read_text() + "version_policy { specific { versions: 1 } }\n")
    timed("rolled back to version 1", lambda: server.vfm(vfm)["version"] == 1)
    wait_for(lambda: (answered(client, vfm) or {}).get("version") == 1, "the client sees it")


def test_copied_in_slowly(server: LiveServer, client: Any, vfm: str) -> None:
    """Somebody copies a version in file by file: it is not served before it is whole, and never refused half-way."""
    staging = stage(server.repository, "slow")
    write_version(staging / "2", recipe(2), server.backbone, seed=2)
    target = server.repository / vfm / "2"
    shutil.copytree(staging / "2" / "adapter", target / "adapter")
    shutil.copy(staging / "2" / "head.safetensors", target)
    assert answered(client, vfm)["version"] == 1
    shutil.copy(staging / "2" / "vfm.json", target)
    timed("copied in", lambda: answered(client, vfm)["version"] == 2)
    assert server.vfm(vfm)["reason"] is None
