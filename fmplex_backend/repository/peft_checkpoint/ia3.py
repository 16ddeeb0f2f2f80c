"""IA³: one trained vector for each touched layer.

What PEFT's forward does (``tuners/ia3/layer.py``), l the vector, W and c the layer's weight and bias:

- on most layers ``y = l ⊙ (W x + c)``, l saved as [out, 1]: the bias is scaled too;
- on those that ``feedforward_modules`` names, ``y = W (l ⊙ x) + c``, l saved as [1, in]: the bias is not.

PEFT takes a layer for a feed-forward one where its name ends with one of ``feedforward_modules`` (in BERT
``output.dense`` is the end of ``attention.output.dense`` too), or where the whole name matches it, if that is one
regular expression. The vector's shape must agree, or PEFT cannot load it, so the shape decides here and a list that
contradicts it is refused. Regular expressions of a stranger are not run.
"""

from __future__ import annotations

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import Refused
from fmplex_backend.repository.peft_checkpoint.kind import CONFIG, WEIGHTS, AdapterWeights, CheckpointConfig, expect
from fmplex_backend.repository.peft_checkpoint.names import tell_apart


class IA3ConfigFile(CheckpointConfig):
    """``adapter_config.json`` of an IA³ checkpoint."""

    feedforward_modules: list[str] | str | None = None

    def read(self, tensors: dict[str, Array], facts: BackboneFacts, max_rank: int) -> AdapterWeights:
        """See `CheckpointConfig`."""
        found = tell_apart(tensors, {".ia3_l": "ia3_l"}, facts)
        if found.bias:
            raise Refused(
                f"{WEIGHTS}: holds {min(found.bias)!r}'s bias, which would change the shared backbone itself; "
                "IA3 trains no biases"
            )
        vectors = found.parts["ia3_l"]
        if not vectors:
            raise Refused(f"{WEIGHTS}: holds no IA3 vectors (ia3_l)")
        out_scale: dict[str, Array] = {}
        in_scale: dict[str, Array] = {}
        for layer, vector in vectors.items():
            out, width = facts.layers[layer]
            if self._is_feedforward(layer, vector, facts):
                expect(f"{layer}.ia3_l", vector, (1, width))
                in_scale[layer] = vector[0]
            else:
                expect(f"{layer}.ia3_l", vector, (out, 1))
                out_scale[layer] = vector[:, 0]
        return AdapterWeights(head=found.head, out_scale=out_scale, in_scale=in_scale, task_type=self.task_type)

    def _is_feedforward(self, layer: str, vector: Array, facts: BackboneFacts) -> bool:
        """Whether the layer's input is scaled; see the module's docstring."""
        out, width = facts.layers[layer]
        by_shape = vector.shape == (1, width)
        if not isinstance(self.feedforward_modules, list):
            return by_shape
        # Names in the list may be as long as those in the task class, whose prefix is not in ``layer``.
        listed = any(f"{facts.prefix}.{layer}".endswith(name) for name in self.feedforward_modules)
        if listed != by_shape and vector.shape in {(1, width), (out, 1)}:
            raise Refused(
                f"{WEIGHTS}: {layer}.ia3_l has shape {list(vector.shape)}, but feedforward_modules in {CONFIG} "
                f"{'names' if listed else 'does not name'} this layer: [1, in] scales a feed-forward layer's input, "
                "[out, 1] any other layer's output"
            )
        return listed
