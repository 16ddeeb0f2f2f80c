"""The cost model's fit: exact, kept, measured on a real engine, and made anew where the device has changed."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.facts import backbone_of
from support.fake_engine import FakeEngine, dies_on
from support.small import make_clip, make_fracast, make_llava, make_patchtst, make_vision, make_whisper
from test_dispatcher import Host

from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.calibration.fit import LEAST_ALPHA, Fit, common_scale, error_of, fit
from fmplex_backend.calibration.kept import MEASURE_SECONDS, Key, obtain
from fmplex_backend.calibration.learner import PATIENCE, REST, WINDOW, Learner
from fmplex_backend.engine import measuring
from fmplex_backend.engine.measuring import Shape, device_facts, grid, measure, sample
from fmplex_backend.engine.worker import Worker
from fmplex_backend.host.engine_process import EngineDied
from fmplex_backend.host.lane import MAX_DEATHS, Command
from fmplex_backend.messages import DeviceFacts, Measure, Measured, Point
from fmplex_backend.scheduling.base import CLIP, K_GAIN
from fmplex_backend.scheduling.cost import CostModel

LENGTHS = (8, 32, 128, 512)
SHAPES = [(s.rows, s.length, max(1, s.adapters)) for s in grid(64, LENGTHS)]
MINILM = CostModel(alpha=11e-3, beta=1.6e-4, gamma=3e-4, delta=1e-7)


def seconds(cost: CostModel, rows: int, length: int, vfms: int) -> float:
    return cost.batch([length] * rows, vfms)


def points_of(cost: CostModel, shapes: list[tuple[int, int, int]], noise: float = 0.0, seed: int = 0) -> list[Point]:
    rng = random.Random(seed)
    return [Point(*shape, seconds(cost, *shape) * math.exp(rng.gauss(0, noise))) for shape in shapes]


# ---- the fit ----

coefficients = st.builds(
    CostModel,
    alpha=st.floats(1e-5, 1.0),
    beta=st.one_of(st.just(0.0), st.floats(1e-8, 1e-3)),
    gamma=st.one_of(st.just(0.0), st.floats(1e-6, 1e-2)),
    delta=st.one_of(st.just(0.0), st.floats(1e-10, 1e-5)),
)
some_points = st.lists(
    st.builds(
        Point,
        rows=st.integers(1, 64),
        length=st.integers(1, 512),
        vfms=st.integers(1, 16),
        seconds=st.floats(1e-4, 10.0),
    ),
    min_size=1,
    max_size=12,
)


@given(coefficients)
def test_a_noiseless_grid_is_fitted_exactly(cost: CostModel) -> None:
    points = points_of(cost, SHAPES)
    found = fit(points)
    least = LEAST_ALPHA * min(p.seconds for p in points)
    if cost.alpha < least:
        assert found.error < LEAST_ALPHA
        assert found.cost.alpha == pytest.approx(least)
    else:
        assert found.error < 1e-6
        assert found.cost.alpha == pytest.approx(cost.alpha, rel=1e-3)


def test_coefficients_are_recovered() -> None:
    found = fit(points_of(MINILM, SHAPES)).cost
    for name in ("alpha", "beta", "gamma", "delta"):
        assert getattr(found, name) == pytest.approx(getattr(MINILM, name), rel=1e-6), name


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_coefficients_little(seed: int) -> None:
    found = fit(points_of(MINILM, SHAPES, noise=0.1, seed=seed))
    assert 0.03 < found.error < 0.15
    assert error_of(found.cost, points_of(MINILM, SHAPES)) < 0.12


def loss(cost: CostModel, points: list[Point]) -> float:
    return sum((seconds(cost, p.rows, p.length, p.vfms) / p.seconds - 1) ** 2 for p in points)


@given(some_points, st.data())
@settings(max_examples=200)
def test_no_subset_of_terms_and_no_other_coefficients_fit_better(points: list[Point], data: st.DataObject) -> None:
    found = fit(points)
    assert found.cost.alpha > 0
    least = LEAST_ALPHA * min(p.seconds for p in points)
    ours = loss(found.cost, points)
    measured = np.array([p.seconds for p in points])
    terms = np.array([(1, p.rows * p.length, p.vfms, p.rows * p.length**2) for p in points]) / measured[:, None]
    for size, in_use in itertools.product(range(1, 5), [range(4)]):
        for columns in itertools.combinations(in_use, size):
            solution = np.zeros(4)
            solution[list(columns)] = np.linalg.lstsq(terms[:, columns], np.ones(len(points)), rcond=None)[0]
            if solution.min() >= 0 and solution[0] >= least:
                assert ours <= float(((terms @ solution - 1) ** 2).sum()) + 1e-6
    factors = [data.draw(st.floats(0.5, 2.0)) for _ in range(4)]
    cost = found.cost
    other = CostModel(
        max(least, cost.alpha * factors[0]), cost.beta * factors[1], cost.gamma * factors[2], cost.delta * factors[3]
    )
    assert ours <= loss(other, points) + 1e-6


@given(st.tuples(st.integers(1, 64), st.integers(1, 512), st.integers(1, 64)), st.integers(1, 20))
def test_one_shape_is_fitted_and_divided(shape: tuple[int, int, int], count: int) -> None:
    found = fit([Point(*shape, 0.02)] * count)
    assert found.error < 1e-6
    cost = found.cost
    assert min(cost.alpha, cost.beta, cost.gamma, cost.delta) > 0
    assert cost.alpha < 0.02


def test_a_device_without_a_launch_cost_still_gets_a_positive_alpha() -> None:
    points = [Point(n, 32, 1, n * 1e-3) for n in (1, 4, 16, 64)]
    assert fit(points).cost.alpha >= LEAST_ALPHA * 1e-3


def test_weights_decide_between_points_that_disagree() -> None:
    points = [Point(1, 8, 1, 0.01), Point(1, 8, 1, 0.02)]
    for weights, wanted in (([1.0, 1e-6], 0.01), ([1e-6, 1.0], 0.02)):
        assert seconds(fit(points, np.array(weights)).cost, 1, 8, 1) == pytest.approx(wanted, rel=1e-3)


# ---- what is kept ----

DEVICE = DeviceFacts("Some CPU @ 2.0GHz", 2, "torch 1")
KEY = Key.of("sha256:" + "ab" * 32, DEVICE, "fp32", 64)


class Bench:
    """Something that measures, and counts how often it does so in full. A check finds the device as it is now."""

    def __init__(self, noise: float = 0.02) -> None:
        self.calls, self.checks, self.noise = 0, 0, noise
        self.device = MINILM
        self.log: list[str] = []

    def __call__(self, seconds: float) -> Measured:
        if seconds < MEASURE_SECONDS:
            self.checks += 1
            return Measured(points_of(self.device, SHAPES[:4], 0.0), seconds)
        self.calls += 1
        return Measured(points_of(self.device, SHAPES, self.noise, seed=self.calls), 3.9)

    def obtain(self, folder: Path, key: Key = KEY) -> Fit:
        return obtain(folder, key, self, self.log.append)


def test_what_was_measured_once_is_kept(tmp_path: Path) -> None:
    bench = Bench()
    folder = tmp_path / "not" / "there"
    first = bench.obtain(folder)
    assert bench.obtain(folder) == first
    assert bench.calls == 1
    (file,) = folder.iterdir()
    assert file.name.startswith("abababababab-Some-CPU-2-0GHz-fp32-")
    fresh, kept = bench.log
    prefix = "cost model of sha256:abababababab…/Some CPU @ 2.0GHz/fp32/2 threads: α "
    assert fresh.startswith(prefix)
    assert kept.startswith(prefix)
    assert f"over {len(SHAPES)} points (measured in 3.9 s, kept in {file})" in fresh
    assert f"(kept in {file}; delete it to measure anew)" in kept
    file.unlink()
    bench.obtain(folder)
    assert bench.calls == 2


def test_a_fit_from_a_busy_machine_is_found_out(tmp_path: Path) -> None:
    """Cores that are taken slow down what runs on all of them, not the launch: k cannot make that good."""
    bench = Bench(noise=0.0)
    bench.device = CostModel(2 * MINILM.alpha, 4 * MINILM.beta, MINILM.gamma, MINILM.delta)
    busy = bench.obtain(tmp_path)
    bench.device = MINILM
    quiet = bench.obtain(tmp_path)
    assert quiet.cost.beta == pytest.approx(MINILM.beta, rel=0.05)
    assert busy.cost.beta == pytest.approx(4 * MINILM.beta, rel=0.05)
    assert "the device was busy when it was measured" in bench.log[1]
    bench.device = CostModel(3 * MINILM.alpha, 3 * MINILM.beta, MINILM.gamma, MINILM.delta)
    assert bench.obtain(tmp_path) == quiet, "busy now: what was kept is nearer the truth"
    assert (bench.calls, bench.checks) == (2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "sha256:" + "cd" * 32},
        {"device": "Other"},
        {"dtype": "bf16"},
        {"threads": 3},
        {"software": "torch 2"},
        {"max_rows": 32},
    ],
)
def test_each_part_of_the_key_counts(tmp_path: Path, change: dict[str, object]) -> None:
    bench = Bench()
    bench.obtain(tmp_path)
    bench.obtain(tmp_path, KEY.model_copy(update=change))
    assert bench.calls == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: "", "errors in it"),
        (lambda text: text[: len(text) // 2], "errors in it"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "errors in it"),
        (lambda text: text.replace('"alpha": ', '"alpha": -'), "errors in it"),
        (lambda text: text.replace('"beta": ', '"beta": "NaN", "x": '), "errors in it"),
        (lambda text: text.replace('"fp32"', '"bf16"'), "another device's or backbone's"),
        (lambda text: "\udcff", ""),
    ],
)
def test_a_broken_or_foreign_file_is_measured_anew(tmp_path: Path, spoil: Callable[[str], str], says: str) -> None:
    bench = Bench()
    bench.obtain(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(spoil(file.read_text()), errors="surrogateescape")
    bench.obtain(tmp_path)
    assert bench.calls == 2
    assert f"{file} cannot be used (" in bench.log[1]
    assert says in bench.log[1]
    bench.obtain(tmp_path)
    assert bench.calls == 2, "the new one is good"


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bench = Bench()
    assert bench.obtain(tmp_path / "file").error < 0.1
    assert "cannot be kept" in bench.log[-1]


def test_a_bad_fit_is_not_kept(tmp_path: Path) -> None:
    bench = Bench(noise=1.5)
    bench.obtain(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "not kept" in bench.log[-1]


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    Bench().obtain(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- in service ----


class Device:
    """Batches of random shapes as the queue sees them: predicted by a cost model and k, measured by the truth."""

    def __init__(self, learner: Learner, cost: CostModel, shapes: list[tuple[int, int, int]], seed: int = 0) -> None:
        self.learner, self.cost, self.shapes = learner, cost, shapes
        self.k = 1.0
        self.rng = random.Random(seed)
        self.fits: list[Fit] = []
        self.after: list[float] = []
        """The error of every prediction."""

    def run(self, truth: CostModel, batches: int, speed: Callable[[int], float] = lambda _: 1.0, noise: float = 0.0):  # type: ignore[no-untyped-def]
        """Run so many batches; ``speed(i)`` is the device's k."""
        self.after = []
        for i in range(batches):
            shape = self.rng.choice(self.shapes)
            took = seconds(truth, *shape) * speed(i) * math.exp(self.rng.gauss(0, noise))
            predicted = self.k * seconds(self.cost, *shape)
            self.after.append(abs(predicted / took - 1))
            self.k *= min(CLIP, max(1 / CLIP, took / predicted)) ** K_GAIN
            if (fresh := self.learner.add(Point(*shape, took), predicted)) is not None:
                self.fits.append(fresh)
                self.cost, self.k = fresh.cost, 1.0
        return self


