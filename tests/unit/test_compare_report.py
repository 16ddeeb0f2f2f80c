"""The comparison's plan, and what is said of a record: goals, where FMplex is worse, tables, plots, the search."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from fmplex_backend.errors import EngineFailure, InvalidInput
from fmplex_tools.bench.compare import most_tasks as search
from fmplex_tools.bench.compare.answers import Summary
from fmplex_tools.bench.compare.deployments import DEPLOYMENTS
from fmplex_tools.bench.compare.markdown import as_markdown, most_tasks_as_markdown
from fmplex_tools.bench.compare.most_tasks import Target, Trial, best, most_tasks
from fmplex_tools.bench.compare.plan import FLOOD, LOADS, REFERENCE, VARIATIONS, Plan
from fmplex_tools.bench.compare.plots import draw
from fmplex_tools.bench.compare.records import Cell, Failure, Record, Standing, merged
from fmplex_tools.bench.compare.verdicts import MEAN, Table, figures_of, worse
from fmplex_tools.bench.compare.workload import digest, schedule

CAPACITY = {"mixed": 100.0, "short": 200.0, "long": 30.0}


def plan(**changed: object) -> Plan:
    return Plan(source=Path("nowhere"), deployments=tuple(DEPLOYMENTS), **changed)  # type: ignore[arg-type]


def cell(deployment: str, mean: float, *, tasks: int = 8, case: str = "middle", number: int = 0) -> Cell:
    summary = Summary(
        100, 0, 0, 50.0, 50.0, mean, mean, 2 * mean, 3 * mean, 4 * mean, (mean,) * tasks, 1.0, 0.1
    )  # fmt: skip
    flooder = summary if case == FLOOD else None
    curve = ((mean / 2, 0.0), (3 * mean, 1.0))
    return Cell(deployment, tasks, number, case, 0.5, "abc", summary, flooder, 12.0, 0.01, curve, (50, 50))


def standing(deployment: str, gigabytes: float, *, tasks: int = 8) -> Standing:
    return Standing(deployment, tasks, 0, "", 10.0, 1.0, int(gigabytes * 1e9), 1e-6)


def record(ours: float = 20.0, theirs: float = 100.0, cases: tuple[str, ...] = tuple(LOADS)) -> Record:
    found = Record(capacity={"8 mixed": 100.0})
    for name, mean in (("fmplex", ours), ("spatial", 10 * theirs), ("best_effort", theirs)):
        found.standings.append(standing(name, 1.0 if name == "fmplex" else 4.0))
        found.cells += [cell(name, mean, case=case) for case in cases]
    return found


# ---- the plan ----


def test_loads_are_parts_of_the_capacity() -> None:
    cases = plan(varied=0).cases(4, {"mixed": 100.0})
    assert [case.name for case in cases] == list(LOADS)
    assert [case.workload.rate for case in cases] == pytest.approx([20, 50, 80])
    assert {case.workload.tasks for case in cases} == {4}


def test_one_number_of_tasks_has_variations() -> None:
    made = plan(varied=8)
    assert made.lengths(8) == ("mixed", "short", "long")
    assert made.lengths(4) == ("mixed",)
    cases = {case.name: case.workload for case in made.cases(8, CAPACITY)}  # type: ignore[arg-type]
    assert list(cases) == [*LOADS, *VARIATIONS, FLOOD]
    assert cases["short"].rate == pytest.approx(100)
    assert cases["long"].lengths == "long"
    assert cases["zipf"].popularity == "zipf"
    assert (cases[FLOOD].rate, cases[FLOOD].flood) == pytest.approx((20, 100))


def test_the_same_load_for_every_deployment_and_round() -> None:
    one, other = (plan(seed=3).cases(2, {"mixed": 50.0})[0].workload for _ in range(2))
    assert digest(schedule(one)) == digest(schedule(other))


def test_the_reference_comes_first() -> None:
    made = plan()
    orders = [made.order(position) for position in range(6)]
    assert all(order[0] == REFERENCE and set(order) == set(DEPLOYMENTS) for order in orders)
    assert len({order[1] for order in orders}) == len(DEPLOYMENTS) - 1


def test_plans_that_compare_nothing() -> None:
    with pytest.raises(InvalidInput, match="best_effort must be one"):
        dataclasses.replace(plan(), deployments=("fmplex",)).check()
    with pytest.raises(InvalidInput, match="seconds 2"):
        plan(seconds=2.0).check()


# ---- what is said of a record ----


def test_goals() -> None:
    goals = {figure.name: figure for figure in figures_of(record()) if figure.goal}
    assert len(goals) == 6
    assert goals["best-effort co-location, 8 tasks, middle"].good is True
    assert goals["spatial partitioning, 8 tasks, light"].value == pytest.approx(0.02)
    missed = {figure.name: figure.good for figure in figures_of(record(ours=70.0)) if figure.goal}
    assert missed["best-effort co-location, 8 tasks, middle"] is False
    assert missed["best-effort co-location, 8 tasks, light"] is True


def test_where_fmplex_is_worse_comes_first() -> None:
    assert worse(record()) == []
    found = worse(record(ours=150.0))
    assert "150 against 100 ms of best-effort co-location" in found[0]
    assert len(found) == 2 * len(LOADS)  # mean and p99
    text = as_markdown(record(ours=150.0), {"cores": 2})
    assert text.index("Where FMplex is worse") < text.index("| mean latency in ms")
    assert "worse nowhere" in as_markdown(record(), {})


def test_failed_requests_of_ours_are_worse_than_none() -> None:
    found = record()
    first = found.cells[0]
    found.cells[0] = dataclasses.replace(first, summary=dataclasses.replace(first.summary, failed=3))
    assert any("requests failed" in sentence for sentence in worse(found))


def test_medians_and_spread_over_the_rounds() -> None:
    found = Record(standings=[standing("fmplex", 1.0)])
    found.cells = [cell("fmplex", mean, number=number) for number, mean in enumerate((10.0, 30.0, 20.0))]
    table = Table(found)
    assert table.value(MEAN, "fmplex", 8, "middle") == 20
    assert table.spread(MEAN, "fmplex", 8, "middle") == pytest.approx(1.0)
    assert math.isnan(table.value(MEAN, "spatial", 8, "middle"))
    assert "spread of the mean latency" in as_markdown(found, {})


def test_what_could_not_be_measured_is_told() -> None:
    found = record()
    found.failures.append(Failure("peft_mixed", 8, 0, "no memory"))
    assert any("no memory" in figure.unit for figure in figures_of(found))
    assert "Not measured: peft_mixed with 8 tasks: no memory" in as_markdown(found, {})


def test_to_json_and_back() -> None:
    found = record(cases=(*LOADS, FLOOD))
    found.failures.append(Failure("fifo", 8, 0, "why"))
    assert Record.from_data(json.loads(json.dumps(found.as_data()))) == found


def test_runs_are_the_rounds_of_one() -> None:
    one = record(cases=tuple(LOADS))
    both = merged([one, one])
    assert len(both.cells) == 2 * len(one.cells)
    assert {cell.round for cell in both.cells} == {0, 1}
    assert Table(both).rounds == 2
    assert figures_of(both) == figures_of(one), "medians of the same"


def test_plots(tmp_path: Path) -> None:
    drawn = draw(record(cases=(*LOADS, FLOOD)), tmp_path)
    assert [file.name for file in drawn] == [
        "compare_load.png",
        "compare_memory.png",
        "compare_cdf.png",
        "compare_flood.png",
    ]
    assert all(file.stat().st_size > 4000 for file in drawn)


# ---- the search ----

TARGET = Target(source=Path("nowhere"), fm="minilm", demand=0.1, p99_ms=100, seconds=10, most=1000)


def machine(fits: int) -> object:
    """Stands for a machine with room for so many tasks."""

    def trial(name: str, target: Target, tasks: int, before: list[Trial]) -> Trial:
        return Trial(tasks, tasks <= fits, float(tasks), tasks, 1.0, "" if tasks <= fits else "p99")

    return trial


@pytest.mark.parametrize(("fits", "tried", "found"), [(37, [8, 16, 32, 64, 48, 40], 32), (5, [8, 4, 6], 4)])
def test_the_search(monkeypatch: pytest.MonkeyPatch, fits: int, tried: list[int], found: int) -> None:
    monkeypatch.setattr(search, "_try", machine(fits))
    trials = most_tasks("fmplex", TARGET, 8, print, print)
    assert [trial.tasks for trial in trials] == tried
    largest = best(trials)
    assert largest is not None
    assert largest.tasks == found
    assert "| FMplex | 8 | yes" in most_tasks_as_markdown(TARGET, {"fmplex": trials}) or fits < 8


def test_the_search_ends_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_try", machine(10**6))
    trials = most_tasks("fmplex", TARGET, 300, print, print)
    assert [trial.tasks for trial in trials] == [300, 600, 1000]


def test_what_does_not_fit_into_memory_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EngineFailure("it was started")

    monkeypatch.setattr(search, "start", refuse)
    terabyte = 10**12
    before = [Trial(1, True, 1.0, terabyte, 1.0, ""), Trial(2, True, 1.0, 2 * terabyte, 1.0, "")]
    assert "3000.0 GB of memory" in search._try("fmplex", TARGET, 3, before).why
    assert search._try("fmplex", TARGET, 3, []).why == "it was started"
