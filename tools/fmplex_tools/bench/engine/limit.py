"""The matrix products of a backbone's batch and nothing else: what a device could do at most."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.backbones.base import Backbone


class Products:
    """Every matrix product of one batch: linear layers by their shapes, and attention's two for each layer."""

    def __init__(self, backbone: Backbone, rows: int, tokens: int) -> None:
        model = backbone.model
        self._device = backbone.device
        dtype = next(model.parameters()).dtype
        linear = Counter((m.out_features, m.in_features) for _, m in model.named_modules() if isinstance(m, nn.Linear))

        def made(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=dtype, device=self._device)

        inputs = {width: made(rows * tokens, width) for _, width in linear}
        self._work: list[tuple[int, Callable[[], Any]]] = [
            (count, _product(inputs[width], made(out, width).T)) for (out, width), count in linear.items()
        ]
        config: Any = model.config
        heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        query, scores = made(rows * heads, tokens, width), made(rows * heads, tokens, tokens)
        layers = config.num_hidden_layers
        self._work += [(layers, _product(query, query.mT)), (layers, _product(scores, query))]
        self.flops = 2 * sum(count * out * width for (out, width), count in linear.items()) * rows * tokens
        self.flops += 4 * layers * rows * heads * tokens * tokens * width

    def run(self) -> float:
        """All of them once; seconds."""
        begun = time.perf_counter()
        for count, product in self._work:
            for _ in range(count):
                product()
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - begun


def _product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b
