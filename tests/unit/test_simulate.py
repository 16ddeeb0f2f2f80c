"""The simulator: every row is accounted for, a seed decides everything, and theory agrees where there is one."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fmplex_backend.errors import InvalidInput
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.interface import VfmPolicy
from fmplex_tools.bench.simulate.device import COSTS, Device, cost_of, hiccups_of
from fmplex_tools.bench.simulate.figures import figures, jain
from fmplex_tools.bench.simulate.run import Counts, Outcome, simulate
from fmplex_tools.bench.simulate.suite import POLICIES, Contender, Grid, saturated
from fmplex_tools.bench.simulate.trace import Arrival, Lengths, Load, Synthetic, read_trace
from fmplex_tools.bench_cli import app

H200 = COSTS["h200"]


def run(policy: str, load: Load, device: Device | None = None, *, rows: int = 64, **options: Any) -> Outcome:
    believed = H200 if device is None else device.cost
    queue = Contender.parse(policy).queue(rows, believed)
    return simulate(queue, load, device or Device(H200), **options)


def accounted(counts: Counts) -> int:
    return counts.served + counts.rejected + counts.expired + counts.left


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("engines", [1, 3])
def test_every_row_is_accounted_for(policy: str, engines: int) -> None:
    """Rejections, expiries, bursts, noise, hiccups, a wrong cost model: nothing is lost, nothing counted twice."""
    load = Synthetic(
        vfms=5, rate=2000, flood=6000, span=0.5, lengths=Lengths.parse("8-256"), rows=3, zipf=1, duty=0.3,
        burst_seconds=0.1, weights=(1, 4), max_queue_size=100, timeout=0.05, latency_slo=0.03,
    ).load(7)  # fmt: skip
    device = Device(CostModel(9e-3, 4e-6), noise=0.5, hiccup_rate=0.02, hiccup_seconds=0.1)
    out = run(policy, load, device, seed=1, engines=engines)
    submitted = {True: 0, False: 0}
    for arrival in load.arrivals:
        submitted[arrival.vfm in load.flooders] += len(arrival.sizes)
    for counts, flood in ((out.light, False), (out.flood, True)):
        assert counts.submitted == submitted[flood] == accounted(counts)
        assert counts.left == 0
        assert counts.served > 0
    assert out.flood.rejected > 0
    assert out.light.expired + out.flood.expired > 0
    assert out.busy <= engines * out.seconds * (1 + 1e-9)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_closed_loop_is_accounted_for(policy: str) -> None:
    out = run(policy, saturated(5, Lengths.parse("16,64"), 0.5))
    assert out.light.submitted == accounted(out.light)
    assert out.light.left >= 5 * 65
    assert all(seconds == pytest.approx(out.seconds) for seconds in out.backlogged.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_decides_everything(policy: str) -> None:
    def outcome(seed: int) -> dict[str, Any]:
        load = Synthetic(vfms=8, rate=2000, flood=6000, span=0.3, lengths=Lengths.parse("8-128")).load(seed)
        found = dataclasses.asdict(run(policy, load, Device(H200, noise=0.2), seed=seed))
        del found["decisions"]
        return found

    assert outcome(3) == outcome(3)
    assert outcome(3) != outcome(4)


def test_one_row_at_a_time_is_an_m_d_1_queue() -> None:
    """Pollaczek and Khinchine: with service s and utilization ρ, a row takes s·(1 + ρ/2(1−ρ))."""
    cost = CostModel(alpha=1e-3, beta=0)
    for rho in (0.3, 0.6):
        load = Synthetic(vfms=3, rate=rho * 1000, span=60).load(0)
        out = simulate(Contender.parse("fifo").queue(1, cost), load, Device(cost))
        mean = sum(out.light.latencies) / len(out.light.latencies)
        assert mean == pytest.approx(1e-3 * (1 + rho / (2 * (1 - rho))), rel=0.03)
        assert out.busy / out.seconds == pytest.approx(rho, rel=0.03)


@pytest.mark.parametrize(("policy", "vfms_in_batch"), [("fifo", 16), ("vtc", 16), ("fair", 16), ("drr", 1)])
def test_saturated_throughput_is_the_cost_models(policy: str, vfms_in_batch: int) -> None:
    out = run(policy, saturated(16, Lengths((64,)), 2.0, weights=[1]))
    assert out.rows / out.seconds == pytest.approx(64 / H200.batch([64] * 64, vfms_in_batch), rel=0.01)
    assert out.busy == pytest.approx(out.seconds)
    assert out.padding == pytest.approx(0, abs=1e-9)


def test_capacity_is_what_a_saturated_device_does() -> None:
    capacity = Lengths((64,)).capacity(H200, 64, 16)
    out = run("fifo", saturated(16, Lengths((64,)), 2.0, weights=[1]))
    assert out.rows / out.seconds == pytest.approx(capacity, rel=0.01)
    assert 2 * capacity == pytest.approx(
        sum(run("fifo", saturated(16, Lengths((64,)), 2.0, weights=[1]), engines=2).charged.values()) / 1.8 * capacity,
        rel=0.01,
    )


def test_fair_shares_by_weight_and_fifo_does_not() -> None:
    load = saturated(6, Lengths((64,)), 3.0)
    found = {
        policy: figures(run(policy, load), load.policies, policy=policy, closed=True) for policy in ("fair", "fifo")
    }
    assert (found["fair"].jain or 0) > 0.999
    assert (found["fifo"].jain or 1) < 0.85
    assert found["fair"].light is None


def test_a_flood_holds_up_others_under_fifo_only() -> None:
    load = Synthetic(vfms=4, rate=1000, flood=10_000, span=1.5).load(0)
    found = {policy: figures(run(policy, load), load.policies, policy=policy) for policy in ("fair", "fifo")}
    fair, fifo = found["fair"].light, found["fifo"].light
    assert fair is not None
    assert fifo is not None
    assert fair.p99 < fifo.p50 / 3


def test_jain() -> None:
    assert jain([2, 2, 2]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([1, 2, 4]) == pytest.approx(49 / 63)


def test_latencies_are_from_arrival_to_answer() -> None:
    """Two rows of one request that runs alone, a third one while it does."""
    cost = CostModel(alpha=1.0, beta=0.1)
    arrivals = [Arrival(1.0, "a", (10, 10)), Arrival(1.5, "b", (10,))]
    load = Load({"a": VfmPolicy(), "b": VfmPolicy()}, span=2.0, arrivals=arrivals)
    out = simulate(Contender.parse("fifo").queue(64, cost), load, Device(cost))
    assert sorted(out.light.latencies) == pytest.approx([3.0, 3.0, 2.5 + 2.0])


# ---- loads ----


def test_synthetic_rates() -> None:
    load = Synthetic(vfms=10, rate=5000, flood=1000, span=4, zipf=1, rows=2).load(0)
    by_vfm = {name: sum(len(a.sizes) for a in load.arrivals if a.vfm == name) for name in load.policies}
    assert by_vfm["flooder"] == pytest.approx(4000, rel=0.1)
    assert sum(by_vfm.values()) == pytest.approx(24_000, rel=0.05)
    assert by_vfm["vfm0"] == pytest.approx(10 * by_vfm["vfm9"], rel=0.25)
    times = [a.time for a in load.arrivals]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= 4


def test_bursts_have_the_same_rate_in_less_time() -> None:
    load = Synthetic(vfms=20, rate=2000, span=20, duty=0.1, burst_seconds=0.5).load(0)
    assert len(load.arrivals) == pytest.approx(40_000, rel=0.2)
    busy = {(a.vfm, int(a.time * 10)) for a in load.arrivals}
    assert len(busy) / (20 * 200) < 0.25


@pytest.mark.parametrize(("spec", "low", "high"), [("64", 64, 64), ("16,64,256", 16, 256), ("8-256", 8, 256)])
def test_lengths(spec: str, low: int, high: int) -> None:
    import numpy as np

    sizes = Lengths.parse(spec).sample(np.random.default_rng(0), 5000)
    assert (min(sizes), max(sizes)) == (low, high)


@pytest.mark.parametrize("spec", ["", "a", "0", "8-", "8-16-32", "-5", "1.5", "99999999"])
def test_lengths_that_are_none(spec: str) -> None:
    with pytest.raises(InvalidInput, match="lengths"):
        Lengths.parse(spec)


def test_too_much_is_refused_before_it_is_made() -> None:
    with pytest.raises(InvalidInput, match="shorten the span"):
        Synthetic(rate=1e6, span=1e6).load(0)


def test_cost_models() -> None:
    assert cost_of("h200") == H200
    assert cost_of("1e-3,1e-5") == CostModel(1e-3, 1e-5)
    for wrong in ("", "h100", "1", "0,1", "1,-1", "1,2,3,4,5", "nan,1"):
        with pytest.raises(InvalidInput, match="cost model"):
            cost_of(wrong)
    assert hiccups_of("0.5:2") == (0.5, 2.0)
    for wrong in ("1", "2:1", "a:b", "0.1:-1", "0.1:inf"):
        with pytest.raises(InvalidInput, match="hiccups"):
            hiccups_of(wrong)


def test_contenders() -> None:
    made = Contender.parse("fair:c_cap=8:padding=2")
    assert made.tuning is not None
    assert (made.tuning.c_cap, made.tuning.padding) == (8, 2)
    for wrong in ("lifo", "fifo:c_cap=8", "fair:cap=8", "fair:c_cap", "fair:c_cap=x"):
        with pytest.raises(InvalidInput, match="policy"):
            Contender.parse(wrong)


# ---- traces ----


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_traces(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "vfm,time_s,tokens,rows,weight\nb,0.5,16,,\na,0.25,8,3,2.5\n")
    lines = write(
        tmp_path / "t.jsonl",
        '{"time_s": 0.5, "vfm": "b", "tokens": 16}\n\n'
        '{"time_s": 0.25, "vfm": "a", "tokens": 8, "rows": 3, "weight": 2.5}\n',
    )
    for path in (table, lines):
        load = read_trace(path, flooders=["b"])
        assert load.arrivals == [Arrival(0.25, "a", (8, 8, 8)), Arrival(0.5, "b", (16,))]
        assert {name: policy.weight for name, policy in load.policies.items()} == {"a": 2.5, "b": 1}
        assert load.flooders == {"b"}


HEADER = "time_s,vfm,tokens,rows,weight\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", r"t.csv:1: no column 'time_s'"),
        ("t.csv", "time_s,vfm\n", r"t.csv:1: no column 'tokens'"),
        ("t.csv", "time_s,vfm,tokens,x\n", r"t.csv:1: column 'x' is none of"),
        ("t.csv", HEADER, "no request in it"),
        ("t.csv", HEADER + "0,a,8\n1,a,x\n", r"t.csv:3: tokens 'x': give a whole number from 1"),
        ("t.csv", HEADER + "0,a,0\n", r"t.csv:2: tokens '0'"),
        ("t.csv", HEADER + "-1,a,8\n", r"t.csv:2: time_s '-1': give seconds"),
        ("t.csv", HEADER + "nan,a,8\n", r"t.csv:2: time_s 'nan'"),
        ("t.csv", HEADER + "0,,8\n", r"t.csv:2: vfm ''"),
        ("t.csv", HEADER + "0,a\n", r"t.csv:2: no tokens"),
        ("t.csv", HEADER + "0,a,8,1.5\n", r"t.csv:2: rows '1.5'"),
        ("t.csv", HEADER + "0,a,8,1,0\n", r"t.csv:2: weight '0': give a number above 0"),
        ("t.csv", HEADER + "0,a,8,1,1,9\n", r"t.csv:2: more values"),
        ("t.csv", HEADER + "0,a,8,1,1\n0,a,8,1,2\n", r"t.csv:3: weight 2: vFM 'a' has weight 1 since line 2"),
        ("t.jsonl", "{\n", r"t.jsonl:1: not a JSON object"),
        ("t.jsonl", "[1]\n", r"t.jsonl:1: not a JSON object"),
        ("t.jsonl", '{"time_s": 0, "vfm": "a", "token": 1}\n', r"t.jsonl:1: key 'token' is none of"),
        ("t.jsonl", '{"time_s": 0, "vfm": 3, "tokens": 1}\n', r"t.jsonl:1: vfm 3"),
        ("t.jsonl", '{"time_s": 0, "vfm": "a", "tokens": 1.5}\n', r"t.jsonl:1: tokens 1.5"),
        ("t.jsonl", '{"time_s": true, "vfm": "a", "tokens": 1}\n', r"t.jsonl:1: time_s True"),
    ],
)
def test_bad_traces_name_file_line_and_value(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_trace(write(tmp_path / name, text))


def test_traces_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"time_s,vfm,tokens\n\xff\xfe,1,2\n")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_trace(tmp_path / "binary.csv")
    with pytest.raises(InvalidInput, match="no vFM 'z'"):
        read_trace(write(tmp_path / "t.csv", HEADER + "0,a,8\n"), flooders=["z"])


# ---- the command ----


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["simulate", *arguments])


def test_command_writes_table_files_and_plot(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "png", "md")}
    result = invoke(
        "--vfms", "3", "--flood", "2", "--span", "0.2", "--lengths", "8-64", "--policies", "fifo,fair:c_cap=8",
        "--noise", "0.1", "--csv", str(files["csv"]), "--json", str(files["json"]), "--plot", str(files["png"]),
        "--markdown", str(files["md"]),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "fair:c_cap=8" in result.output
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    objects = json.loads(files["json"].read_text())
    assert [row["policy"] for row in rows] == [item["policy"] for item in objects] == ["fifo", "fair:c_cap=8"]
    assert float(rows[0]["light_p99_ms"]) == pytest.approx(objects[0]["light_p99_ms"])
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert files["md"].read_text().count("\n") == 4


def test_command_replays_a_trace_and_saturates(tmp_path: Path) -> None:
    trace = write(tmp_path / "t.csv", HEADER + "".join(f"{i / 100},v{i % 3},16,2,\n" for i in range(100)))
    result = invoke(str(trace), "--flooder", "v0", "--policies", "vtc", "--csv", "-")
    assert result.exit_code == 0, result.output
    assert "as traced" in result.output
    result = invoke(
        "--saturate", "--span", "0.2", "--vfms", "2", "--policies", "fair", "--plot", str(tmp_path / "p.png")
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policies", "lifo"), "policy 'lifo' is none of"),
        (("--cost", "fast"), "cost model 'fast'"),
        (("--lengths", "x"), "lengths 'x'"),
        (("--weights", "1,0"), "weights '1,0'"),
        (("--hiccups", "1"), "hiccups '1'"),
        (("--csv", "/nowhere/at/all.csv"), "there is no folder"),
        (("--flooder", "a"), "--flooder names a vFM of a trace"),
        (("--saturate", "--flood", "1"), "leave out --flood"),
        (("none.csv",), "none.csv: cannot be read"),
        (("none.csv", "--saturate"), "played as it is"),
        (("--suite", "--device", "h200"), "leave out the trace and --device"),
    ],
)
def test_command_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert message in result.output


def test_the_suite_is_a_grid() -> None:
    scenarios = list(Grid().scenarios())
    assert len(scenarios) == 2 * 4 * 2 * 3
    tiny = list(Grid(costs=("cpu2",), vfms=(4,), lengths=("8-256",), scale=0.05).scenarios())
    found = [figure for scenario in tiny for figure in scenario.run([Contender.parse("fair")], 0, lambda *_: None)]
    assert [(figure.load, figure.vfms) for figure in found] == [("light", 4), ("flooded", 4), ("saturated", 4)]
    assert found[1].flood_rejected > 0
