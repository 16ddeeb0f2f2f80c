"""A version's golden rows: a few of the task's own, and what plain transformers, PEFT and the head answer them.

Nothing of the engine's batches is used here, and the version is read from the files that will be served. So a host that
answers the same (`fmplex_backend.host.golden`) serves what was trained. A text goes through transformers' own tokenizer
and model; what is no text, through the backbone's plug-in, a row at a time.
"""

from __future__ import annotations

import itertools
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging

from fmplex_backend.backbones.base import Features
from fmplex_backend.backbones.facts import SeriesInput
from fmplex_backend.backbones.folder import local_folder
from fmplex_backend.encoders.text import prepare
from fmplex_backend.errors import InvalidInput
from fmplex_backend.heads.projections import task_class
from fmplex_backend.repository.artifact import ADAPTER_DIR, HEAD_FILE, Artifact
from fmplex_backend.repository.golden import MAX_BYTES, Golden, GoldenRow, answers_by_token
from fmplex_backend.repository.modalities import EncoderSpec, TextSpec
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.rows import tensors_of

MAX_TOKENS = 64
"""Longest golden row, where the data has one so short."""
CANDIDATES = 8
"""Texts that golden rows are chosen from."""
TEXTS = ("A short text that says what it has to say.", "Nobody expected it to rain for 40 days, but it did!")
PAIRS = ("It is not long.", "The weather was fine.")
"""For versions that come without data."""


def make_golden(
    folder: Path, artifact: Artifact, backbone: Backbone, rows: Sequence[Any] = (), pairs: Sequence[str] | None = None
) -> Golden | None:
    """Golden rows of the version in ``folder``, chosen from ``rows`` (and ``pairs``) or, without any texts, our own.

    Two rows, or one where a row is answered token by token; None where there are no rows that are no text, or none
    that is small enough for `MAX_BYTES`. Raises `InvalidInput` where the encoder takes no row.
    """
    with _quiet():
        if isinstance(artifact.encoder, TextSpec):
            if not rows:
                rows, pairs = TEXTS, PAIRS if artifact.encoder.pair else None
            seconds: Sequence[str | None] = [None] * len(rows) if pairs is None else pairs
            plain = _PlainText(folder, artifact, artifact.encoder, backbone)
            candidates = [
                (GoldenRow(text=text, text_pair=pair), plain(text, pair))
                for text, pair in _short(artifact, backbone, rows, seconds)
            ]
        else:
            other = _Plain(folder, artifact, backbone)
            candidates = [(row, other.answer(row)) for row in _small(artifact.encoder, rows)]
    if not candidates:
        return None
    # The larger the numbers, the less a wrong answer can pass for a rounded one.
    candidates.sort(key=lambda made: -float(np.abs(made[1]).max()))
    chosen = candidates[: 1 if answers_by_token(artifact) else 2]
    return Golden(
        inputs=tuple(row for row, _ in chosen),
        outputs=tuple(_shortest(output) for _, output in chosen),
        made_with={
            **{name: installed(name) for name in ("torch", "transformers", "peft")},
            "machine": f"{platform.machine()} {backbone.device.type}",
        },
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings about type ids, renamed attributes and heads that are random until PEFT loads its own."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _short(
    artifact: Artifact, backbone: Backbone, texts: Sequence[str], pairs: Sequence[str | None]
) -> list[tuple[str, str | None]]:
    """The first different rows of at most `MAX_TOKENS` tokens; the shortest one where all are longer."""
    found: list[tuple[int, tuple[str, str | None]]] = []
    rows = list(dict.fromkeys(zip(texts, pairs, strict=True)))
    for text, pair in rows[: 16 * CANDIDATES]:
        try:
            encoded = backbone.encode([text], None if pair is None else [pair], artifact.encoder)
        except InvalidInput:
            continue  # e.g. longer than an encoder without truncation takes
        found.append((int(encoded.lengths()[0]), (text, pair)))
    if not found:
        raise InvalidInput(f"none of {len(rows)} texts is one that the vFM's encoder takes, the first is {rows[0]!r}")
    found.sort(key=lambda entry: entry[0] > MAX_TOKENS)  # a stable sort: the first that fit, then the others
    fit = [row for size, row in found[:CANDIDATES] if size <= MAX_TOKENS]
    shortest = min(found, key=lambda entry: entry[0])[1]
    return fit if fit and not answers_by_token(artifact) else [shortest]


