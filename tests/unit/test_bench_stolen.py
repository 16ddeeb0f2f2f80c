"""What was disturbed is measured again."""

from __future__ import annotations

import pytest

from fmplex_tools.bench import stolen


@pytest.mark.parametrize(
    ("parts", "best"), [((0.05, 0.0), (0.05, 0)), ((0.5, 0.1), (0.1, 1)), ((0.5, 0.3, 0.4, 0.0), (0.3, 1))]
)
def test_measured_again(monkeypatch: pytest.MonkeyPatch, parts: tuple[float, ...], best: tuple[float, int]) -> None:
    told, count = iter(parts), iter(range(10))
    monkeypatch.setattr(stolen.Stolen, "part", lambda self: next(told))
    found = stolen.undisturbed(lambda: next(count))
    assert found[0] == best
    assert len(found) == min(stolen.ATTEMPTS, next(i for i, p in enumerate(parts, 1) if p <= stolen.STOLEN or i == 3))


def test_the_part_is_one() -> None:
    assert 0 <= stolen.Stolen().part() <= 1
