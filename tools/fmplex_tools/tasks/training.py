"""Head and LoRA trained together, by PEFT.

The head starts as the frozen probe (fitted first, on the bare backbone's features), so that the adapter only has to
learn what the probe cannot do, and the probe's own figure comes for free. Training runs in bf16 where the processor
has it natively; what is kept, and all that is reported, is fp32.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmplex_backend.backbones.base import Features
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Kind
from fmplex_backend.repository.poolings import Pooling
from fmplex_tools.tasks.backbone import Backbone, Encoded, linear_layers, native_bf16
from fmplex_tools.tasks.heads import Head, Scaler, balanced_rows, contrastive_loss
from fmplex_tools.tasks.kinds import Targets
from fmplex_tools.tasks.options import LoraOptions

HEAD_LEARNING_RATE = 1e-3
WARMUP = 0.1
QUERIES_AND_VALUES = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q", "v"),
    ("q_lin", "v_lin"),
    ("query_key_value",),
    ("Wqkv",),
)
"""As backbones call them."""
_BUCKET = 16
"""Batches whose rows are sorted by length together: like lengths in a batch, batches in random order."""

Report = Callable[[int, float], None]
"""Called after each step with rows done and the running loss."""


@dataclass(frozen=True)
class Trained:
    """A PEFT model in fp32, and the head that was trained with it."""

    model: Any
    head: Head


def lora_config(backbone: Backbone, options: LoraOptions) -> Any:
    """PEFT's `LoraConfig`. Raises `InvalidInput` for layers that the backbone does not have."""
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=options.rank,
        lora_alpha=options.scale,
        target_modules=list(target_modules(backbone, options)),
        layers_to_transform=None if options.layers is None else list(options.layers),
        use_rslora=options.rslora,
    )


def target_modules(backbone: Backbone, options: LoraOptions) -> tuple[str, ...]:
    """The names to give PEFT, ``all-linear`` spelt out (PEFT's own would include the pooler)."""
    known = linear_layers(backbone)
    blocks = max(len(names) for names in known.values())
    if options.layers is not None and max(options.layers) >= blocks:
        raise InvalidInput(f"--layers {max(options.layers)}: the backbone has layers 0 to {blocks - 1}")
    if options.target_modules is None:
        return _queries_and_values(known)
    if options.target_modules == ("all-linear",):
        return tuple(known)
    for name in options.target_modules:
        if not any(path == name or path.endswith(f".{name}") for path in known):
            raise InvalidInput(
                f"--target-modules {name!r}: no such linear layer; this backbone has {', '.join(known)}, or all-linear"
            )
    return options.target_modules


def _queries_and_values(known: dict[str, list[str]]) -> tuple[str, ...]:
    """The names that this backbone has for them. Raises `InvalidInput` where it has none of the usual ones."""
    for names in QUERIES_AND_VALUES:
        if all(any(path == name or path.endswith(f".{name}") for path in known) for name in names):
            return names
    raise InvalidInput(f"--target-modules: name some of {', '.join(known)}, or all-linear")


def train_lora(
    backbone: Backbone,
    encoded: Encoded,
    targets: Targets,
    features: NDArray[np.float32],
    probe: Head,
    pooling: Pooling,
    options: LoraOptions,
    *,
    seed: int,
    report: Report | None = None,
) -> Trained:
    """Train an adapter and ``probe``'s successor on ``encoded`` rows and ``targets``.

    ``features`` are the bare backbone's, [rows, hidden] (per token for token classification): they fix the
    standardization in which the head is trained, which is folded away at the end. The backbone itself is not changed.
    """
    from peft import get_peft_model

    torch.manual_seed(seed)
    # Not in train mode: the backbone's own dropout costs a third of the time on a CPU and gains nothing in few epochs.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads an attribute that transformers renamed
        bare = backbone.fresh_model()
        fused = bare.config._attn_implementation
        if backbone.device.type == "cpu":
            # The fused attention's backward in bf16 takes more than half of a step there: 0.40 s of 0.70.
            bare.set_attn_implementation("eager")
        model = get_peft_model(bare, lora_config(backbone, options)).eval()
    module = _HeadModule(probe, Scaler.fit(features), targets).to(backbone.device)
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": adapter, "lr": options.learning_rate, "weight_decay": 0.0},
            {"params": list(module.parameters()), "lr": HEAD_LEARNING_RATE, "weight_decay": 0.01},
        ]
    )
    steps = options.epochs * _steps_an_epoch(targets, options.batch_rows)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    running: float | None = None
    for rows in _batches(targets, encoded.lengths(), options, seed):
        with torch.autocast(backbone.device.type, torch.bfloat16, enabled=native_bf16(backbone.device)):
            made = backbone.forward(encoded, rows, model)
        loss = module.loss(replace(made, hidden=made.hidden.float()), rows, encoded, pooling)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        optimizer.step()
        schedule.step()
        value = loss.item()
        if not math.isfinite(value):
            raise InvalidInput(f"the training loss became {value}; lower --learning-rate {options.learning_rate}")
        running = value if running is None else 0.9 * running + 0.1 * value
        if report is not None:
            report(len(rows), running)
    bare.set_attn_implementation(fused)  # what is reported is computed as it is served
    return Trained(model, module.folded())