TRAFFIC = [(1, 8, 1), (1, 40, 1), (4, 16, 2), (16, 16, 5), (32, 12, 9), (16, 64, 8)]


@pytest.fixture
def grid_fit() -> Fit:
    return fit(points_of(MINILM, SHAPES, noise=0.03))


def device(grid_fit: Fit, shapes: list[tuple[int, int, int]] = TRAFFIC, seed: int = 0) -> Device:
    return Device(Learner(grid_fit), grid_fit.cost, shapes, seed)


def test_no_new_fit_while_predictions_are_good(grid_fit: Fit) -> None:
    on = device(grid_fit).run(MINILM, 3000, noise=0.1)
    assert on.fits == []
    assert 0.03 < on.learner.error < 0.15


@pytest.mark.parametrize("seed", range(4))
def test_a_change_of_shape_is_learned(grid_fit: Fit, seed: int) -> None:
    slower = replace(MINILM, beta=4 * MINILM.beta)  # another process takes the cache: work is slower, launching is not
    on = device(grid_fit, seed=seed).run(MINILM, 200, noise=0.05)
    on.run(slower, 1000, noise=0.05)
    assert len(on.fits) == 1
    assert on.fits[0].error < 0.12
    assert on.cost.beta * on.k == pytest.approx(slower.beta, rel=0.15)
    assert on.cost.alpha * on.k == pytest.approx(slower.alpha, rel=0.25)
    assert np.mean(on.after[500:]) < 0.1
    assert on.learner.error < 0.1


