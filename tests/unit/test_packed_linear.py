"""Packed weights: the layer's own answers for any number of positions, and the layer itself where they cannot be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fmplex_backend.adapters.adapter import Adapter, Place
from fmplex_backend.adapters.bank import AdapterBank, Stamp
from fmplex_backend.backbones import packed_linear
from fmplex_backend.backbones.packed_linear import MOST_POSITIONS, PackedLinear, pack_linears

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")  # type: ignore[no-untyped-call]


def layer(n_in: int, n_out: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(n_in, n_out, bias=bias).requires_grad_(False)


@needs_mkl
@settings(deadline=None, max_examples=40)
@given(
    n_in=st.integers(1, 90),
    n_out=st.integers(1, 90),
    rows=st.integers(1, 9),
    length=st.integers(1, 2 * MOST_POSITIONS // 9),
    bias=st.booleans(),
)
def test_answers_as_the_layer_does(n_in: int, n_out: int, rows: int, length: int, bias: bool) -> None:
    module = layer(n_in, n_out, bias=bias)
    x = torch.randn(rows, length, n_in)
    assert torch.allclose(PackedLinear(module)(x), module(x), atol=1e-5)


@needs_mkl
def test_a_model_is_packed_whole() -> None:
    model = nn.Sequential(layer(8, 4), nn.Tanh(), layer(4, 3))
    x = torch.randn(5, 8)
    wanted = model(x)
    assert pack_linears(model) is None
    assert [type(vars(module).get("forward")) for module in model] == [PackedLinear, type(None), PackedLinear]
    assert torch.allclose(model(x), wanted, atol=1e-6)


def test_what_cannot_be_packed_is_left_alone() -> None:
    model = nn.Sequential(layer(8, 4).to(torch.bfloat16))
    assert pack_linears(model) is not None
    assert "forward" not in vars(model[0])


@needs_mkl
def test_weights_that_answer_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def falsified(module: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, module._module.weight, module._module.bias) + (x.shape[0] == 7)

    monkeypatch.setattr(packed_linear.PackedLinear, "__call__", falsified)
    model = nn.Sequential(layer(8, 4))
    assert pack_linears(model) == "MKL's packed weights give other answers"
    assert "forward" not in vars(model[0])


@needs_mkl
@torch.inference_mode()
def test_adapters_on_packed_layers() -> None:
    model = nn.ModuleDict({"up": layer(16, 24)})
    a, b = torch.randn(16, 4), torch.randn(4, 24)
    pack_linears(model)
    packed = vars(model["up"])["forward"]
    bank = AdapterBank(model, torch.float32, "cpu", 2)
    bank.put(Stamp(1, "one", 1), Adapter({Place("up", "low_rank", 4): (a, b)}))
    for length in (3, 4096):  # beside the layer, and merged into its weights
        x = torch.randn(2, length, 16)
        for generations in ([1, 1], [1, None], [None, None]):
            wanted = nn.functional.linear(x, model["up"].weight, model["up"].bias)
            for row, generation in enumerate(generations):
                if generation is not None:
                    wanted[row] += x[row] @ a @ b
            with bank.batch(generations):
                assert torch.allclose(model["up"](x), wanted, atol=1e-4)
    bank.close()
    assert vars(model["up"])["forward"] is packed
