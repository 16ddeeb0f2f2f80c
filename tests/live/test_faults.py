"""An engine that dies takes no request with it; a client's time limit is kept; nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from support.live import TEXTS, LiveServer, Load, ask, numbers, serve, wait_for
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.live

NAMES = ("bare_two", "lora_qv_4", "lora_all_16", "lora_biases", "embed", "tokens", "imported_sequence", "short")
ROOT = Path(__file__).parents[2]


def test_engine_killed_under_load(server: LiveServer) -> None:
    before = server.status()
    (engine,) = before["engine_pids"]
    with grpc.InferenceServerClient(server.grpc) as client:
        expected = {name: numbers(ask(client, name, [TEXTS[1]])) for name in NAMES}
        with Load(server, NAMES, threads=16) as load:
            load.wait_answers(50)
            killed = time.monotonic()
            os.kill(engine, signal.SIGKILL)
            wait_for(lambda: server.status()["engine_pids"] != [engine], "a new engine")
            load.wait_answers(50)
            seconds = time.monotonic() - killed
        load.check()
        for name in NAMES:  # the new engine has every vFM back, and answers as the old one did
            assert abs(numbers(ask(client, name, [TEXTS[1]])) - expected[name]).max() < 1e-5
    after = server.status()
    assert after["host_pid"] == before["host_pid"]
    assert not psutil.pid_exists(engine)
    assert [v.get("generation") for v in after["vfms"]] == [v.get("generation") for v in before["vfms"]]
    print(f"\nengine killed under 16 clients: {load.answered.total()} answered, 0 failed, back within {seconds:.1f} s")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_expired_timeout_is_an_error(server: LiveServer, protocol: str) -> None:
    make = {"grpc": grpc.InferenceServerClient, "http": http.InferenceServerClient}[protocol]
    with make(getattr(server, protocol)) as client:
        with pytest.raises(InferenceServerException, match="vFM 'lora_qv_4': the deadline "):
            ask(client, "lora_qv_4", ["good film"], timeout=1)
        assert ask(client, "lora_qv_4", ["good film"], timeout=30_000_000)["logits"].shape == (1, 3)


def test_stop_leaves_no_process_and_no_file(tmp_path: Path, minilm_backbone: Path) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "model_repository/minilm", repository / "minilm")
    with serve(repository, minilm_backbone) as live:
        tree = [p.pid for p in psutil.Process(live.pid).children(recursive=True)]
        assert set(live.status()["engine_pids"]) <= set(tree)
    assert not [pid for pid in (live.pid, *tree) if psutil.pid_exists(pid)]
    assert sorted(p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()) == [
        "minilm/1/.gitkeep",
        "minilm/config.pbtxt",
    ]
