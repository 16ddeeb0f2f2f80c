"""Engines that die under load in every way, and a vFM whose rows kill them: on the real server, answers checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress
from support.tiny import make_fm_repository

from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.bench.faults.kills import KINDS, KillsPlan, kills
from fmplex_tools.bench.faults.poison import PoisonPlan, poison

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
