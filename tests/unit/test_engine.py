"""The engine against plain transformers + peft, on a tiny backbone: any mix of vFMs in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.bench import TEXTS, Bench, by_row
from support.facts import backbone_of
from support.recipes import RECIPES, Recipe, artifact_of, write_version

from fmplex_backend.adapters.bank import Stamp
from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.engine import serving
from fmplex_backend.engine import worker as worker_module
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import LoadGeneration, RunBatch


@pytest.fixture(scope="module")
def bench(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    backbone = backbone_of(tiny_backbone)
    encoder = TextEncoder(backbone.facts)
    bench = Bench(Worker(backbone, "cpu", 64), encoder, tmp_path_factory.mktemp("vfms"), tiny_backbone)
    for number, (name, recipe) in enumerate(RECIPES.items(), start=1):
        assert bench.load(number, name, recipe) is None
    yield bench
    for number in range(1, len(RECIPES) + 1):
        bench.worker.drop(number)


def test_every_recipe_in_one_batch(bench: Bench) -> None:
    names = [name for name in RECIPES for _ in range(2)]
    indices = [i % len(TEXTS) for i in range(len(names))]
    order = np.random.default_rng(0).permutation(len(names))
    names, indices = [names[i] for i in order], [indices[i] for i in order]
    numbers = {name: number for number, name in enumerate(RECIPES, start=1)}
    rows = [bench.rows(name, [i])[0].tokens for name, i in zip(names, indices, strict=True)]
    done = bench.worker.run(RunBatch(7, [numbers[n] for n in names], rows))
    assert done.batch == 7
    assert sorted(place for group in done.groups for place in group.rows) == list(range(len(names)))
    assert not any(group.errors for group in done.groups)
    for place, answer in by_row(done).items():
        wanted = bench.reference(names[place], indices[place])
        np.testing.assert_allclose(answer, wanted, atol=1e-5, rtol=1e-5, err_msg=names[place])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_alone_equals_mixed(bench: Bench, name: str) -> None:
    number = list(RECIPES).index(name) + 1
    (row,) = bench.rows(name, [1])
    answer = by_row(bench.worker.run(RunBatch(1, [number], [row.tokens])))[0]
    np.testing.assert_allclose(answer, bench.reference(name, 1), atol=1e-5, rtol=1e-5)


def test_a_head_that_fails_takes_only_its_own_rows(bench: Bench) -> None:
    class Failing:
        def __call__(self, *_: object) -> torch.Tensor:
            raise RuntimeError("no")

    worker, rows = bench.worker, bench.rows("bare_two", [0])
    good = worker._generations[1]
    worker._generations[99] = replace(good, stamp=Stamp(99, "failing", 1), projection=Failing())
    try:
        done = worker.run(RunBatch(1, [1, 99, 1], [rows[0].tokens] * 3))
    finally:
        del worker._generations[99]
    errors = {place: error for group in done.groups for place, error in group.errors.items()}
    assert set(errors) == {1}
    assert "vFM 'failing': its head failed: RuntimeError: no" in errors[1]
    answers = {p: g.columns["vector"][i] for g in done.groups if not g.errors for i, p in enumerate(g.rows)}
    np.testing.assert_allclose(answers[0], answers[2], atol=1e-5)
    np.testing.assert_allclose(answers[0], bench.reference("bare_two", 0), atol=1e-5)


def test_an_answer_that_is_not_finite_is_an_error_for_its_row(bench: Bench, tiny_backbone: Path) -> None:
    recipe = Recipe(outputs=2)
    assert bench.load(50, "huge", recipe) is None
    heads = bench.worker._answering._bank
    section, entry = heads._entries[50]
    heads._stacks[section][0][entry].mul_(float("inf"))
    row = bench.rows("bare_two", [0])[0].tokens
    done = bench.worker.run(RunBatch(1, [50, 1], [row, row]))
    bench.worker.drop(50)
    assert {p: e for g in done.groups for p, e in g.errors.items()} == {0: "vFM 'huge': its answer is not finite"}


def test_what_cannot_be_loaded_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    before = dict(bench.worker._generations)
    missing = bench.worker.load(LoadGeneration(70, "missing", 1, str(tmp_path / "none.safetensors")))
    assert "it cannot be loaded" in str(missing.error)
    assert bench.worker._generations == before


def test_more_adapters_than_slots(bench: Bench, tmp_path: Path) -> None:
    """They take turns in the slots, and are read from disk again where memory is short; a batch that asks for more
    than there are is run in parts."""
    small = Worker(bench.worker.backbone, "cpu", 2, memory=1)
    other = Bench(small, bench.encoder, tmp_path, bench.backbone)
    names = [name for name, recipe in RECIPES.items() if artifact_of(recipe, bench.backbone).adapter]
    numbers = {name: number for number, name in enumerate(RECIPES, start=1) if name in names}
    for name, number in numbers.items():
        assert other.load(number, name, RECIPES[name]) is None
    assert len(small._tiers._in_memory) == 1
    rng = np.random.default_rng(0)
    for batch in [[name] for name in names] + [list(rng.permutation(names)[:2]) for _ in range(10)] + [names]:
        rows = [bench.rows(name, [1])[0].tokens for name in batch]
        done = small.run(RunBatch(1, [numbers[name] for name in batch], rows))
        assert not any(group.errors for group in done.groups)
        for place, answer in by_row(done).items():
            np.testing.assert_allclose(answer, other.reference(batch[place], 1), atol=1e-5, rtol=1e-5)
    assert small._bank.free == 0
    small.close()


def test_pinned_adapters_keep_their_slots(bench: Bench, tmp_path: Path) -> None:
    small = Worker(bench.worker.backbone, "cpu", 2)
    other = Bench(small, bench.encoder, tmp_path, bench.backbone)
    for number in range(1, 5):
        assert other.load(number, f"v{number}", RECIPES["lora_qv_4"]) is None
    row = bench.rows("lora_qv_4", [0])[0].tokens
    assert small.pin(1, True) is None
    assert "1 adapters are pinned, half of" in str(small.pin(2, True))
    moved = [small.run(RunBatch(1, [number], [row])) for number in (2, 3, 4, 1, 2)]
    assert [(done.installed, done.evicted) for done in moved] == [
        ([2], []),
        ([3], [2]),
        ([4], [3]),
        ([], []),
        ([2], [4]),
    ]
    assert small.pin(1, False) is None
    assert small.run(RunBatch(1, [3], [row])).evicted == [1]
    small.close()


def test_a_row_is_never_run_in_a_slot_that_is_not_its_own(bench: Bench, tmp_path: Path) -> None:
    small = Worker(bench.worker.backbone, "cpu", 4)
    other = Bench(small, bench.encoder, tmp_path, bench.backbone)
    for number in (1, 2):
        assert other.load(number, f"v{number}", RECIPES["lora_qv_4"]) is None
    row = bench.rows("lora_qv_4", [0])[0].tokens
    assert not small.run(RunBatch(1, [1, 2], [row, row])).groups[0].errors
    small._bank._stamps[small._bank._slots[1]] = small._generations[2].stamp
    done = small.run(RunBatch(1, [1, 2], [row, row]))
    assert {place: "it was not run" in error for g in done.groups for place, error in g.errors.items()} == {0: True}
    assert [g.generation for g in done.groups if not g.errors] == [2]
    small.close()


def test_twins_run_the_backbone_once(bench: Bench) -> None:
    """Same tokens, same adapter or none: one physical row, answered by each vFM's own head."""
    numbers = {name: number for number, name in enumerate(RECIPES, start=1)}
    names = ["bare_two", "bare_cls", "embed", "lora_qv_4", "bare_last", "lora_qv_4", "lora_rslora", "bare_two"]
    row = bench.rows("bare_two", [1])[0].tokens
    message = RunBatch(1, [numbers[name] for name in names], [row] * len(names))
    prepared = bench.worker.prepare(message)
    assert len(prepared.parts[0].inputs["input_ids"]) == 3, "bare, and one for each adapter"
    for place, answer in by_row(bench.worker.run_prepared(prepared)).items():
        np.testing.assert_allclose(answer, bench.reference(names[place], 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_a_batch_that_does_not_fit_into_memory_is_run_in_parts(
    bench: Bench, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, ran, most = bench.worker._forward, [], 3

    def small(inputs: Any, generations: Any) -> Any:
        if len(generations) > most:
            raise error
        ran.append(len(generations))
        return forward(inputs, generations)

    monkeypatch.setattr(bench.worker, "_forward", small)
    names = [name for name in RECIPES if not RECIPES[name].encoder.get("pair")][:8]
    numbers = [list(RECIPES).index(name) + 1 for name in names]
    rows = [bench.rows(name, [place % len(TEXTS)])[0].tokens for place, name in enumerate(names)]
    done = bench.worker.run(RunBatch(1, [*numbers, 999], [*rows, rows[0]]))
    assert done.fitting == max(ran) <= most
    assert {p: e for g in done.groups for p, e in g.errors.items()} == {8: "generation 999 is not in this engine"}
    for place, answer in by_row(done).items():
        wanted = bench.reference(names[place], place % len(TEXTS))
        np.testing.assert_allclose(answer, wanted, atol=1e-5, rtol=1e-5, err_msg=names[place])

    most = 0
    done = bench.worker.run(RunBatch(2, numbers[:2], rows[:2]))
    errors = {p: e for g in done.groups for p, e in g.errors.items()}
    assert set(errors) == {0, 1}
    assert all("does not fit into the device's memory" in told for told in errors.values())


def test_a_fault_that_an_engine_cannot_go_on_after_ends_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(bench.worker, "_forward", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        bench.worker.run(RunBatch(1, [1], [bench.rows("bare_two", [0])[0].tokens]))


def test_a_device_fault_is_no_heads_and_no_adapters_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    batch = RunBatch(1, [list(RECIPES).index("lora_qv_4") + 1], [bench.rows("lora_qv_4", [0])[0].tokens])
    for owner, name in ((bench.worker._answering, "_run"), (bench.worker._tiers, "_install")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(RuntimeError, match="illegal memory access"):
                bench.worker.run(batch)
    assert not any(group.errors for group in bench.worker.run(batch).groups)


def test_a_device_fault_while_a_generation_is_read_ends_the_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker_module, "prepare", broken)
    steps: SimpleQueue[Any] = SimpleQueue()
    serving._read(bench.worker, LoadGeneration(77, "x", 1, "nowhere"), steps)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        steps.get(timeout=1)()


def test_imported_head_must_be_the_classs_own(bench: Bench, tmp_path: Path) -> None:
    other = Bench(bench.worker, bench.encoder, tmp_path, bench.backbone)
    key = "base_model.model.classifier.weight"
    for number, change, says in (
        (60, lambda t: {k: v for k, v in t.items() if k != key}, "lacks 'classifier.weight'"),
        (61, lambda t: t | {"base_model.model.extra.weight": np.zeros(2, np.float32)}, "has 'extra.weight'"),
        (62, lambda t: t | {key: np.zeros((2, 32), np.float32)}, "'classifier.weight' has shape [2, 32]"),
    ):
        name = f"import{number}"
        write_version(tmp_path / name / "1", RECIPES["imported_sequence"], bench.backbone)
        path = tmp_path / name / "1/adapter/adapter_model.safetensors"
        save_file(change(load_file(path)), path)
        assert says in str(other.load(number, name, RECIPES["imported_sequence"]))