class _HeadModule(torch.nn.Module):
    """The head in standardized coordinates, with its targets and loss."""

    def __init__(self, probe: Head, scaler: Scaler, targets: Targets) -> None:
        super().__init__()
        self.scaler, self.targets = scaler, targets
        self.weight = torch.nn.Parameter(torch.from_numpy(probe.weight * scaler.scale))
        self.bias = torch.nn.Parameter(torch.from_numpy(probe.bias + probe.weight @ scaler.mean))
        self.register_buffer("mean", torch.from_numpy(scaler.mean))
        self.register_buffer("scale", torch.from_numpy(scaler.scale))
        # A regression's loss is in units of its target's spread, so that one learning rate suits every target.
        spread = float(np.std(targets.values)) if targets.kind == "regression" and targets.values is not None else 1.0
        self.spread = spread or 1.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        mean, scale = self.get_buffer("mean"), self.get_buffer("scale")
        return torch.nn.functional.linear((features - mean) / scale, self.weight, self.bias)

    def loss(self, features: Features, rows: list[int], encoded: Encoded, pooling: Pooling) -> torch.Tensor:
        """Mean loss of the batch ``rows``, whose hidden states ``features`` holds in fp32."""
        kind: Kind = self.targets.kind
        values = self.targets.values
        assert values is not None
        if kind == "token_classification":
            truth = torch.full(features.mask.shape, -100)
            for place, row in enumerate(rows):
                tags = token_tags(encoded, row, values[row])
                truth[place, : len(tags)] = torch.from_numpy(tags)
            logits = self(features.hidden)
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), truth.flatten().to(logits.device))
        outputs = self(features.pooled(pooling))
        truth = torch.from_numpy(values[rows]).to(outputs.device)
        if kind == "classification":
            return torch.nn.functional.cross_entropy(outputs, truth)
        if kind == "multi_label":
            return torch.nn.functional.binary_cross_entropy_with_logits(outputs, truth)
        if kind == "regression":
            return torch.nn.functional.mse_loss(outputs / self.spread, truth / self.spread)
        return contrastive_loss(outputs, truth)

    def folded(self) -> Head:
        """The head on raw features."""
        return self.scaler.fold(self.weight.detach().cpu().numpy(), self.bias.detach().cpu().numpy())


def token_tags(encoded: Encoded, row: int, tags: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tag index of each token of ``row``: that of its word; -100 for special tokens, which have no tag."""
    assert encoded.words is not None
    return np.array([-100 if word is None else tags[word] for word in encoded.words[row]], np.int64)


def _rate(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, then a straight line to 0."""
    warmup = max(1, round(WARMUP * steps))
    return (step + 1) / warmup if step < warmup else max(0.0, (steps - step) / max(1, steps - warmup))


def _steps_an_epoch(targets: Targets, batch_rows: int) -> int:
    assert targets.values is not None
    return math.ceil(len(targets.values) / batch_rows)


def _batches(targets: Targets, lengths: NDArray[np.int64], options: LoraOptions, seed: int) -> Iterator[list[int]]:
    if targets.kind == "embedding":
        yield from _balanced_batches(targets, options, seed)
        return
    chance = np.random.default_rng(seed)
    size = options.batch_rows
    for _ in range(options.epochs):
        order = chance.permutation(len(lengths))
        batches: list[list[int]] = []
        for begin in range(0, len(order), size * _BUCKET):
            bucket = order[begin : begin + size * _BUCKET]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [bucket[at : at + size].tolist() for at in range(0, len(bucket), size)]
        for place in chance.permutation(len(batches)):
            yield batches[place]


def _balanced_batches(targets: Targets, options: LoraOptions, seed: int) -> Iterator[list[int]]:
    labels = torch.from_numpy(targets.values)
    rows_by_label = [torch.nonzero(labels == label).flatten() for label in torch.unique(labels)]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(options.epochs * _steps_an_epoch(targets, options.batch_rows)):
        yield balanced_rows(rows_by_label, options.batch_rows, generator).tolist()
