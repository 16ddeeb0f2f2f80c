"""The adapter bank: a mixed batch equals each adapter alone; bare rows are untouched; slots are stamped and zeroed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fmplex_backend.adapters.adapter import Adapter, Place, make_adapter
from fmplex_backend.adapters.bank import AdapterBank, Stamp, WrongSlot
from fmplex_backend.arrays import width_class
from fmplex_backend.engine.generation import TABLES, Tables

WIDTHS = {"up": (6, 10), "down": (10, 6)}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    layers = {name: nn.Linear(a, b) for name, (a, b) in WIDTHS.items()}
    model = nn.ModuleDict(layers)
    model.forward = lambda x: layers["down"](torch.tanh(layers["up"](x)))  # type: ignore[method-assign]
    return model.requires_grad_(False).eval()


def make_tables(
    rank: int, seed: int, layers: Sequence[str] = ("up", "down"), *, bias: bool = False, dora: bool = False
) -> Tables:
    """Of a LoRA; with ``dora`` its magnitudes, with ``bias`` a trained bias of the second layer."""
    generator = torch.Generator().manual_seed(seed)
    tables: Tables = {kind: {} for kind in TABLES}
    for n in layers if rank else ():
        tables["lora_A"][n] = torch.randn(rank, WIDTHS[n][0], generator=generator)
        tables["lora_B"][n] = torch.randn(WIDTHS[n][1], rank, generator=generator)
        if dora:
            tables["magnitude"][n] = torch.rand(WIDTHS[n][1], generator=generator) + 0.5
    if bias:
        tables["bias"]["down"] = torch.randn(6, generator=generator)
    return tables


def make_ia3(seed: int) -> Tables:
    """One that scales what comes out of the first layer and what goes into the second."""
    generator = torch.Generator().manual_seed(seed)
    tables = make_tables(0, seed)
    tables["out_scale"]["up"] = torch.randn(10, generator=generator)
    tables["in_scale"]["down"] = torch.randn(10, generator=generator)
    return tables


def alone(x: Tensor, tables: Tables | None) -> Tensor:
    """The definitions, in full matrices."""
    if tables is None:
        return make_model()(x)
    model = make_model()
    for name, module in model.items():
        if name in tables["lora_A"]:
            module.weight += tables["lora_B"][name] @ tables["lora_A"][name]
        if name in tables["magnitude"]:
            module.weight *= (tables["magnitude"][name] / module.weight.norm(dim=1))[:, None]
        if name in tables["bias"]:
            module.bias.copy_(tables["bias"][name])
        if name in tables["out_scale"]:
            module.weight *= tables["out_scale"][name][:, None]
            module.bias *= tables["out_scale"][name]
        if name in tables["in_scale"]:
            module.weight *= tables["in_scale"][name]
    return model(x)


def adapter(tables: Tables) -> Adapter:
    return make_adapter(tables, make_model(), torch.float32)


def stamp(number: int) -> Stamp:
    return Stamp(number, f"v{number}", 1)


def bank_of(model: nn.Module, tables: dict[int, Tables], slots: int = 32) -> AdapterBank:
    bank = AdapterBank(model, torch.float32, "cpu", slots)
    for number, own in tables.items():
        bank.put(stamp(number), adapter(own))
    return bank


ALL: dict[int, Tables] = {
    1: make_tables(3, 1),
    2: make_tables(4, 2, layers=("up",)),
    3: make_tables(9, 3, bias=True),
    4: make_tables(1, 4, layers=("down",)),
    5: make_tables(4, 5),
    6: make_tables(4, 6, dora=True),
    7: make_tables(2, 7, ("down",), dora=True, bias=True),
    8: make_ia3(8),
    9: make_tables(0, 9, bias=True),
    10: make_ia3(10),
}
_MODEL = make_model()
_BANK = bank_of(_MODEL, ALL)


@settings(max_examples=200)
@given(
    numbers=st.lists(st.none() | st.sampled_from(sorted(ALL)), min_size=1, max_size=12),
    tokens=st.none() | st.integers(1, 5),
    together=st.booleans(),
)
def test_any_mix_equals_each_alone(numbers: list[int | None], tokens: int | None, together: bool) -> None:
    if together:
        numbers = sorted(numbers, key=lambda number: number or 0)
    shape = (len(numbers), 6) if tokens is None else (len(numbers), tokens, 6)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(numbers)))
    with torch.inference_mode(), _BANK.batch(numbers):
        mixed = _MODEL(x)
    for row, number in enumerate(numbers):
        wanted = alone(x[row : row + 1], ALL[number] if number else None)[0]
        torch.testing.assert_close(mixed[row], wanted, atol=1e-4, rtol=1e-5)


def test_rows_without_adapter_are_untouched_bit_for_bit() -> None:
    x = torch.randn(8, 3, 6)
    with torch.inference_mode():
        bare = _MODEL(x)
        with _BANK.batch([None, 3, None, 1, None, 6, 8, None]):
            mixed = _MODEL(x)
    for row in (0, 2, 4, 7):
        assert torch.equal(mixed[row], bare[row])
    for row in (1, 3, 5, 6):
        assert not torch.allclose(mixed[row], bare[row])


@pytest.mark.parametrize("each", [1, 2, 3])
@pytest.mark.parametrize("bare", [0, 2])
def test_a_run_of_slots_is_not_gathered(each: int, bare: int) -> None:
    model = make_model()
    tables = {number: make_tables(4, number, dora=number % 2 == 0) for number in range(1, 8)}
    bank = bank_of(model, tables)
    numbers = [None] * bare + [number for number in range(2, 6) for _ in range(each)]
    x = torch.randn(len(numbers), 5, 6)
    with torch.inference_mode(), bank.batch(numbers):
        assert [work.run for work in bank._work["up"] if work.stack.place.role == "low_rank"] == [slice(2, 6)]
        mixed = model(x)
    for row, number in enumerate(numbers):
        wanted = alone(x[row], tables[number] if number else None)
        torch.testing.assert_close(mixed[row], wanted, atol=1e-5, rtol=1e-5)


def test_a_batch_of_one_adapter_has_it_merged_into_the_weights_for_once() -> None:
    model = make_model()
    before = [p.clone() for p in model.parameters()]
    bank = bank_of(model, {1: ALL[1], 2: ALL[2], 3: ALL[3]})
    for number in (1, 2, 3):
        for rows in (1, 40):
            x = torch.randn(rows, 3, 6)
            with torch.inference_mode(), bank.batch([number] * rows):
                got = model(x)
            torch.testing.assert_close(got, alone(x, ALL[number]), atol=1e-4, rtol=1e-5)
    with torch.inference_mode(), bank.batch([1] * 40):
        model["up"](torch.randn(40, 3, 6))
        assert bank._merged is None, "the hook has seen it"
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    bank.close()
    assert "forward" not in vars(model["up"]), "the layer is as it was"


def test_outside_a_batch_nothing_is_added() -> None:
    x = torch.randn(2, 6)
    with torch.inference_mode():
        bare = make_model()(x)
        with pytest.raises(RuntimeError, match="in the middle"), _BANK.batch([1, 8]):
            raise RuntimeError("in the middle of it")
        assert torch.equal(_MODEL(x), bare)


def test_a_batch_without_adapters_has_no_work() -> None:
    with _BANK.batch([None] * 3):
        assert not _BANK._work
        assert not _BANK._input_work
    with _BANK.batch([None, 4]):
        assert set(_BANK._work) == {"down"}, "a layer that no row touches has none either"


def test_a_given_up_slot_is_zeroed_everywhere() -> None:
    """The second adapter has a smaller rank in the same class: the rest of its entry must be zero."""
    model = make_model()
    bank = AdapterBank(model, torch.float32, "cpu", 4)
    big, small = make_tables(8, 1), make_tables(5, 2)
    bank.put(stamp(1), adapter(big))
    stack = bank._stacks[Place("up", "low_rank", 8)]
    entry = stack.table[bank._slots[1]]
    bank.drop(1)
    assert 1 not in bank
    assert not any(tensor[entry].any() for tensor in stack.tensors)
    assert not stack.table.any()
    bank.put(stamp(2), adapter(small))
    assert stack.table[bank._slots[2]] == entry
    x = torch.randn(2, 6)
    with torch.inference_mode(), bank.batch([2, 2]):
        torch.testing.assert_close(model(x), alone(x, small), atol=1e-5, rtol=1e-5)


def test_a_slot_answers_for_its_own_stamp_only() -> None:
    bank = bank_of(make_model(), {1: ALL[1]}, slots=2)
    bank.check(stamp(1))
    for wrong in (Stamp(1, "v1", 2), Stamp(1, "other", 1), Stamp(2, "v1", 1)):
        with pytest.raises(WrongSlot, match="was not run"):
            bank.check(wrong)
    bank.drop(1)
    with pytest.raises(WrongSlot):
        bank.check(stamp(1))
    with pytest.raises(KeyError), bank.batch([1]):
        pass


def test_no_more_adapters_than_slots() -> None:
    bank = bank_of(make_model(), {1: ALL[1], 2: ALL[8]}, slots=2)
    assert bank.free == 0
    with pytest.raises(IndexError):
        bank.put(stamp(3), adapter(ALL[3]))
    bank.drop(1)
    broken = Adapter({Place("up", "low_rank", 4): (torch.zeros(6, 4), torch.zeros(4, 99))})
    with pytest.raises(RuntimeError):
        bank.put(stamp(3), broken)
    assert 3 not in bank
    assert bank.free == 1, "what fails leaves nothing behind"


def test_it_grows_and_keeps_what_it_has() -> None:
    model = make_model()
    tables = {number: make_tables(4, number) for number in range(1, 14)}
    bank = bank_of(model, tables)
    stack = bank._stacks[Place("up", "low_rank", 4)]
    assert len(stack.tensors[0]) == 16
    assert not any(t[0].any() for stack in bank._stacks.values() for t in stack.tensors), "entry 0 stays zero"
    assert len(set(stack.table.tolist())) == len(tables) + 1
    x = torch.randn(len(tables), 6)
    with torch.inference_mode(), bank.batch(list(tables)):
        mixed = model(x)
    for row, own in enumerate(tables.values()):
        torch.testing.assert_close(mixed[row], alone(x[row], own), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rank", "stored"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 16), (64, 64)])
def test_width_class(rank: int, stored: int) -> None:
    assert width_class(rank) == stored
