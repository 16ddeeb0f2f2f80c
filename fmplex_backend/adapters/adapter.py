"""One adapter, ready for the bank: what it adds to which module of the backbone.

Whatever PEFT method made it, an adapter changes a module's output y = module(x) to::

    scale ⊙ module(in_scale ⊙ x) + shift + (x A) B

LoRA and rsLoRA bring A and B, with their scaling in B. DoRA (Liu et al., 2024) is the same with a scale: its magnitude
over the norm of each row of W + BA, fixed at inference. IA³ (Liu et al., 2022) brings a scale, or an in_scale on
feed-forward layers. A trained bias is a shift. Prompt tuning (Lester et al., 2021) puts vectors in the place of the
embeddings of a row's first positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fmplex_backend.arrays import width_class

Role = Literal["in_scale", "scale", "shift", "low_rank", "prompt"]
EMBEDDINGS = "<input embeddings>"
"""Stands for the module of a prompt's place."""


class Place(NamedTuple):
    """Where a tensor of an adapter goes; tensors in one place have one shape, so that the bank can stack them."""

    module: str
    role: Role
    width: int = 0
    """The rank class of a low-rank part, the virtual tokens of a prompt."""


@dataclass(frozen=True)
class Adapter:
    """In host memory, in the backbone's dtype; immutable."""

    parts: Mapping[Place, tuple[Tensor, ...]]
    """``low_rank`` A [in, r] and B [r, out], ``scale`` and ``shift`` [out], ``in_scale`` [in], ``prompt`` [virtual
    tokens, hidden]."""
    virtual_tokens: int = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for tensors in self.parts.values() for t in tensors)


@torch.inference_mode()
def make_adapter(tables: Mapping[str, Mapping[str, Tensor]], model: nn.Module, dtype: torch.dtype) -> Adapter:
    """From the tables of a packed file (see `fmplex_backend.repository.packed`), fp32 on the CPU.

    Computed in fp32 from the backbone's own weights where the method needs them, and stored in ``dtype``.
    """
    parts: dict[Place, tuple[Tensor, ...]] = {}
    scales = dict(tables["out_scale"])
    low_rank = {layer: (a, tables["lora_B"][layer]) for layer, a in tables["lora_A"].items()}
    shifts = dict(tables["bias_delta"])
    for layer, magnitude in tables["magnitude"].items():
        a, b = low_rank[layer]
        scales[layer] = scale = magnitude / (_own(model, layer, "weight") + b @ a).norm(dim=1)
        low_rank[layer] = (a, b * scale.unsqueeze(1))
        if (bias := _bias(model, layer)) is not None:  # DoRA does not scale the bias
            shifts[layer] = shifts.get(layer, 0) + (1 - scale) * bias
    for module, trained in tables["bias"].items():
        shifts[module] = shifts.get(module, 0) + (trained - _own(model, module, "bias"))
    for layer, (a, b) in low_rank.items():
        parts[Place(layer, "low_rank", width_class(a.shape[0]))] = (a.T, b.T)
    for module, shift in shifts.items():
        if shift.any():
            parts[Place(module, "shift")] = (shift,)
    parts |= {Place(layer, "scale"): (scale,) for layer, scale in scales.items()}
    parts |= {Place(layer, "in_scale"): (scale,) for layer, scale in tables["in_scale"].items()}
    virtual = 0
    if (prompt := tables["prompt"].get("embeddings")) is not None:
        virtual = len(prompt)
        parts[Place(EMBEDDINGS, "prompt", virtual)] = (prompt,)
    stored = {place: tuple(t.to(dtype).contiguous() for t in tensors) for place, tensors in parts.items()}
    return Adapter(stored, virtual)


def _own(model: nn.Module, module: str, name: str) -> Tensor:
    tensor = getattr(model.get_submodule(module), name)
    assert isinstance(tensor, Tensor)
    return tensor.detach().float().cpu()


def _bias(model: nn.Module, module: str) -> Tensor | None:
    return None if getattr(model.get_submodule(module), "bias", None) is None else _own(model, module, "bias")
