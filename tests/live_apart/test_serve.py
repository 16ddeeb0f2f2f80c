"""``fmplex serve`` and ``fmplex check`` as a user runs them, on a small random backbone."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
import tritonclient.http as http
from support.live import wait_for
from support.served import Served, run, serving
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.repository.config import CONFIG_FILE, write_config
from fmplex_client import Client, InvalidRequest
from fmplex_tools.serving import fetch_status

pytestmark = pytest.mark.live


def test_serve_shows_what_it_serves_and_ctrl_c_leaves_nothing(small_repository: Path) -> None:
    with serving(small_repository) as served:
        served.wait_ready()
        assert "vFM 'bad': parameter 'weight' is '0'" in served.printed
        assert "fmplex infer good" in served.printed
        status = fetch_status(served.http, "tiny")
        assert len(set(status["engine_pids"])) == 2, "one engine process a device"
        tree = psutil.Process(served.process.pid).children(recursive=True)
        assert len(tree) >= 4, "tritonserver, stub and two engines"

        answer = run("infer", "good", "hello", "--url", served.http)
        assert answer.returncode == 0, answer.stderr
        assert "L" in answer.stdout

        second = run("serve", "-r", str(small_repository), "--http-port", str(served.ports[0]))
        assert second.returncode == 1
        assert f"port {served.ports[0]}" in second.stderr

        check = run("check", "-r", str(small_repository))
        assert check.returncode == 1
        bad = next(vfm for vfm in fetch_status(served.http, "tiny")["vfms"] if vfm["name"] == "bad")
        assert bad["reason"] in check.stderr, "check and the server say the same"

        served.process.send_signal(signal.SIGINT)
        assert served.finish() == 0
        assert "no process is left" in served.printed
        _, alive = psutil.wait_procs(tree, timeout=5)
        assert not alive


@pytest.mark.parametrize("stalled_seconds", [0, 2.5], ids=["at once", "while the host waits for it"])
def test_no_process_outlives_a_killed_serve(small_repository: Path, stalled_seconds: float) -> None:
    """Metrics come each second: a tritonserver that stalls for longer keeps the host waiting, with the interpreter."""
    with serving(small_repository) as served:
        served.wait_ready()
        tree = psutil.Process(served.process.pid).children(recursive=True)
        tritonserver = child(served, "tritonserver")
        if stalled_seconds:
            tritonserver.suspend()
            time.sleep(stalled_seconds)
        served.process.kill()
        _, alive = psutil.wait_procs(tree, timeout=60)
        assert not alive


def test_explicit_mode_and_serve_says_why_when_tritonserver_dies(small_repository: Path) -> None:
    with serving(small_repository, "--mode", "explicit", "--no-restart", "--log-format", "json") as served:
        served.wait_ready()
        failed = failing_request(served)
        host = fetch_status(served.http, "tiny")["host_pid"]
        with http.InferenceServerClient(served.http) as client:
            client.unload_model("good")
            assert not client.is_model_ready("good")
            client.load_model("good")
            assert client.is_model_ready("good")
        assert fetch_status(served.http, "tiny")["host_pid"] == host, "the physical FM stayed up"
        child(served, "tritonserver").kill()
        assert served.finish() == 1
        assert "tritonserver ended by itself with code -9" in served.printed
    lines = [json.loads(line) for line in (small_repository.parent / "server.log").read_text().splitlines()]
    assert all(line.keys() >= {"time", "level", "message"} for line in lines)
    assert any("source" in line for line in lines), "Triton's own"
    asked = {"request_id": failed, "vfm": "good", "version": 1}
    (told,) = [line for line in lines if asked in line.get("requests", ())]
    assert (told["event"], told["fm"], told["level"]) == ("invalid", "tiny", "warning")
    assert f"request {failed!r} of vFM 'good' version 1" in told["message"]
    assert told["message"] in served.printed


def child(served: Served, name: str) -> psutil.Process:
    """The process of that name below ``fmplex serve``."""
    (found,) = (one for one in psutil.Process(served.process.pid).children(recursive=True) if one.name() == name)
    return found


def shared_memory(served: Served) -> set[Path]:
    """Triton's, between tritonserver and the host."""
    names = {Path(word).name for word in child(served, "triton_python_backend_stub").cmdline()}
    return {path for name in names if (path := Path("/dev/shm") / name).is_file()}


def warm_of(served: Served) -> psutil.Process:
    """The process that had torch before there was a host, of which the engines of ``tiny`` come."""
    found = psutil.Process(fetch_status(served.http, "tiny")["fork_server_pid"]).parent()
    assert found is not None
    assert found in psutil.Process(served.process.pid).children()
    return found


def failing_request(served: Served) -> str:
    """The id of a request that cannot be answered, as its error tells it."""
    with Client(served.http) as client, pytest.raises(InvalidRequest, match="empty") as caught:
        client.predict("good", [""])
    assert caught.value.request_id in str(caught.value)
    return caught.value.request_id


def test_a_backbone_that_is_not_there_is_named(small_repository: Path) -> None:
    config = ModelConfig(backend="fmplex", max_batch_size=8)
    config.parameters["backbone"].string_value = "/nowhere/backbone"
    write_config(small_repository / "tiny" / CONFIG_FILE, config)
    for command in ("serve", "check"):
        ended = run(command, "-r", str(small_repository))
        assert ended.returncode == 1
        assert "backbone '/nowhere/backbone': no such folder" in ended.stderr


@pytest.mark.parametrize("victim", ["tritonserver", "triton_python_backend_stub"])
def test_what_ends_by_itself_is_started_again(small_repository: Path, victim: str) -> None:
    """Triton says that it is ready over a host that was killed; the supervisor asks the host."""
    with serving(small_repository) as served:
        served.wait_ready()
        regions = shared_memory(served)
        assert regions
        warm = warm_of(served)
        tree = [one for one in psutil.Process(served.process.pid).children(recursive=True) if one != warm]
        child(served, victim).kill()
        wait_for(lambda: "is ready again after" in served.printed, "another server")
        assert run("infer", "good", "hello", "--url", served.http).returncode == 0
        assert warm_of(served) == warm
        assert not psutil.wait_procs(tree, timeout=10)[1]
        assert not any(region.exists() for region in regions)
        served.process.send_signal(signal.SIGINT)
        assert served.finish() == 0
        said = "does not serve: physical FM 'tiny'" if victim != "tritonserver" else "ended by itself with code -9"
        assert f"tritonserver {said}" in served.printed
        assert "starting another one" in served.printed
