"""``fmplex top``: from an exposition to figures and tables."""

from __future__ import annotations

import http.server
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from fmplex_backend.errors import FMplexError, InvalidInput, Unavailable
from fmplex_backend.host.counts import FM_SERIES, VFM_SERIES
from fmplex_backend.host.metrics import Meter
from fmplex_tools import top_cli
from fmplex_tools.top.figures import FmFigures, fm_figures, quantile
from fmplex_tools.top.scrape import FmScrape, Values, parse, scrape
from fmplex_tools.top.view import COLUMNS, SORTS, screen, sort_vfms

FIRST = """\
# HELP nv_inference_count Number of inferences performed
# TYPE nv_inference_count counter
nv_inference_count{model="minilm",version="1"} 12
# HELP fmplex_gone Of a vFM that was removed
# TYPE fmplex_gone gauge
# HELP fmplex_requests_total Requests by how they ended.
# TYPE fmplex_requests_total counter
fmplex_requests_total{fm="minilm",outcome="served",vfm="reviews"} 100
fmplex_requests_total{fm="minilm",outcome="rejected",vfm="reviews"} 1
# HELP fmplex_rows_total Rows by how they ended.
# TYPE fmplex_rows_total counter
fmplex_rows_total{fm="minilm",outcome="served",vfm="reviews"} 1000
# HELP fmplex_request_seconds_bucket x
# TYPE fmplex_request_seconds_bucket counter
fmplex_request_seconds_bucket{fm="minilm",le="0.01",vfm="reviews"} 90
fmplex_request_seconds_bucket{fm="minilm",le="0.02",vfm="reviews"} 95
fmplex_request_seconds_bucket{fm="minilm",le="+Inf",vfm="reviews"} 100
# HELP fmplex_weight Weight
# TYPE fmplex_weight gauge
fmplex_weight{fm="minilm",vfm="reviews"} 3
fmplex_weight{fm="minilm",vfm="[news] \\"x\\""} 1
# HELP fmplex_quarantined x
# TYPE fmplex_quarantined gauge
fmplex_quarantined{fm="minilm",vfm="[news] \\"x\\""} 1
# HELP fmplex_slo_seconds x
# TYPE fmplex_slo_seconds gauge
fmplex_slo_seconds{fm="minilm",vfm="reviews"} 0.05
# HELP fmplex_slo_requests_total x
# TYPE fmplex_slo_requests_total counter
fmplex_slo_requests_total{fm="minilm",result="met",vfm="reviews"} 50
# HELP fmplex_share_ratio x
# TYPE fmplex_share_ratio gauge
fmplex_share_ratio{fm="minilm",vfm="reviews"} 0.7
# HELP fmplex_entitled_share_ratio x
# TYPE fmplex_entitled_share_ratio gauge
fmplex_entitled_share_ratio{fm="minilm",vfm="reviews"} 0.75
# HELP fmplex_engines x
# TYPE fmplex_engines gauge
fmplex_engines{fm="minilm"} 2
# HELP fmplex_engine_deaths_total x
# TYPE fmplex_engine_deaths_total counter
fmplex_engine_deaths_total{fm="minilm"} 3
# HELP fmplex_batch_rows_sum x
# TYPE fmplex_batch_rows_sum counter
fmplex_batch_rows_sum{fm="minilm"} 1000
# HELP fmplex_batch_rows_count x
# TYPE fmplex_batch_rows_count counter
fmplex_batch_rows_count{fm="minilm"} 100
# HELP fmplex_engine_busy_seconds_total x
# TYPE fmplex_engine_busy_seconds_total counter
fmplex_engine_busy_seconds_total{fm="minilm"} 10
# HELP fmplex_snapshot_timestamp_seconds x
# TYPE fmplex_snapshot_timestamp_seconds gauge
fmplex_snapshot_timestamp_seconds{fm="minilm"} 1700000000
"""
CHANGES = {
    'outcome="served",vfm="reviews"} 100\n': 'outcome="served",vfm="reviews"} 120\n',
    'outcome="served",vfm="reviews"} 1000': 'outcome="served",vfm="reviews"} 1400',
    'outcome="rejected",vfm="reviews"} 1\n': 'outcome="rejected",vfm="reviews"} 5\n',
    'le="0.02",vfm="reviews"} 95': 'le="0.02",vfm="reviews"} 115',
    'le="+Inf",vfm="reviews"} 100': 'le="+Inf",vfm="reviews"} 120',
    '_sum{fm="minilm"} 1000': '_sum{fm="minilm"} 1400',
    '_count{fm="minilm"} 100': '_count{fm="minilm"} 150',
    'busy_seconds_total{fm="minilm"} 10': 'busy_seconds_total{fm="minilm"} 12',
    "1700000000": "1700000002",
}