def test_doubled_work_is_learned_where_launch_and_work_alternate(grid_fit: Fit) -> None:
    slower = replace(MINILM, beta=2.5 * MINILM.beta)
    on = device(grid_fit, [(1, 8, 1), (64, 32, 4)]).run(slower, 600, noise=0.05)
    assert len(on.fits) == 1
    for shape in [(1, 8, 1), (64, 32, 4)]:
        assert on.k * seconds(on.cost, *shape) == pytest.approx(seconds(slower, *shape), rel=0.1)
    others = [(4, 64, 1), (16, 16, 16), (1, 256, 1)]
    for shape in others:  # never seen: the grid decides, and nothing becomes absurd
        assert 0.5 < on.k * seconds(on.cost, *shape) / seconds(slower, *shape) < 2.0


@pytest.mark.parametrize("factor", [0.03, 0.3, 3.0, 10.0, 100.0])
def test_a_mere_change_of_speed_is_left_to_k(grid_fit: Fit, factor: float) -> None:
    on = device(grid_fit).run(MINILM, 100).run(MINILM, 3000, lambda _: factor, noise=0.05)
    assert on.fits == []
    assert np.mean(on.after[-500:]) < 0.1


def test_a_speed_that_wanders_is_left_to_k(grid_fit: Fit) -> None:
    on = device(grid_fit).run(MINILM, 4000, lambda i: math.exp(math.sin(i / 150)), noise=0.1)
    assert on.fits == []


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_learned(grid_fit: Fit, seed: int) -> None:
    on = device(grid_fit, seed=seed).run(MINILM, 6000, noise=0.6)
    assert on.learner.error > 0.2
    assert on.fits == []


