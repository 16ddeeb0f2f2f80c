"""The server's own metrics endpoint: what it tells is what was sent, by vFM; ``fmplex top`` shows it."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tritonclient.grpc as grpc
import typer
from prometheus_client.parser import text_string_to_metric_families
from support.broken import GOOD
from support.live import FM, TEXTS, LiveServer, ask, wait_for
from support.recipes import stage, write_vfm
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from fmplex_tools import top_cli
from fmplex_tools.top.scrape import Values, scrape

pytestmark = pytest.mark.live

FIRST_PORT = 720
VFMS: dict[str, dict[str, str]] = {
    "counted": {"weight": "3", "latency_slo_ms": "60000"},
    "counted_limited": {"rate_limit_rows_per_second": "0.01", "rate_limit_burst_rows": "2"},
    "counted_idle": {},
}


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[Any]:
    with grpc.InferenceServerClient(server.grpc) as client:
        yield client


def url(server: LiveServer) -> str:
    return f"http://{server.metrics}/metrics"


def vfm(server: LiveServer, name: str) -> Values:
    return scrape(url(server))[FM].vfms.get(name, Values())


def told(server: LiveServer, name: str, look: Callable[[Values], bool]) -> Values:
    """Wait until the metrics of a vFM are as they should be; a second after the fact, as they are published."""

    def values() -> Values | None:
        found = vfm(server, name)
        return found if look(found) else None

    wait_for(values, f"metrics of {name!r}, which are {vfm(server, name).of}")
    seen = scrape(url(server))[FM].at
    wait_for(lambda: scrape(url(server))[FM].at > seen, "the end of the push, which sends the time last")
    return vfm(server, name)


@pytest.fixture(scope="module")
def counted(server: LiveServer, client: Any) -> Iterator[None]:
    """vFMs that nobody else asks, and everything that is asked of them."""
    for port, (name, parameters) in enumerate(VFMS.items(), start=FIRST_PORT):
        write_vfm(server.repository, name, port, GOOD, server.backbone, seed=port, parameters=parameters)
    for name in VFMS:
        server.wait_serving(name)
    for rows in (1, 2, 3, 2):
        ask(client, "counted", TEXTS[:rows], client_timeout=60)
    for rows in (1, 2):
        with pytest.raises(InferenceServerException, match="deadline"):
            ask(client, "counted", TEXTS[:rows], timeout=1)
    with pytest.raises(InferenceServerException, match="empty"):
        ask(client, "counted", ["good", ""])
    ask(client, "counted_limited", TEXTS[:2], client_timeout=60)
    for _ in range(3):
        with pytest.raises(InferenceServerException, match="rate limit"):
            ask(client, "counted_limited", TEXTS[:1])
    yield
    for name in VFMS:
        if (server.repository / name).exists():
            os.rename(server.repository / name, stage(server.repository, f"removed-{name}"))


@pytest.mark.usefixtures("counted")
def test_counts_are_what_was_sent(server: LiveServer) -> None:
    told(server, "counted", lambda v: v.get("fmplex_requests_total", "invalid") == 1)
    values = told(server, "counted", lambda v: v.get("fmplex_requests_total", "served") == 4)
    outcomes = {"served": 4, "expired": 2, "invalid": 1, "rejected": 0, "failed": 0}
    assert {outcome: values.get("fmplex_requests_total", outcome) for outcome in outcomes} == outcomes
    rows = {"served": 8, "expired": 3, "invalid": 2, "rejected": 0, "failed": 0}
    assert {outcome: values.get("fmplex_rows_total", outcome) for outcome in rows} == rows
    assert values.sum("fmplex_expiries_total", ["passed", "unreachable"]) == 3
    assert values.get("fmplex_request_seconds_count") == 4
    assert values.buckets("fmplex_request_seconds")[float("inf")] == 4
    assert 0 < values.get("fmplex_request_seconds_sum") < 60
    assert values.get("fmplex_row_queue_seconds_count") == values.get("fmplex_row_compute_seconds_count") == 8
    assert values.get("fmplex_row_compute_seconds_sum") > 0
    assert 0 < values.get("fmplex_device_seconds_total") < 60
    assert (values.get("fmplex_weight"), values.get("fmplex_slo_seconds")) == (3, 60)
    assert values.get("fmplex_slo_requests_total", "met") == 4
    assert values.get("fmplex_slo_requests_total", "missed") == 2, "what expired was not within the objective"


@pytest.mark.usefixtures("counted")
def test_rejected_requests(server: LiveServer) -> None:
    values = told(server, "counted_limited", lambda v: v.get("fmplex_requests_total", "rejected") == 3)
    assert values.get("fmplex_requests_total", "served") == 1
    assert values.get("fmplex_rejections_total", "rate_limit") == 3
    assert (values.get("fmplex_rows_total", "rejected"), values.get("fmplex_rows_total", "served")) == (3, 2)


@pytest.mark.usefixtures("counted")
def test_a_vfm_that_nobody_asks_has_one_series(server: LiveServer) -> None:
    assert told(server, "counted_idle", lambda v: bool(v.of)).of == {("fmplex_weight", ""): 1}


def test_requests_for_no_vfm(server: LiveServer, client: Any) -> None:
    before = scrape(url(server))[FM].own.get("fmplex_unroutable_requests_total")
    with pytest.raises(InferenceServerException, match="is a physical FM"):
        ask(client, FM, ["good"])
    wait_for(lambda: scrape(url(server))[FM].own.get("fmplex_unroutable_requests_total") == before + 1, "it is counted")


@pytest.mark.usefixtures("counted")
def test_the_exposition_is_valid(server: LiveServer) -> None:
    with urllib.request.urlopen(url(server), timeout=10) as answer:
        text = answer.read().decode()
    kinds = {f.name: f.type for f in text_string_to_metric_families(text) if f.name.startswith("fmplex_")}
    assert kinds["fmplex_rows"] == kinds["fmplex_request_seconds_bucket"] == "counter"
    assert kinds["fmplex_weight"] == kinds["fmplex_share_ratio"] == "gauge"
    series = [line.rpartition(" ")[0] for line in text.splitlines() if line.startswith("fmplex_")]
    assert len(series) == len(set(series))
    own = wait_for(lambda: _whole(scrape(url(server))[FM].own), "a look that does not fall into a push")
    assert own.get("fmplex_engines") == len(server.status()["engine_pids"])
    assert own.get("fmplex_useful_tokens_total") > 0
    assert own.get("fmplex_decision_seconds_count") >= own.get("fmplex_batch_rows_count")


def _whole(own: Values) -> Values | None:
    for name in ("fmplex_batch_rows", "fmplex_batch_vfms"):
        buckets = [count for _, count in sorted(own.buckets(name).items())]
        if buckets != sorted(buckets) or buckets[-1] != own.get(f"{name}_count"):
            return None
    return own if own.get("fmplex_batch_rows_count") > 0 else None


@pytest.mark.usefixtures("counted")
def test_a_new_weight_and_a_removed_vfm(server: LiveServer) -> None:
    told(server, "counted_limited", lambda v: v.get("fmplex_weight") == 1)
    config = server.repository / "counted" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "3"', 'string_value: "5"'))
    told(server, "counted", lambda v: v.get("fmplex_weight") == 5)
    os.rename(server.repository / "counted_limited", stage(server.repository, "removed-counted_limited"))
    told(server, "counted_limited", lambda v: not v.of)
    assert vfm(server, "counted").get("fmplex_requests_total", "served") == 4, "the others keep theirs"


# ---- fmplex top ----

app = typer.Typer()
app.command()(top_cli.top)
runner = CliRunner()


@pytest.mark.usefixtures("counted")
def test_top_once(server: LiveServer) -> None:
    done = runner.invoke(app, ["--url", url(server), "--once", "--interval", "1", "--sort", "name"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{FM}   1 engine ")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["counted_idle", "1"] in [line[:2] for line in lines]


def test_top_json_counts_the_rows_of_the_interval(server: LiveServer, client: Any) -> None:
    before = scrape(url(server))[FM]
    for _ in range(3):
        ask(client, "bare_two", TEXTS[:2], client_timeout=60)
    rows = before.vfms["bare_two"].get("fmplex_rows_total", "served") + 6
    told(server, "bare_two", lambda v: v.get("fmplex_rows_total", "served") == rows)
    done = runner.invoke(app, ["--url", url(server), "--json", "--once", "--interval", "1"])
    (fm,) = json.loads(done.stdout)["fms"]
    assert fm["seconds"] > 0
    assert "bare_two" in {v["vfm"] for v in fm["vfms"]}
