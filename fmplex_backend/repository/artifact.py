"""``vfm.json``: what training writes beside a vFM's adapter and head, and the host reads back.

An artifact is a version directory ``<vFM>/<N>/``, immutable once published::

    vfm.json           this schema
    adapter/           a PEFT checkpoint as PEFT writes it: adapter_config.json, adapter_model.safetensors
    head.safetensors   ``weight`` [outputs, width], ``bias`` [outputs] (fp32), where the head is linear; the width is
                       that of its pooling (see `poolings`)
    golden.json        rows and what they must be answered (see `golden`), where there are any
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fmplex_backend.repository.modalities import EncoderSpec, ImageTextSpec, SeriesSpec, TextSpec
from fmplex_backend.repository.poolings import Pooling, reading

Kind = Literal[
    "classification",
    "multi_label",
    "regression",
    "embedding",
    "token_classification",
    "forecast",
    "imputation",
    "anomaly",
]
HeadType = Literal["linear", "mlp", "identity", "transformers", "prototypes", "native", "similarity"]

ARTIFACT_FILE = "vfm.json"
HEAD_FILE = "head.safetensors"
ADAPTER_DIR = "adapter"

LABELLED: frozenset[str] = frozenset({"classification", "multi_label", "token_classification"})
"""Kinds whose answers are labels by name."""
STEPWISE: frozenset[str] = frozenset({"imputation", "anomaly"})
"""Kinds that answer a number for each step of each channel of a series."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneRef(_Strict):
    """The backbone that the artifact was trained on; ``fingerprint`` decides, ``name`` is for people."""

    name: str
    fingerprint: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Quality(_Strict):
    """Measured on held-out rows when the artifact was made."""

    metric: str
    value: float
    baseline_metric: str
    """What the baseline is, e.g. ``majority label`` or ``mean of the training rows``."""
    baseline: float
    train_rows: int
    test_rows: int
    split: str
    """How the held-out rows were chosen."""


