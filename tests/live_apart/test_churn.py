"""Every answer is right while vFMs and versions come and go, slots change hands and clients give up: in short.

`fmplex bench engine churn` is the same at length.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.progress import Progress

from fmplex_tools.bench.engine.churn import ChurnPlan, churn

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
PLAN = ChurnPlan(
    source=ROOT / "model_repository", vfms=8, versions=2, texts=5, clients=8, slots=4, seconds=10, memory_mb=1
)


def test_no_answer_from_a_wrong_version_or_vfm(minilm_backbone: Path) -> None:
    with Progress(disable=True) as progress:
        outcome = churn(PLAN, progress, {})
    missed = [(figure.name, figure.value) for figure in outcome.figures if figure.good is False]
    details = outcome.details
    assert not missed, details["wrong"]
    assert details["rows"] > 100, "too few answers prove nothing"
    assert details["changes"].keys() >= {"publish", "roll back", "remove", "put back"}, details["changes"]
    print(f"\n{details['rows']} rows right while {details['changes']}; unanswered: {details['allowed']}")
