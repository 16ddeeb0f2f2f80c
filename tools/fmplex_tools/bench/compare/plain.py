"""What is right by definition: plain transformers + peft + head, one text at a time. Shares nothing with the baselines.

``python -m fmplex_tools.bench.compare.plain`` reads ``{"backbone": …, "versions": […], "texts": […]}`` and prints the
probabilities as JSON: [versions][texts][labels].
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

Probabilities = list[list[list[float]]]


def plain_answers(backbone: Path, versions: Sequence[Path], texts: Sequence[str]) -> Probabilities:
    """Probabilities by each version folder, the LoRA unmerged: [versions][texts][labels]."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    bare = AutoModel.from_pretrained(backbone, dtype=torch.float32).eval()
    answers = []
    for version in versions:
        model = PeftModel.from_pretrained(copy.deepcopy(bare), version / "adapter").eval()
        head = load_file(version / "head.safetensors")
        with torch.inference_mode():
            rows = []
            for text in texts:
                hidden = model(**tokenizer(text, truncation=True, return_tensors="pt")).last_hidden_state
                logits = torch.nn.functional.linear(hidden[0].mean(0), head["weight"], head["bias"])
                rows.append(logits.softmax(-1).tolist())
        answers.append(rows)
    return answers


def main() -> None:
    """Entry point."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    asked = json.load(sys.stdin)
    json.dump(plain_answers(Path(asked["backbone"]), [Path(v) for v in asked["versions"]], asked["texts"]), sys.stdout)


if __name__ == "__main__":
    main()
