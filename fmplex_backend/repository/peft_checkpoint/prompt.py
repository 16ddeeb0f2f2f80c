"""Prompt tuning and p-tuning: trained vectors before the word embeddings of every row.

P-tuning trains them through a small network; what PEFT saves, and loads to answer with, is what the network made. So
both are one tensor ``prompt_embeddings`` [virtual tokens, hidden].

What PEFT's forward does (``peft_model.py``) with a row of n tokens and V virtual ones:

- It calls the model with ``inputs_embeds``: V prompt vectors, then the word embeddings of the n tokens, special tokens
  included, so [CLS] comes after the prompt. Everything that the model adds to word embeddings (positions, types,
  LayerNorm) is added to the prompt's vectors too.
- Positions count from the first virtual token: 0 … V-1 are the prompt's and the row's own tokens are V … V+n-1
  (behind the padding index in RoBERTa and MPNet, in the same order). So V + n must fit into the position table.
- The attention mask is 1 for the prompt.
- Type ids: for SEQ_CLS and TOKEN_CLS 0 for the prompt and the row's own behind it; for FEATURE_EXTRACTION PEFT drops
  them, so that both texts of a pair are of type 0.
- Nothing is cut off afterwards: the model's hidden states are V + n positions wide. A head that reads the first
  position (BERT's pooler and every ``…ForSequenceClassification`` after it) therefore reads the first *virtual* token;
  one that reads the last reads the row's own last token. Logits of ``…ForTokenClassification`` begin with V that
  belong to no token.

A vFM answers with this: poolings ``mean``, ``cls`` and ``last`` are over all V + n positions, as a user of PEFT's
feature extraction pools with the extended mask; without pooling, the V answers of no token are left out.

Without one of these task types PEFT cannot make such a model, or ignores the prompt.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import Refused
from fmplex_backend.repository.peft_checkpoint.kind import CONFIG, WEIGHTS, AdapterWeights, CheckpointConfig, expect
from fmplex_backend.repository.peft_checkpoint.names import tell_apart

LEAST_TOKENS = 4
"""A row must have room for so many tokens beside the prompt, as ``encoder.max_length`` must be at least that."""
_KEY = "prompt_embeddings"
_TASK_TYPES = ("SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION")


class PromptConfigFile(CheckpointConfig):
    """``adapter_config.json`` of a prompt."""

    peft_type: Literal["PROMPT_TUNING", "P_TUNING"]
    num_virtual_tokens: Annotated[int, Field(ge=1)]
    token_dim: int | None = None
    num_transformer_submodules: int | None = None

    def check(self, facts: BackboneFacts) -> None:
        """See `CheckpointConfig`."""
        if self.task_type not in _TASK_TYPES:
            raise Refused(
                f"{CONFIG}: task_type of a prompt is {self.task_type!r}; served are {', '.join(_TASK_TYPES)}, since "
                "PEFT decides by it how the prompt is put before the text"
            )
        if self.num_transformer_submodules not in (None, 1):
            raise Refused(
                f"{CONFIG}: num_transformer_submodules is {self.num_transformer_submodules}; a prompt for encoder and "
                "decoder is not served, only one for a single model (1)"
            )
        if self.token_dim not in (None, facts.hidden_size):
            raise Refused(f"{CONFIG}: token_dim is {self.token_dim}; the backbone's embeddings are {facts.hidden_size}")
        if (most := facts.max_length - LEAST_TOKENS) < self.num_virtual_tokens:
            raise Refused(
                f"{CONFIG}: num_virtual_tokens is {self.num_virtual_tokens}; the backbone takes {facts.max_length} "
                f"tokens and a text needs room for {LEAST_TOKENS}, so at most {most} are served"
            )

    def read(self, tensors: dict[str, Array], facts: BackboneFacts, max_rank: int) -> AdapterWeights:
        """See `CheckpointConfig`."""
        if _KEY not in tensors:
            raise Refused(f"{WEIGHTS}: holds no {_KEY!r}, the tensor in which PEFT saves a prompt")
        prompt = tensors[_KEY]
        expect(_KEY, prompt, (self.num_virtual_tokens, facts.hidden_size))
        rest = {key: array for key, array in tensors.items() if key != _KEY}
        found = tell_apart(rest, {}, facts, prefix="base_model.")
        if found.bias:
            raise Refused(f"{WEIGHTS}: holds {min(found.bias)!r}'s bias, which would change the shared backbone itself")
        return AdapterWeights(head=found.head, prompt=prompt, task_type=self.task_type)
