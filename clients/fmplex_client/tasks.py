"""What a task is, read from the server's model configuration: its kind, inputs, outputs and longest request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

KIND_BY_OUTPUT: dict[str, str] = {
    "label": "classification",
    "labels": "multi_label",
    "values": "regression",
    "embedding": "embedding",
    "token_labels": "token_classification",
    "forecast": "forecast",
    "filled": "imputation",
    "anomaly": "anomaly",
}
"""The output that tells a task's kind."""

OUTPUTS = frozenset(KIND_BY_OUTPUT) | {"logits", "probabilities", "token_scores", "quantiles", "anomaly_scores", "info"}
"""Output names that FMplex gives its ensembles; a bundle's are ``member`` + a separator + one of these."""

_SEPARATORS = "._/:-"


def kind_of(outputs: Iterable[str]) -> str:
    """The kind of a task with these outputs; ``tensors`` where none of them tells."""
    for name in outputs:
        if name in KIND_BY_OUTPUT:
            return KIND_BY_OUTPUT[name]
    return "tensors"


def members_of(outputs: Iterable[str]) -> dict[str, dict[str, str]]:
    """Bundle member → its outputs: plain name → the tensor's full name.

    Empty where the task is no bundle. ``toxic.label`` and ``toxic_label`` both are ``label`` of ``toxic``.
    """
    members: dict[str, dict[str, str]] = {}
    for tensor in sorted(outputs):
        if tensor in OUTPUTS:
            continue
        for name in sorted(OUTPUTS, key=len, reverse=True):
            member = tensor.removesuffix(name)
            if member != tensor and len(member) > 1 and member[-1] in _SEPARATORS:
                members.setdefault(member[:-1], {})[name] = tensor
                break
    return members


@dataclass(frozen=True)
class Task:
    """One task (vFM or bundle) as the server describes it."""

    name: str
    kind: str
    """``classification`` … or ``bundle``; ``tensors`` for an ensemble whose outputs are none of FMplex's; ``model`` for
    what is no ensemble, and so no task: a physical FM."""
    max_batch_size: int
    """Most texts in one request; longer lists are sent as several."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    members: tuple[str, ...] = ()
    """Names of a bundle's members."""

    @property
    def takes_pairs(self) -> bool:
        """Whether it reads two texts a row."""
        return "text_pair" in self.inputs

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Task:
        """From Triton's model configuration as JSON (HTTP's, or gRPC's ``as_json``)."""
        outputs = tuple(item["name"] for item in config.get("output", ()))
        members = tuple(members_of(outputs))
        kind = kind_of(outputs)
        if kind == "tensors" and members:
            kind = "bundle"
        if not is_ensemble(config):
            kind = "model"
        return cls(
            name=str(config["name"]),
            kind=kind,
            max_batch_size=int(config.get("max_batch_size", 0)),
            inputs=tuple(item["name"] for item in config.get("input", ())),
            outputs=outputs,
            members=members if kind == "bundle" else (),
        )


def is_ensemble(config: Mapping[str, Any]) -> bool:
    """Whether a model configuration is an ensemble's: every vFM and bundle is one."""
    return config.get("platform") == "ensemble"