def test_hiccups_are_not_learned(grid_fit: Fit) -> None:
    on = device(grid_fit).run(MINILM, 3000, lambda i: 20.0 if i % 7 == 0 else 1.0, noise=0.05)
    assert on.fits == []


def test_one_shape_never_leads_to_a_new_fit(grid_fit: Fit) -> None:
    on = device(grid_fit, [(4, 16, 2)]).run(replace(MINILM, beta=10 * MINILM.beta), 3000, noise=0.1)
    assert on.fits == []


def test_a_grid_that_is_all_wrong_does_not_hold_the_fit_back() -> None:
    """Small measured times weigh much in relative terms; here the grid says 4 to 1 where the device says 1 to 1."""
    shapes = [(1, 3, 1), (4, 3, 1)]
    wrong = CostModel(alpha=1e-4, beta=1e-2)
    on = device(Fit(wrong, 0.05, tuple(points_of(wrong, shapes))), shapes).run(CostModel(1e-3, 0.0), 500, noise=0.02)
    assert len(on.fits) == 1
    assert on.fits[0].error < 0.05
    assert np.mean(on.after[200:]) < 0.06


def test_a_device_that_could_not_be_measured_is_learned_in_service() -> None:
    guess = Fit(CostModel(alpha=1e-3, beta=1e-3), 0.0, ())
    on = device(guess).run(MINILM, 1000, noise=0.05)
    assert len(on.fits) == 1
    assert np.mean(on.after[500:]) < 0.1


