"""The adapter bank: a mixed batch equals each adapter alone; bare rows are untouched; slots are zeroed and grow."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fmplex_backend.adapters.bank import AdapterBank, AdapterTensors, rank_class

WIDTHS = {"up": (6, 10), "down": (10, 6)}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    layers = {name: nn.Linear(a, b) for name, (a, b) in WIDTHS.items()}
    model = nn.ModuleDict(layers)
    model.forward = lambda x: layers["down"](torch.tanh(layers["up"](x)))  # type: ignore[method-assign]
    return model.requires_grad_(False).eval()


def make_adapter(rank: int, seed: int, layers: Sequence[str] = ("up", "down"), bias: bool = False) -> AdapterTensors:
    generator = torch.Generator().manual_seed(seed)
    a = {n: torch.randn(rank, WIDTHS[n][0], generator=generator) for n in layers}
    b = {n: torch.randn(WIDTHS[n][1], rank, generator=generator) for n in layers}
    deltas = {"down": torch.randn(6, generator=generator)} if bias else {}
    return AdapterTensors(a, b, deltas)


def alone(x: Tensor, adapter: AdapterTensors | None) -> Tensor:
    """The definition, in full matrices."""
    model = make_model()
    for name, module in model.items():
        if adapter is not None and name in adapter.a:
            module.weight += adapter.b[name] @ adapter.a[name]
        if adapter is not None and name in adapter.bias_delta:
            module.bias += adapter.bias_delta[name]
    return model(x)


ADAPTERS: dict[int, AdapterTensors] = {
    1: make_adapter(3, 1),
    2: make_adapter(4, 2, layers=("up",)),
    3: make_adapter(9, 3, bias=True),
    4: make_adapter(1, 4, layers=("down",)),
    5: make_adapter(4, 5),
}
_MODEL = make_model()
_BANK = AdapterBank(_MODEL, torch.float32, "cpu")
for _key, _adapter in ADAPTERS.items():
    _BANK.load(_key, _adapter)


@settings(max_examples=80)
@given(
    keys=st.lists(st.none() | st.sampled_from(sorted(ADAPTERS)), min_size=1, max_size=9),
    tokens=st.none() | st.integers(1, 5),
)
def test_any_mix_equals_each_alone(keys: list[int | None], tokens: int | None) -> None:
    shape = (len(keys), 6) if tokens is None else (len(keys), tokens, 6)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(keys)))
    with torch.inference_mode(), _BANK.batch(keys):
        mixed = _MODEL(x)
    for row, key in enumerate(keys):
        wanted = alone(x[row : row + 1], ADAPTERS.get(key) if key else None)[0]
        torch.testing.assert_close(mixed[row], wanted, atol=1e-4, rtol=1e-5)


def test_rows_without_adapter_are_untouched_bit_for_bit() -> None:
    x = torch.randn(5, 3, 6)
    with torch.inference_mode():
        bare = _MODEL(x)
        with _BANK.batch([None, 3, None, 1, None]):
            mixed = _MODEL(x)
    for row in (0, 2, 4):
        assert torch.equal(mixed[row], bare[row])
    for row in (1, 3):
        assert not torch.allclose(mixed[row], bare[row])


def test_outside_a_batch_nothing_is_added() -> None:
    x = torch.randn(2, 6)
    with torch.inference_mode():
        bare = make_model()(x)
        with pytest.raises(RuntimeError, match="in the middle"), _BANK.batch([1, 1]):
            raise RuntimeError("in the middle of it")
        assert torch.equal(_MODEL(x), bare)


def test_a_reused_slot_shows_nothing_of_what_it_held() -> None:
    """The second adapter has a smaller rank in the same class: the rest of its slot must be zero."""
    model = make_model()
    bank = AdapterBank(model, torch.float32, "cpu")
    big, small = make_adapter(8, 1), make_adapter(5, 2)
    bank.load(1, big)
    stack = bank._stacks["up", 8]
    slot = bank._slots[1]["up", 8]
    bank.drop(1)
    assert not any(tensor[slot].any() for tensor in stack.tensors)
    bank.load(2, small)
    assert bank._slots[2]["up", 8] == slot
    x = torch.randn(2, 6)
    with torch.inference_mode(), bank.batch([2, 2]):
        torch.testing.assert_close(model(x), alone(x, small), atol=1e-5, rtol=1e-5)


def test_it_grows_and_keeps_what_it_has() -> None:
    model = make_model()
    bank = AdapterBank(model, torch.float32, "cpu")
    adapters = {key: make_adapter(4, key) for key in range(1, 14)}
    for key, adapter in adapters.items():
        bank.load(key, adapter)
    assert len(bank._stacks["up", 4].tensors[0]) == 16
    assert not any(t[0].any() for stack in bank._stacks.values() for t in stack.tensors), "slot 0 stays zero"
    slots = [places["up", 4] for places in bank._slots.values()]
    assert len(set(slots)) == len(adapters)
    x = torch.randn(len(adapters), 6)
    with torch.inference_mode(), bank.batch(list(adapters)):
        mixed = model(x)
    for row, adapter in enumerate(adapters.values()):
        torch.testing.assert_close(mixed[row], alone(x[row], adapter), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rank", "stored"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 16), (64, 64)])
def test_rank_class(rank: int, stored: int) -> None:
    assert rank_class(rank) == stored