def second() -> str:
    """Two seconds later."""
    text = FIRST
    for old, new in CHANGES.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def figures() -> FmFigures:
    return fm_figures("minilm", parse(FIRST)["minilm"], parse(second())["minilm"])


def test_rates_between_two_looks(figures: FmFigures) -> None:
    reviews = next(v for v in figures.vfms if v.vfm == "reviews")
    assert (figures.seconds, figures.engines, figures.busy) == (2, 2, 0.5)
    assert (reviews.rows_per_s, reviews.requests_per_s, reviews.rejected_per_s) == (200, 10, 2)
    assert (reviews.p50_ms, reviews.p99_ms) == pytest.approx((15.0, 19.9))
    assert (reviews.weight, reviews.share, reviews.entitled) == (3, 0.7, 0.75)
    assert (reviews.slo_ms, reviews.slo_met) == (50, 1.0)
    assert figures.batch_rows == 8
    assert figures.batch_vfms is figures.padding is figures.decision_us is None
    idle = next(v for v in figures.vfms if v.vfm != "reviews")
    assert idle.vfm == '[news] "x"'
    assert (idle.rows_per_s, idle.p50_ms, idle.slo_met) == (0, None, None)
    assert (reviews.quarantined, idle.quarantined, figures.engine_deaths) == (False, True, 3)


def test_counters_that_began_anew(figures: FmFigures) -> None:
    restarted = fm_figures(
        "minilm", parse(second().replace("1700000002", "1699999999"))["minilm"], parse(FIRST)["minilm"]
    )
    reviews = next(v for v in restarted.vfms if v.vfm == "reviews")
    assert reviews.rows_per_s == 1000
    assert reviews.p50_ms is not None


def test_one_look_has_no_rates() -> None:
    figures = fm_figures("minilm", None, parse(FIRST)["minilm"])
    assert figures.seconds == figures.rows_per_s == figures.busy == 0


def test_values_add_up() -> None:
    some = {"a": Values({("rows", "served"): 2.0, ("rows", "failed"): 1.0}), "b": Values({("rows", "served"): 3.0})}
    rows = FmScrape(vfms=some)
    assert rows.value("rows") == 6
    assert rows.value("rows", label="served") == 5
    assert rows.value("rows", vfm="a") == 3
    assert rows.value("rows", vfm="c") == rows.value("nothing") == 0


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        ({}, 0.5, None),
        ({0.1: 0, math.inf: 0}, 0.5, None),
        ({0.1: 10, math.inf: 10}, 0.5, 0.05),
        ({0.1: 5, 0.2: 10, math.inf: 10}, 0.5, 0.1),
        ({0.1: 5, 0.2: 10, math.inf: 10}, 0.9, 0.18),
        ({0.1: 0, 0.2: 0, math.inf: 10}, 0.5, 0.2),
    ],
)
def test_quantile(buckets: dict[float, float], q: float, expected: float | None) -> None:
    assert quantile(buckets, q) == (expected if expected is None else pytest.approx(expected))


def test_every_series_that_is_published_is_read() -> None:
    meter = Meter()
    meter.set_policy("a", 2.0, None)
    lines = []
    for series, vfm, _ in meter.snapshot(0.0, {}).samples():
        labels = {"fm": "m", **series.labels, **({"vfm": vfm} if vfm else {})}
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        lines += [f"# HELP {series.name} {series.help}", f"# TYPE {series.name} {series.kind}"]
        lines.append(f"{series.name}{{{inside}}} 1")
    found = parse("\n".join(lines))["m"]
    third = ",".join
    assert set(found.own.of) == {(s.name, third(s.labels.values())) for s in FM_SERIES}
    assert set(found.vfms["a"].of) == {(s.name, third(s.labels.values())) for s in VFM_SERIES}


# ---- tables ----


