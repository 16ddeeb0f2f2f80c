"""LoRA, DoRA, IA3 and no adapter at all in one batch: every row must be answered as if it were alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmplex_backend.backbones.base import Backbone
from fmplex_backend.engine.worker import Worker
from fmplex_backend.errors import Refused
from fmplex_backend.messages import RunBatch
from fmplex_tools.bench.engine.adapters import (
    BARE,
    AdapterSpec,
    collated,
    load_bare,
    load_peft,
    name_of,
    peft_model_of,
    random_rows,
)
from fmplex_tools.bench.engine.contenders import run_apart, vectors
from fmplex_tools.bench.fair.bench import Figure

PART = "LoRA, DoRA and IA3 in one batch"
EACH = 3
"""Adapters of each kind."""


def sameness(backbone: Backbone, plain: Backbone, tokens: int, seed: int, goal: float | None) -> Iterator[Figure]:
    """Largest differences, of all kinds together to each adapter alone and to PEFT; ``goal`` is for the first."""
    worker = Worker(backbone, backbone.device, 3 * EACH)
    try:
        with tempfile.TemporaryDirectory(prefix="fmplex-bench-") as folder:
            answers: dict[int, Any] = {}
            models: dict[int, tuple[Any, int]] = {}
            for kind, configs in _configs(plain).items():
                model = peft_model_of(plain, configs, seed)
                try:
                    loaded = load_peft(worker, model, Path(folder) / kind, 1 + len(models))
                except Refused as error:
                    yield Figure(PART, f"{kind} is not served: {error}", 0, "", "served", False)
                else:
                    models |= {generation: (model, name) for name, generation in enumerate(loaded)}
            load_bare(worker, Path(folder))
        generations = [BARE, *models] * 2
        rows = random_rows(plain.model, len(generations), tokens, seed)
        together = vectors(worker.run(RunBatch(0, generations, rows)))
        alone = run_apart(worker, generations, rows)
    finally:
        worker.close()
    with torch.inference_mode():
        for place, generation in enumerate(generations):
            inputs = collated(plain, [rows[place]])
            if generation == BARE:
                hidden = plain.forward(inputs).hidden
            else:
                model, name = models[generation]
                model.set_adapter(name_of(name))
                hidden = model(**inputs).last_hidden_state
            answers[place] = hidden[0, 0].float().cpu().numpy()
    theirs = np.stack([answers[place] for place in range(len(generations))])
    apart = float(np.abs(together - alone).max())
    good = None if goal is None else apart <= goal
    yield Figure(PART, "largest difference, mixed to alone", apart, "", "" if goal is None else f"≤ {goal:g}", good)
    yield Figure(PART, "largest difference to PEFT", float(np.abs(together - theirs).max()))


def _configs(backbone: Backbone) -> dict[str, list[Any]]:
    """PEFT's configurations of each kind, ranks and layers differing where a kind has any."""
    from peft import IA3Config, LoraConfig

    every, some = AdapterSpec(8).layers(backbone), AdapterSpec(8, ("query", "value")).layers(backbone)
    outputs = [name for name in every if name.endswith("output.dense")]

    def loras(**options: Any) -> list[Any]:
        layers = (some, every, some)
        return [
            LoraConfig(r=2 ** (1 + n), lora_alpha=8, target_modules=layers[n % len(layers)], **options)
            for n in range(EACH)
        ]

    ia3 = IA3Config(target_modules=[*some, *outputs], feedforward_modules=outputs)
    return {"LoRA": loras(), "DoRA": loras(use_dora=True), "IA3": [ia3] * EACH}
