"""Linear layers whose weights are also kept as MKL packs them, for batches of few positions on a CPU.

MKL brings a weight into its own layout at every product, which is felt where a batch has few positions: a fifth of its
time (docs/architecture.md). What is packed once serves any number of rows (oneMKL reference, ``cblas_sgemm_pack``),
best with as many threads as it was packed by.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST_POSITIONS = 256
"""Above so many, packing at every product is not felt."""
_PACKED_FOR = 64
"""Positions that MKL packs for; for most numbers up to `MOST_POSITIONS` as good as packing for that number."""
_CHECKED = (1, 7, MOST_POSITIONS)
_TOLERANCE = 1e-4


class PackedLinear:
    """In the place of a linear layer's own forward pass; fp32."""

    def __init__(self, module: nn.Linear) -> None:
        self._module = module
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(module.weight, _PACKED_FOR)

    def __call__(self, x: Tensor) -> Tensor:
        positions = x.numel() // x.shape[-1]
        weight, bias = self._module.weight, self._module.bias
        if positions > MOST_POSITIONS:
            return nn.functional.linear(x, weight, bias)
        # The last argument says for how many positions it is packed; for others torch would not use it.
        product: Tensor = torch.ops.mkl._mkl_linear(x, self._packed, weight, bias, positions)
        return product

    def right(self) -> bool:
        """Whether it gives what the layer gives, within rounding."""
        generator = torch.Generator().manual_seed(0)
        for positions in _CHECKED:
            x = torch.randn(positions, self._module.in_features, generator=generator)
            wanted = nn.functional.linear(x, self._module.weight, self._module.bias)
            if not torch.allclose(self(x), wanted, atol=_TOLERANCE * float(wanted.abs().max())):
                return False
        return True


def is_packed(model: nn.Module) -> bool:
    """Whether its linear layers are packed already."""
    return any(isinstance(vars(module).get("forward"), PackedLinear) for module in model.modules())


@torch.inference_mode()
def pack_linears(model: nn.Module) -> str | None:
    """Pack every linear layer of ``model``, with the threads that will compute; why not, where it cannot be.

    One layer of each shape is compared with the plain one: to compare all of them takes eight to ten times as long
    as packing.
    """
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return "torch has no MKL here"
    modules = [module for module in model.modules() if type(module) is nn.Linear]
    if any(module.weight.dtype != torch.float32 for module in modules):
        return "MKL packs fp32 only"
    packed = [PackedLinear(module) for module in modules]
    one_of_each = {
        (*module.weight.shape, module.bias is None): layer for module, layer in zip(modules, packed, strict=True)
    }
    if not all(layer.right() for layer in one_of_each.values()):
        return "MKL's packed weights give other answers"
    for module, layer in zip(modules, packed, strict=True):
        module.forward = layer  # type: ignore[method-assign, assignment]
    return None
