"""What users notice of engines that die, of poisonous rows, of floods, of all at once: on the real server, in short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress
from support.tiny import make_fm_repository

from fmplex_tools.bench.engine.fleet import FleetBase
from fmplex_tools.bench.fair import bench
from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.bench.faults import overload as module
from fmplex_tools.bench.faults.access import access, as_markdown
from fmplex_tools.bench.faults.kills import KINDS, KillsPlan, kills
from fmplex_tools.bench.faults.overload import OverloadPlan, overload
from fmplex_tools.bench.faults.poison import PoisonPlan, poison
from fmplex_tools.bench.faults.soak import SoakPlan, soak
from fmplex_tools.bench.faults.soak_report import draw

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def source(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fm_repository(tmp_path_factory.mktemp("source"), "tiny", tiny_backbone)


def figures(outcome: Outcome) -> dict[str, float]:
    return {figure.name: figure.value for figure in outcome.figures}


def test_engines_die_and_nobody_notices(source: Path) -> None:
    noted: dict[str, Any] = {}
    with Progress(disable=True) as progress:
        plan = KillsPlan(source=source, fm="tiny", kills=len(KINDS), vfms=6, clients=6)
        outcome = kills(plan, progress, noted)
    found = figures(outcome)
    assert (found["requests failed"], found["requests answered wrongly"]) == (0, 0), outcome.details
    assert set(outcome.details["recoveries"]) == set(KINDS)
    print(outcome.details["recoveries"])


def test_poison_is_found_and_quarantined(source: Path) -> None:
    with Progress(disable=True) as progress:
        plan = PoisonPlan(source=source, fm="tiny", seconds=9, vfms=6, rate=20, word="is")
        outcome = poison(plan, progress, {})
    found = figures(outcome)
    assert not outcome.details["failures"]
    assert found["the offender is named and in quarantine"]
    assert found["the offender is served again once its files were written"] < 30
    assert any("quarantined" in how for how in outcome.details["poisoned"]), outcome.details
    assert 3 <= found["engines that died"] <= 8


def test_light_vfms_are_served_beside_ten_times_too_much(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WARM_UP", 0.3)
    # A second in which other tests have the cores is 150 rows of a light vFM on a backbone as small as this.
    monkeypatch.setattr(module, "QUEUE", 1024)
    with Progress(disable=True) as progress:
        plan = OverloadPlan(source=source, fm="tiny", seconds=2, least=0.5, vfms=4, rows=64)
        outcome = overload(plan, progress, {})
    found = figures(outcome)
    assert outcome.details["refused"] > 0
    assert not outcome.details["failures"]
    assert found["requests of flooders that ended otherwise"] == 0
    assert [figure.value for figure in outcome.figures if figure.name.endswith("requests, failed")] == [0]
    print(outcome.details["rows_per_s"])


def test_everybody_tries_everything(source: Path) -> None:
    with Progress(disable=True) as progress:
        outcome = access(FleetBase(source=source, fm="tiny"), progress, {})
    tried = outcome.details["tried"]
    assert [one for one in tried if not one["right"]] == []
    assert {one["way"] for one in tried if one["error"] is None} == {"gRPC", "HTTP"}
    assert len(tried) > 50
    table = as_markdown(outcome)
    assert "answers only to its tokens" in table
    assert "the key is not the certificate's" in table
    print(table)


def test_everything_at_once(source: Path, tmp_path: Path) -> None:
    plan = SoakPlan(
        source=source, fm="tiny", seconds=6, vfms=6, versions=2, texts=4, clients=4, word="is", sample_every=0.5,
        kill_every=(0.5, 1), flood_every=(1, 2), poison_every=(2, 3), malformed_every=(0.2, 0.5),
    )  # fmt: skip
    with Progress(disable=True) as progress:
        outcome = soak(plan, progress, {})
    details = outcome.details
    assert not details["wrong"]
    assert not details["others"]
    assert details["rows"] > 100, "too few answers prove nothing"
    assert details["recoveries"]
    assert details["counts"].keys() >= {
        "floods", "malformed requests, told so", "rows that end engines: quarantined, released, served again"
    }  # fmt: skip
    assert draw(outcome, tmp_path).stat().st_size > 0
    print(details["counts"], details["recoveries"], details["allowed"])
