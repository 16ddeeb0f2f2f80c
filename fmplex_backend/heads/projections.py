"""From features to a vFM's raw outputs: logits, values or an embedding, before they are named and scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.backbones.base import Features
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.errors import Refused
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.modalities import Modality


class Projection(ABC):
    """The last layers of one vFM."""

    @abstractmethod
    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """Raw outputs, fp32, of ``rows`` of the batch: [rows, outputs], or [rows, t, outputs] without pooling.

        Of a forecast [rows, channels, steps, outputs].
        """


@dataclass(frozen=True)
class Linear(Projection):
    """``weight · pooled + bias``; ``weight`` [outputs, width] is None for the pooled vector itself."""

    pooling: str
    weight: Tensor | None
    bias: Tensor | None

    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """See `Projection`."""
        x = features.pooled(self.pooling)[rows]
        if self.weight is None:
            return x
        # Of rows with fewer channels than others of the batch, what is behind their own is void.
        return nn.functional.linear(x[..., : self.weight.shape[1]], self.weight, self.bias)


@dataclass(frozen=True)
class Mlp(Projection):
    """``weight · relu(hidden · pooled)``, with biases."""

    pooling: str
    hidden_weight: Tensor
    hidden_bias: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """See `Projection`."""
        x = features.pooled(self.pooling)[rows][..., : self.hidden_weight.shape[1]]
        inner = nn.functional.linear(x, self.hidden_weight, self.hidden_bias).relu()
        return nn.functional.linear(inner, self.weight, self.bias)


class TransformersHead(Projection):
    """The head of transformers' own task class, run by that class itself.

    The class is built around a stand-in that hands it the hidden states which the shared backbone has already made, so
    whatever the class does with them (pooler, dense and tanh, last token) is done by its own code.
    """

    def __init__(self, model: nn.Module, prefix: str) -> None:
        self._stand_in = _StandIn()
        setattr(model, prefix, self._stand_in)
        self._model = model

    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """See `Projection`."""
        pooler = features.pooler_output
        self._stand_in.output = _output(features.hidden[rows].float(), None if pooler is None else pooler[rows].float())
        inputs = {name: tensor[rows] for name, tensor in features.inputs.items()}
        logits: Tensor = self._model(**inputs).logits
        return logits.float()


def _output(hidden: Tensor, pooler_output: Tensor | None) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

    if pooler_output is None:
        return BaseModelOutputWithPast(last_hidden_state=hidden)
    return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooler_output)


class _StandIn(nn.Module):
    """Takes the backbone's place in a task class and returns what it was given."""

    output: Any = None

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.output


class Similarity(Projection):
    """The cosine of a row's first position to its last."""

    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """See `Projection`: [rows, 1]."""
        first, last = (features.pooled(part)[rows] for part in ("cls", "last"))
        return nn.functional.cosine_similarity(first, last).unsqueeze(-1)


class Prototypes(Projection):
    """Cosines to vectors that stand for labels; see `fmplex_backend.repository.artifact.Artifact.head`."""

    def __init__(self, pooling: str, vectors: Tensor, owners: Tensor, temperature: float) -> None:
        """``vectors`` [n, width], ``owners`` [n] int64: the label of each, every label among them."""
        self._pooling, self._temperature = pooling, temperature
        order = owners.argsort(stable=True)
        self._vectors = nn.functional.normalize(vectors[order], dim=-1)
        self._counts: list[int] = torch.bincount(owners).tolist()

    def __call__(self, features: Features, rows: Tensor) -> Tensor:
        """See `Projection`."""
        x = features.pooled(self._pooling)[rows][..., : self._vectors.shape[1]]
        cosines = nn.functional.normalize(x, dim=-1) @ self._vectors.T
        nearest = [own.amax(-1) for own in torch.split(cosines, self._counts, dim=-1)]
        return self._temperature * torch.stack(nearest, -1)


def prototypes(artifact: Artifact, parameters: Mapping[str, Tensor]) -> Prototypes:
    """The projection of head ``prototypes``."""
    temperature = float(parameters["temperature"][0])
    return Prototypes(artifact.pooling, parameters["vectors"], parameters["owners"].long(), temperature)


def linear(artifact: Artifact, parameters: Mapping[str, Tensor]) -> Linear:
    """The projection of heads ``linear`` and ``identity``."""
    return Linear(artifact.pooling, parameters.get("weight"), parameters.get("bias"))


def mlp(artifact: Artifact, parameters: Mapping[str, Tensor]) -> Mlp:
    """The projection of head ``mlp``."""
    names = ("hidden.weight", "hidden.bias", "weight", "bias")
    return Mlp(artifact.pooling, *(parameters[name] for name in names))


def transformers_head(
    artifact: Artifact, parameters: Mapping[str, Tensor], facts: BackboneFacts, backbone: Any
) -> TransformersHead:
    """Build the head of ``backbone``'s task class from the parameters of the checkpoint. Raises `Refused`.

    A parameter of the head that the checkpoint lacks would be random, one that the class lacks would be ignored: both
    are refused.
    """
    auto = task_class(facts.modality, artifact.kind)
    config = backbone.config.__class__.from_dict(backbone.config.to_dict())
    config.num_labels = len(artifact.labels or ("value",))
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
    except ValueError as error:
        raise Refused(f"transformers has no task class for backbone {config.model_type!r}: {error}") from None
    prefix = facts.prefix
    if not hasattr(model, prefix):
        raise Refused(f"{type(model).__name__} has no part {prefix!r}, where its backbone was expected")
    if getattr(config, "use_weighted_layer_sum", False):
        raise Refused(f"{type(model).__name__} reads every layer (use_weighted_layer_sum); served is the last")
    if getattr(backbone, "pooler", None) is None and getattr(getattr(model, prefix), "pooler", None) is not None:
        raise Refused(f"{type(model).__name__} reads the backbone's pooler, for which this backbone has no weights")
    own = {name: tuple(p.shape) for name, p in model.named_parameters() if not name.startswith(f"{prefix}.")}
    given = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if own != given:
        raise Refused(_difference(type(model).__name__, own, given))
    setattr(model, prefix, nn.Identity())
    if buffer := next((name for name, _ in model.named_buffers()), None):
        raise Refused(f"{type(model).__name__}'s head has a buffer, {buffer!r}, which no checkpoint carries")
    model = model.to_empty(device="cpu").float()
    model.load_state_dict(dict(parameters), strict=True)
    device = next(backbone.parameters()).device
    return TransformersHead(model.eval().requires_grad_(False).to(device), prefix)


def task_class(modality: Modality, kind: str) -> Any:
    """transformers' classes for one kind of head. Raises `Refused`."""
    import transformers

    if kind == "token_classification" and modality == "text":
        return transformers.AutoModelForTokenClassification
    known = {
        "text": transformers.AutoModelForSequenceClassification,
        "image": transformers.AutoModelForImageClassification,
        "audio": transformers.AutoModelForAudioClassification,
    }
    if kind == "token_classification" or modality not in known:
        raise Refused(f"transformers has no head for kind {kind!r} on {modality}; use 'linear'")
    return known[modality]


def _difference(name: str, own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    if missing := sorted(own.keys() - given.keys()):
        return f"the checkpoint lacks {missing[0]!r}, a parameter of {name}'s head; save it by modules_to_save"
    if extra := sorted(given.keys() - own.keys()):
        return f"the checkpoint has {extra[0]!r}, which {name}'s head does not have ({', '.join(sorted(own))})"
    wrong = min(key for key in own if own[key] != given[key])
    return f"{wrong!r} has shape {list(given[wrong])}; with this backbone and these labels it is {list(own[wrong])}"
