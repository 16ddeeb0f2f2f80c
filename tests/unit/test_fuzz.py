"""The fuzz targets, each on its good inputs and on some hundred damaged ones; atheris runs them for longer."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest
from fuzz import artifact, config, engine, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TARGETS = pytest.mark.parametrize("target", [config, artifact, request, engine], ids=lambda target: target.__name__)


@TARGETS
def test_good_inputs(target: ModuleType, tmp_path: Path) -> None:
    for seed in target.seeds():
        target.check(seed, tmp_path)


@TARGETS
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 7), number=st.integers(0, 2**32), rounds=st.integers(1, 4))
def test_damaged_inputs(target: ModuleType, tmp_path: Path, which: int, number: int, rounds: int) -> None:
    chance, seeds = random.Random(number), target.seeds()
    data = seeds[which % len(seeds)]
    for _ in range(rounds):
        data = target.damage(data, chance)
    target.check(data, tmp_path)