def _small(spec: EncoderSpec, rows: Sequence[Any]) -> list[GoldenRow]:
    """The first rows whose files or numbers are few enough to be kept."""
    made = (GoldenRow.of(tensors_of(row, None, spec)) for row in rows[: 4 * CANDIDATES])
    return list(itertools.islice((row for row in made if len(row.model_dump_json()) < MAX_BYTES // 4), CANDIDATES))


class _Plain:
    """One version, as its owner would compute it without FMplex: a row at a time, in fp32, nothing padded."""

    def __init__(self, folder: Path, artifact: Artifact, backbone: Backbone) -> None:
        self._artifact, self._backbone = artifact, backbone
        self._source = local_folder(backbone.facts.spec)
        self._model = self._build(folder, self._source).eval().to(backbone.device)
        config = getattr(self._model, "active_peft_config", None)
        self._virtual: int = getattr(config, "num_virtual_tokens", 0) or 0
        head = folder / HEAD_FILE
        kept = artifact.head in ("linear", "mlp", "prototypes")
        self._head = load_file(head, device=str(backbone.device)) if kept else None

    @torch.inference_mode()
    def answer(self, row: GoldenRow) -> Any:
        """Logits, values or embedding of a row that is no text: fp32 [width], or [positions, width]; see `Golden`."""
        encoded = self._backbone.encode_tensors(row.tensors, self._artifact.encoder)
        if self._artifact.head == "transformers":
            inputs = self._backbone.forward(encoded, [0]).inputs
            return self._finished(self._model(**inputs).logits[0])
        features = self._backbone.forward(encoded, [0], self._model)
        if self._artifact.by_channel:
            return self._by_channel(features, row).float().cpu().numpy()
        return self._finished(self._headed(features.pooled(self._artifact.pooling)[0]))

    def _by_channel(self, features: Features, row: GoldenRow) -> Tensor:
        """Of one row: [channels, horizon, quantiles] of a forecast, else [channels, steps]."""
        artifact, own = self._artifact, self._backbone.facts.input
        assert isinstance(own, SeriesInput)
        if artifact.head == "native":
            places = [own.quantiles.index(float(label)) for label in artifact.labels or ()]
            return self._backbone.forecast(features)[:, : artifact.horizon, places]
        assert self._head is not None
        assert features.levels is not None
        told = []
        channels, steps = row.tensors["series"].shape[1:]
        for channel in range(channels):
            mean, deviation = features.levels[channel]
            if artifact.kind == "forecast":
                raw = self._head["weight"] @ features.of_sequences(artifact.pooling)[channel] + self._head["bias"]
                told.append(raw.reshape(artifact.horizon, -1).sort(-1).values * deviation + mean)
                continue
            vectors = features.hidden[channel::channels, features.special :].float()
            told.append(self._steps(list(vectors), mean, deviation, row, channel)[-min(steps, own.context) :])
        return torch.stack(told)

    def _steps(self, vectors: list[Tensor], mean: Tensor, deviation: Tensor, row: GoldenRow, channel: int) -> Tensor:
        """By each position's vector, or its neighbours', one after the other."""
        assert self._head is not None
        anomaly, positions = self._artifact.kind == "anomaly", len(vectors[0])
        nothing = torch.zeros_like(vectors[0][0])
        told = []
        for position in range(positions):
            places = [position - anomaly, positions - 1 - (position + anomaly)]
            read = [own[p] if p >= 0 else nothing for own, p in zip(vectors, places, strict=False)]
            told.append(self._head["weight"] @ torch.cat(read) + self._head["bias"])
        made = torch.cat(told)
        series = torch.from_numpy(row.tensors["series"][0, channel])[-len(made) :]
        mask = row.tensors.get("observed")
        known = torch.ones(len(series), dtype=torch.bool) if mask is None else torch.from_numpy(mask[0, channel])
        known, made = known[-len(made) :], made[-len(series) :]
        if not anomaly:
            return torch.where(known, series, made * deviation + mean)
        off = ((series - mean) / deviation.clamp(min=1e-12) - made).abs() / self._head["scale"]
        return torch.where(known, off, 0.0)

    def _headed(self, raw: Tensor) -> Any:
        if self._head is not None and self._artifact.head == "prototypes":
            cosines = torch.nn.functional.cosine_similarity(raw, self._head["vectors"], dim=-1)
            best = [cosines[self._head["owners"] == label].max() for label in range(len(self._artifact.labels or ()))]
            return self._head["temperature"] * torch.stack(best)
        if self._head is not None and self._artifact.head == "mlp":
            raw = (self._head["hidden.weight"] @ raw + self._head["hidden.bias"]).clamp(min=0)
        return (
            raw if self._head is None else torch.nn.functional.linear(raw, self._head["weight"], self._head.get("bias"))
        )

    def _finished(self, raw: Tensor) -> Any:
        if self._artifact.normalize:
            raw = torch.nn.functional.normalize(raw, dim=-1)
        return raw.float().cpu().numpy()

    def _build(self, folder: Path, source: Path) -> Any:
        artifact = self._artifact
        if artifact.head == "transformers":
            auto = task_class(self._backbone.facts.modality, artifact.kind)
            model = auto.from_pretrained(
                source, num_labels=len(artifact.labels or ("value",)), dtype=torch.float32, use_safetensors=True
            )
        elif artifact.adapter:
            model = self._backbone.fresh_model()
        else:
            return self._backbone.model
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(folder / ADAPTER_DIR))


class _PlainText(_Plain):
    """The same for texts, by transformers' own tokenizer and model."""

    def __init__(self, folder: Path, artifact: Artifact, spec: TextSpec, backbone: Backbone) -> None:
        super().__init__(folder, artifact, backbone)
        self._spec, self._tokenizer = spec, AutoTokenizer.from_pretrained(self._source)

    @torch.inference_mode()
    def __call__(self, text: str, pair: str | None) -> Any:
        """Logits, values or embedding: fp32 [width], or [tokens, width]."""
        spec = self._spec
        limit = spec.max_length or self._backbone.facts.max_length - self._virtual
        second = None if pair is None else prepare(pair, spec, "text_pair", prefix=False)
        inputs = self._tokenizer(
            prepare(text, spec, "text"),
            second,
            truncation="longest_first" if spec.truncation else False,
            max_length=limit,
            return_tensors="pt",
        ).to(self._backbone.device)
        output = self._model(**inputs)
        if self._artifact.head == "transformers":
            raw = self._of_tokens(output.logits[0])
        else:
            raw = self._headed(self._pooled(output.last_hidden_state[0]))
        return self._finished(raw)

    def _pooled(self, hidden: Tensor) -> Tensor:
        """Of all positions, a prompt's too, as PEFT gives them."""
        if self._artifact.pooling == "none":
            return self._of_tokens(hidden)
        mean = hidden.mean(0)
        parts = {
            "mean": mean,
            "cls": hidden[0],
            "last": hidden[-1],
            "max": hidden.amax(0),
            "std": (hidden - mean).square().mean(0).sqrt(),
        }
        return torch.cat([parts[part] for part in self._artifact.pooling.split("+")])

    def _of_tokens(self, answers: Tensor) -> Tensor:
        return answers[self._virtual :] if answers.ndim == 2 else answers


def _shortest(output: Any) -> Any:
    """Nested lists of the numbers that, read as fp32, are exactly those of ``output``, in as few digits as possible."""
    if output.ndim == 1:
        return [float(str(value)) for value in output]
    return [_shortest(row) for row in output]