class Artifact(_Strict):
    """The whole of ``vfm.json``."""

    format: Literal[1] = 1
    kind: Kind
    backbone: BackboneRef
    pooling: Pooling = "mean"
    """What the head reads (see `poolings`); ``none`` keeps one vector per token."""
    head: HeadType = "linear"
    """What makes the answer:

    - ``linear``: head.safetensors. Of a forecast, ``weight`` is [horizon · quantiles, width], what comes next in a
      channel in standard deviations from its mean, by what ``pooling`` reads of this channel. Of an imputation or an
      anomaly it is [steps of a position, hidden], likewise a position's own steps, by its vector, or for an anomaly by
      the one before; with ``encoder.backwards`` twice as wide, that of the channel backwards behind it. An anomaly
      has ``scale`` [1] too: by how many standard deviations a step is off whose score is 1.
    - ``mlp``: head.safetensors has ``hidden.weight`` [inner, width] and ``hidden.bias`` [inner] too, for a layer with
      ReLU before the linear one.
    - ``identity``: the pooled vector itself (embeddings).
    - ``transformers``: the head of transformers' own task class for this backbone (``…ForSequenceClassification``,
      ``…ForTokenClassification``, ``…ForImageClassification``, ``…ForAudioClassification``), with the parameters that
      PEFT saved in the adapter checkpoint (``modules_to_save``).
    - ``prototypes``: head.safetensors has ``vectors`` [n, width], ``owners`` [n], the label's number of each, and
      ``temperature`` [1]; a label's logit is the temperature times the cosine of the row to the nearest vector of the
      label: few shots, or examples to be looked up, without training.
    - ``native``: the backbone's own forecasting head; ``pooling`` is ``none``.
    - ``similarity``: the cosine of the first position to the last: of an image to a text.
    """
    labels: tuple[str, ...] | None = None
    """Names of the outputs, in order: labels, for regression the targets, for a forecast its quantiles."""
    horizon: Annotated[int | None, Field(ge=1)] = None
    """Forecast: how many steps."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Multi-label: a label is given when its probability reaches this."""
    normalize: bool = False
    """Embedding: scale to unit length."""
    adapter: bool = False
    """Whether ``adapter/`` belongs to the artifact."""
    encoder: EncoderSpec = TextSpec()
    quality: Quality | None = None
    created: str | None = None
    """ISO 8601 time."""
    source: str | None = None
    """Where the training data came from, for people."""

    @model_validator(mode="after")
    def _consistent(self) -> Artifact:
        if self.kind in LABELLED:
            if not self.labels:
                raise ValueError(f"kind {self.kind!r} needs 'labels', the names of its outputs")
            if len(set(self.labels)) != len(self.labels):
                raise ValueError("'labels' must be distinct")
            if any(not label for label in self.labels):
                raise ValueError("'labels' must not be empty strings")
        if self.kind == "classification" and self.labels is not None and len(self.labels) < 2:
            raise ValueError("kind 'classification' needs at least 2 labels")
        if self.head == "mlp" and (self.pooling == "none" or self.by_channel):
            raise ValueError("head 'mlp' answers rows by one vector each: another pooling than 'none', and no forecast")
        if self.head == "identity" and self.kind != "embedding":
            raise ValueError(f"head 'identity' is for embeddings, not for kind {self.kind!r}")
        if self.head == "native" and self.kind != "forecast":
            raise ValueError(f"head 'native' forecasts; it is not for kind {self.kind!r}")
        if self.kind in STEPWISE:
            self._check_stepwise()
        if self.by_channel and isinstance(self.encoder, SeriesSpec) and self.encoder.mix is not None:
            raise ValueError(f"kind {self.kind!r} answers for the channels that come in, so there is no 'encoder.mix'")
        if self.kind not in STEPWISE and isinstance(self.encoder, SeriesSpec) and self.encoder.backwards:
            raise ValueError(f"'encoder.backwards' is for kinds {', '.join(sorted(STEPWISE))}, not for {self.kind!r}")
        if self.kind == "forecast":
            self._check_forecast()
        elif self.horizon is not None:
            raise ValueError("'horizon' is for forecasts")
        if self.head == "similarity" and not (
            self.kind == "regression" and isinstance(self.encoder, ImageTextSpec) and len(self.encoder.tensors) == 2
        ):
            raise ValueError("head 'similarity' is a regression on an image and a text")
        if self.head == "prototypes" and (self.kind != "classification" or self.pooling == "none"):
            raise ValueError("head 'prototypes' classifies rows: kind 'classification', and one vector a row")
        if self.head == "transformers":
            if self.kind == "embedding":
                raise ValueError("head 'transformers' classifies or regresses; embeddings use 'linear' or 'identity'")
            if not self.adapter:
                raise ValueError("head 'transformers' takes its parameters from adapter/, so 'adapter' must be true")
        if self.kind == "token_classification":
            if self.pooling != "none":
                raise ValueError("kind 'token_classification' needs pooling 'none'")
            if isinstance(self.encoder, TextSpec) and (self.encoder.prefix or self.encoder.collapse_whitespace):
                raise ValueError("token offsets need the text as it came: no 'prefix', no 'collapse_whitespace'")
        elif (
            self.pooling == "none"
            and self.kind not in ("embedding", "forecast", *STEPWISE)
            and self.head != "transformers"
        ):
            raise ValueError(f"kind {self.kind!r} needs pooling 'mean', 'cls' or 'last'")
        if self.normalize and self.kind != "embedding":
            raise ValueError("'normalize' is for embeddings")
        self._check_reading()
        return self

    @property
    def by_channel(self) -> bool:
        """Whether a row is answered by something for each of its channels."""
        return self.kind == "forecast" or self.kind in STEPWISE

    @property
    def sequences(self) -> int:
        """That the backbone makes of a channel."""
        return 2 if isinstance(self.encoder, SeriesSpec) and self.encoder.backwards else 1

    def _check_stepwise(self) -> None:
        if not isinstance(self.encoder, SeriesSpec) or (self.pooling, self.head) != ("none", "linear") or self.labels:
            raise ValueError(f"kind {self.kind!r} reads a series, has pooling 'none', head 'linear', and no 'labels'")
        if self.kind == "imputation" and not self.encoder.observed:
            raise ValueError("kind 'imputation' fills what 'observed' says is missing, so 'encoder.observed' is true")

    def _check_forecast(self) -> None:
        if not isinstance(self.encoder, SeriesSpec) or self.horizon is None or not self.labels:
            raise ValueError("a forecast reads a series, has a 'horizon', and quantiles for 'labels'")
        how = reading(self.pooling)
        if self.head not in ("native", "linear") or (how is None) != (self.head == "native") or (how and how.each):
            raise ValueError(
                "a forecast has head 'native' and pooling 'none', or head 'linear' and a pooling, which is of each "
                "channel by itself without 'each:'"
            )
        try:
            quantiles = [float(label) for label in self.labels]
        except ValueError:
            quantiles = []
        if not quantiles or sorted(set(quantiles)) != quantiles or not 0 < quantiles[0] <= quantiles[-1] < 1:
            raise ValueError(f"a forecast's 'labels' are quantiles between 0 and 1, ascending, not {list(self.labels)}")

    def _check_reading(self) -> None:
        """What the pooling reads must be there."""
        how, series = reading(self.pooling), isinstance(self.encoder, SeriesSpec)
        if how is None:
            return
        if "levels" in how.parts and not series:
            raise ValueError(
                f"pooling {self.pooling!r} reads a series' levels; the encoder reads {self.encoder.modality}"
            )
        if how.each and not (isinstance(self.encoder, SeriesSpec) and self.encoder.channels):
            raise ValueError(f"pooling {self.pooling!r} reads each channel, so 'encoder.channels' must say how many")