def test_it_rests_between_attempts(grid_fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []
    batches = itertools.count()
    add, refit = Learner.add, Learner._refit
    now = 0

    def counted(self: Learner, batch: Point, predicted: float) -> Fit | None:
        nonlocal now
        now = next(batches)
        return add(self, batch, predicted)

    def noted(self: Learner, window: list[Point]) -> Fit | None:
        attempts.append(now)
        assert len(window) <= WINDOW
        return refit(self, window)

    monkeypatch.setattr(Learner, "add", counted)
    monkeypatch.setattr(Learner, "_refit", noted)
    device(grid_fit).run(MINILM, 4000, noise=0.8)
    assert attempts[0] >= PATIENCE - 1
    assert len(attempts) > 3
    assert all(later - earlier >= REST for earlier, later in itertools.pairwise(attempts))


def test_a_batch_without_a_time_is_not_counted(grid_fit: Fit) -> None:
    learner = Learner(grid_fit)
    before = learner.error
    assert learner.add(Point(1, 8, 1, 0.0), 0.01) is None
    assert learner.error == before


def test_common_scale() -> None:
    points = [replace(point, seconds=3 * point.seconds) for point in points_of(MINILM, SHAPES)]
    assert common_scale(MINILM, points) == pytest.approx(3.0)
    assert error_of(MINILM, points, 3.0) == pytest.approx(0.0, abs=1e-9)


# ---- measuring ----


def test_the_grid_stays_within_the_limits() -> None:
    shapes = grid(64, LENGTHS)
    assert {s.rows for s in shapes if not s.adapters} == {1, 4, 16, 64}
    assert {s.length for s in shapes} == {8, 32, 128, 512}
    assert {s.adapters for s in shapes} == {0, 1, 4, 16}
    assert shapes == sorted(shapes, key=lambda s: s.tokens)
    for max_rows, max_length in itertools.product((1, 2, 5, 48, 4096), (1, 20, 100)):
        shapes = grid(max_rows, sorted({min(length, max_length) for length in LENGTHS}))
        assert len(set(shapes)) == len(shapes)
        assert all(s.rows <= max_rows and s.length <= max_length and s.tokens == s.rows * s.length for s in shapes)
        assert max(s.rows for s in shapes) == max_rows
        assert all(len(set(s.generations)) == max(1, s.adapters) for s in shapes)


def timed(took: Callable[[Shape, int], float], budget: float) -> tuple[dict[Shape, list[float]], list[Shape]]:
    order: list[Shape] = []

    def run(shape: Shape) -> float:
        order.append(shape)
        return took(shape, len(order))

    return sample(run, grid(64, LENGTHS), budget), order


def test_a_fast_device_measures_every_shape_several_times() -> None:
    times, order = timed(lambda shape, _: 1e-3 + 1e-7 * shape.tokens, 4.0)
    assert {len(runs) for runs in times.values()} == {measuring.REPEATS}
    assert set(times) == set(grid(64, LENGTHS))
    back_to_back = sum(a == b for a, b in itertools.pairwise(order))
    assert back_to_back < len(order) / 10


def test_a_slow_device_leaves_out_what_would_take_too_long() -> None:
    times, _ = timed(lambda shape, _: seconds(MINILM, shape.rows, shape.length, 1), 4.0)
    assert sum(sum(runs) for runs in times.values()) <= 4.0
    assert all(runs[0] <= 0.5 for runs in times.values())
    assert len(times) > 20
    assert sum(len(runs) >= 3 for runs in times.values()) > 15


def test_a_very_slow_device_measures_something() -> None:
    times, order = timed(lambda shape, _: 3.0 + shape.tokens, 4.0)
    assert len(order) == 1
    assert [len(runs) for runs in times.values()] == [1]


def test_what_does_not_fit_the_device_is_left_out() -> None:
    times, _ = timed(lambda shape, _: 1e-3 if shape.tokens < 1000 else math.inf, 4.0)
    assert max(s.tokens for s in times) == 512
    assert all(math.isfinite(sum(runs)) for runs in times.values())


def test_measuring_leaves_nothing_in_the_engine(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers: list[weakref.ref[Worker]] = []

    class Watched(Worker):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            workers.append(weakref.ref(self._bank))  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "Worker", Watched)
    backbone = backbone_of(tiny_backbone)
    hooks = [len(module._forward_hooks) for module in backbone.model.modules()]
    measured = measure(backbone, "cpu", Measure(64, 3))
    assert [len(module._forward_hooks) for module in backbone.model.modules()] == hooks
    assert [bank() for bank in workers] == [None]
    assert {p.vfms for p in measured.points} == {1, 4, 16}
    assert all(p.seconds > 0 for p in measured.points)
    assert fit(measured.points).cost.alpha > 1e-5


FAMILIES = {
    "dinov2": lambda folder: make_vision(folder, "dinov2"),
    "whisper": make_whisper,
    "patchtst": make_patchtst,
    "fracast": make_fracast,
    "clip": make_clip,
    "llava": make_llava,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_measured(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(str(FAMILIES[family](tmp_path / family)), "fp32", "cpu")
    measured = measure(backbone, "cpu", Measure(8, 1.0))
    assert {point.rows for point in measured.points} == {1, 4, 8}
    assert {point.vfms for point in measured.points} >= {1, 4}
    assert fit(measured.points).cost.alpha > 0


def test_every_measured_row_is_answered(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed are answers, not errors."""
    run = Worker.run
    groups = []

    def noted(self: Worker, message):  # type: ignore[no-untyped-def]
        done = run(self, message)
        groups.extend(done.groups)
        return done

    monkeypatch.setattr(Worker, "run", noted)
    measure(backbone_of(tiny_backbone), "cpu", Measure(4, 0.1))
    assert groups
    assert not any(group.errors for group in groups)


@pytest.mark.parametrize("pad", [0, 1, 2, 99])
def test_rows_that_are_measured_are_no_twins(pad: int, tiny_backbone: Path) -> None:
    backbone = copy.copy(backbone_of(tiny_backbone))
    backbone._own = replace(backbone._own, pad_token_id=pad)  # type: ignore[attr-defined]
    rows = [backbone.sample(row, 8)["input_ids"] for row in range(200)]
    assert len({row.tobytes() for row in rows}) == 200
    assert all(len(row) == 8 and pad not in row for row in rows)


def test_the_cpu_has_a_name() -> None:
    facts = device_facts("cpu")
    assert facts.name
    assert facts.threads >= 1
    assert facts.software.startswith("torch ")


# ---- the lane ----


def measured_by(host: Host) -> Command:
    command = Command(Measure(4, 1.0))
    with host.dispatcher._lock:
        host.dispatcher._lanes[0].commands.append(command)
        host.dispatcher._changed.notify_all()
    return command


def test_a_lane_has_its_engine_measure(tmp_path: Path) -> None:
    engine = FakeEngine()
    host = Host(tmp_path, [engine])
    host.dispatcher.start()
    try:
        assert measured_by(host).done.result(10).points == engine.points
        assert host.dispatcher._lanes[0].device == DeviceFacts("fake", 1, "none")
        engine.deaths = [dies_on(Measure)]
        assert measured_by(host).done.result(10).points == engine.points, "the next engine is asked"
        engine.deaths = [dies_on(Measure)] * MAX_DEATHS
        with pytest.raises(EngineDied):
            measured_by(host).done.result(10)
        assert (engine.measured, engine.starts) == (2, 2 + MAX_DEATHS)
    finally:
        host.dispatcher.stop()
