"""``fmplex health``: right while a server serves; wrong, with a reason and in time, when engine or host do not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from support.live import ended, wait_for
from support.served import make_small_repository, run
from typer.testing import CliRunner

from fmplex_client import Client, InvalidRequest
from fmplex_tools.bench.fair.arena import Arena
from fmplex_tools.health_cli import health
from fmplex_tools.server.process import ServerOptions, TritonServer, free_ports
from fmplex_tools.serving import fetch_status

pytestmark = pytest.mark.live

app = typer.Typer()
app.command()(health)
MARGIN = 10.0
"""Seconds by which a busy machine may be late."""


@dataclass(frozen=True)
class Examined:
    """What ``fmplex health --json`` said, and how it ended."""

    code: int
    lines: list[dict[str, Any]]

    @property
    def reason(self) -> str:
        (line,) = self.lines
        return str(line["reason"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Iterator[ServerOptions]:
    """Physical FM ``tiny`` with two engines and vFM ``good``, without anybody who would start it again."""
    repository = make_small_repository(tmp_path_factory.mktemp("health"), tiny_backbone)
    with TritonServer(ServerOptions(repository, *free_ports(3))) as server:
        server.wait_ready(120)
        yield server.options
        server.kill()  # its host is dead: it would sit out its time to drain


def where(served: ServerOptions) -> list[str]:
    return ["--url", served.http, "--metrics", served.metrics]


def examine(served: ServerOptions, *arguments: str, timeout: float = 10.0) -> Examined:
    begun = time.monotonic()
    done = CliRunner().invoke(app, [*arguments, *where(served), "--timeout", str(timeout), "--json"])
    assert time.monotonic() - begun < timeout + MARGIN, "it hung"
    return Examined(done.exit_code, [json.loads(line) for line in done.stdout.splitlines()])


def healthy_again(served: ServerOptions) -> Callable[[], bool]:
    return lambda: examine(served).code == 0


def test_who_answers_is_healthy(served: ServerOptions) -> None:
    wait_for(healthy_again(served), "the first metrics, which name the physical FM")
    (line,) = examine(served).lines
    assert (line["ok"], line["fm"], line["vfm"], line["reason"]) == (True, "tiny", "good", None)
    shown = run("health", *where(served))
    assert (shown.returncode, "tiny: good answered in" in shown.stdout) == (0, True), shown
    over_grpc = CliRunner().invoke(app, ["good", "--protocol", "grpc", "--url", served.grpc])
    assert over_grpc.exit_code == 0, over_grpc.output


def test_each_vfm_that_is_named_is_asked(served: ServerOptions) -> None:
    found = examine(served, "good", "bad", "nobody")
    assert found.code == 1
    good, bad, nobody = found.lines
    assert (good["ok"], bad["ok"], nobody["ok"]) == (True, False, False)
    assert "vFM 'bad': parameter 'weight' is '0'" in bad["reason"]
    assert "nobody" in nobody["reason"]


def test_a_large_body_ends_nobody(served: ServerOptions) -> None:
    with Client(served.http) as client, pytest.raises(InvalidRequest, match="16777216 bytes long, the limit is 65536"):
        client.predict("good", ["x" * (16 << 20)])
    assert examine(served).code == 0


def test_engines_that_hang_are_seen_through_a_host_that_tells_its_status(served: ServerOptions) -> None:
    for pid in fetch_status(served.http, "tiny")["engine_pids"]:
        psutil.Process(pid).suspend()
    found = examine(served, timeout=1.5)
    assert (found.code, found.lines[0]["fm"]) == (1, "tiny")
    assert "deadline" in found.reason or "no answer" in found.reason
    assert fetch_status(served.http, "tiny")["vfms"]
    wait_for(healthy_again(served), "the host starts engines in the place of those that hang")


def test_a_host_that_hangs_or_has_died_is_not_healthy(served: ServerOptions) -> None:
    server, host = Arena(served, "tiny").processes()
    host.suspend()
    found = examine(served, timeout=1.5)
    assert (found.code, found.lines[0]["fm"]) == (1, "tiny")
    # Triton itself gives a host up that has not moved for a second, and does not take it back.
    assert "no answer" in found.reason or "is not healthy" in found.reason
    host.kill()
    wait_for(lambda: ended(host), "its end")
    dead = examine(served)
    assert (dead.code, dead.lines[0]["fm"]) == (1, "tiny")
    # On a busy machine Triton has been seen to end itself then, ten seconds later.
    assert "is not healthy" in dead.reason or (ended(server) and "Connection refused" in dead.reason)


def test_no_server_is_not_healthy() -> None:
    done = CliRunner().invoke(app, ["--url", "127.0.0.1:1", "--metrics", "127.0.0.1:1", "--timeout", "1"])
    assert done.exit_code == 1
    assert "failed" in done.output
    assert "no metrics at http://127.0.0.1:1/" in done.output
