"""BERT's forward pass as the products and sums it is, without what transformers does around each of them.

The same operations on the same modules' weights in the same order, so the same bits come out. transformers takes some
2 ms of its own for a pass on a CPU, as long as a short row of a small model computes. Modules are called where
somebody has hooked them, as adapters do; else only their ``forward``, which may have been replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import BertModel

_CONFIG = {
    "hidden_act": "gelu",
    "is_decoder": False,
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "_attn_implementation": "sdpa",
}
"""What this is written for."""


class LeanBert:
    """In the place of a `BertModel`, for rows of token ids; in eval mode, on a CPU."""

    def __init__(self, model: BertModel) -> None:
        """``model`` is one that `fits`; hooks may come and go later."""
        self._embeddings, self._layers = model.embeddings, list(model.encoder.layer)
        attention = self._layers[0].attention.self
        self._shape = (attention.num_attention_heads, attention.attention_head_size)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """``last_hidden_state`` [n, t, hidden]; the arguments are int64 [n, t]."""
        x = self._embedded(input_ids, token_type_ids)
        mask = None if bool(attention_mask.all()) else attention_mask[:, None, None, :].bool()
        for layer in self._layers:
            attention, inner = layer.attention, layer.intermediate
            read = self._attended(attention.self, x, mask)
            x = _run(attention.output.LayerNorm)(_run(attention.output.dense)(read) + x)
            wide = inner.intermediate_act_fn.forward(_run(inner.dense)(x))
            x = _run(layer.output.LayerNorm)(_run(layer.output.dense)(wide) + x)
        return x

    def _embedded(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        own = self._embeddings
        types = (
            own.token_type_embeddings.weight[0] if token_type_ids is None else own.token_type_embeddings(token_type_ids)
        )
        places: Tensor = own.position_embeddings.weight[: input_ids.shape[1]]
        x: Tensor = _run(own.LayerNorm)(own.word_embeddings(input_ids) + types + places)
        return x

    def _attended(self, attention: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        apart = (*x.shape[:2], *self._shape)
        query, key, value = (
            _run(module)(x).view(apart).transpose(1, 2) for module in (attention.query, attention.key, attention.value)
        )
        read = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=attention.scaling)
        return read.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)


def fits(model: Any) -> bool:
    """Whether `LeanBert` computes what ``model`` does."""
    config = getattr(model, "config", None)
    alike = all(getattr(config, name, wanted) == wanted for name, wanted in _CONFIG.items())
    absolute = getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
    return type(model) is BertModel and alike and absolute and not model.training and len(model.encoder.layer) > 0


def _run(module: nn.Module) -> Callable[[Tensor], Any]:
    """``module`` itself where it has hooks, else its forward pass alone."""
    return module if module._forward_hooks or module._forward_pre_hooks else module.forward