def printed(figures: FmFigures, width: int, height: int | None = None, sort: str = "rows") -> list[str]:
    console = Console(width=width, record=True, highlight=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(screen([figures], sort, width, height))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [80, 100, 132])
def test_table(figures: FmFigures, width: int) -> None:
    lines = printed(figures, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines), lines
    assert lines[0].startswith("minilm   2 engines 50% busy · 200 rows/s · 0 waiting · 2 vFMs")
    (row,) = [line.split() for line in lines if line.startswith("reviews")]
    assert row[:3] == ["reviews", "3", "70%"]
    assert {"200", "15.0", "19.9", "2.0", "100.0%"} <= set(row)
    assert any(line.startswith('✗ [news] "x"') for line in lines)
    assert ("req/s" in " ".join(lines)) == (width == 132)


def test_a_thousand_vfms_fit_a_terminal(figures: FmFigures) -> None:
    reviews = next(v for v in figures.vfms if v.vfm == "reviews")
    many = tuple(replace(reviews, vfm=f"task{i:04}", rows_per_s=float(i)) for i in range(1000))
    lines = printed(replace(figures, vfms=many), 120, 24)
    assert len(lines) <= 24
    shown = [line.split()[0] for line in lines if line.startswith("task")]
    assert shown == [f"task{i:04}" for i in range(999, 999 - len(shown), -1)]
    assert len(shown) >= 18
    assert lines[-1] == f"… {1000 - len(shown)} more of 1000 vFMs"


@pytest.mark.parametrize("key", SORTS)
def test_sorting(figures: FmFigures, key: str) -> None:
    names = [v.vfm for v in sort_vfms(figures.vfms, key)]
    assert names[0] == ('[news] "x"' if key in ("name", "queue", "expired", "failed", "device") else "reviews")


def test_columns_have_what_their_headings_need() -> None:
    assert all(len(column.heading) <= column.width for column in COLUMNS[1:])


# ---- the command ----


class Endpoint:
    """Tells ``pages`` one after the other, the last one for ever."""

    def __init__(self, pages: list[str]) -> None:
        outer = self
        self.pages = pages

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = outer.pages.pop(0) if len(outer.pages) > 1 else outer.pages[0]
                self.send_response(200)
                self.end_headers()
                self.wfile.write(page.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/metrics"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(top_cli.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(top_cli, "PATIENCE", 1.0)
    endpoint = Endpoint([FIRST, FIRST, second()])
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()
    endpoint.thread.join()


app = typer.Typer()
app.command()(top_cli.top)
runner = CliRunner()


def test_a_pipe_gets_one_table(endpoint: Endpoint) -> None:
    done = runner.invoke(app, ["--url", endpoint.url])
    assert done.exit_code == 0, done.output
    assert "200 rows/s" in done.output, "it waited for newer values"
    assert "reviews" in done.output


def test_json(endpoint: Endpoint) -> None:
    done = runner.invoke(app, ["--url", endpoint.url, "--json", "--once"])
    (fm,) = json.loads(done.stdout)["fms"]
    assert (fm["fm"], fm["rows_per_s"]) == ("minilm", 200)
    assert {v["vfm"] for v in fm["vfms"]} == {"reviews", '[news] "x"'}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--fm", "bert"], "no physical FM 'bert'"), (["--sort", "colour"], "choose one of name, weight")],
)
def test_what_is_wrong(endpoint: Endpoint, arguments: list[str], says: str) -> None:
    done = runner.invoke(app, ["--url", endpoint.url, *arguments])
    assert isinstance(done.exception, FMplexError)
    assert says in str(done.exception)


def test_not_an_fmplex_server(endpoint: Endpoint) -> None:
    endpoint.pages[:] = ["# TYPE nv_inference_count counter\nnv_inference_count 3\n"]
    with pytest.raises(InvalidInput, match="no metrics of FMplex"):
        scrape(endpoint.url)
    endpoint.pages[:] = ["fmplex_weight{ 3\n"]
    with pytest.raises(InvalidInput, match="no Prometheus metrics"):
        scrape(endpoint.url)
    with pytest.raises(InvalidInput, match="is no address"):
        scrape("nonsense")


def test_no_server() -> None:
    with pytest.raises(Unavailable, match=r"no metrics at http://127.0.0.1:1/"):
        scrape("http://127.0.0.1:1/metrics")
