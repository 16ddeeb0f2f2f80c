"""What every plug-in does with the folder that holds a backbone."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_backend.backbones.source import resolve
from fmplex_backend.errors import Refused

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def local_folder(spec: str) -> Path:
    """The folder with the backbone's files; a hub name is downloaded first (safetensors and tokenizer only)."""
    source = resolve(spec)
    if isinstance(source, Path):
        return source
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:  # many kinds: no network, no such repository, gated
        raise Refused(f"backbone {spec!r}: is no folder here, and the hub did not give it: {error}") from None


def read_json(folder: Path, name: str, spec: str) -> dict[str, Any]:
    """A JSON object of ``folder``. Raises `Refused`."""
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"backbone {spec!r}: cannot read {name}: {error}") from None
    if not isinstance(value, dict):
        raise Refused(f"backbone {spec!r}: {name} is no JSON object")
    return value


def load_model(
    kind: Any, folder: Path, spec: str, dtype: str, device: str, *, optional: str = "", **more: Any
) -> tuple[Any, bool]:
    """A model of transformers' class ``kind``, and whether all of its weights are there.

    Only those whose names begin with ``optional`` may be missing, else it raises `Refused`; ``more`` goes to
    ``from_pretrained``.
    """
    model, info = kind.from_pretrained(
        folder, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True, **more
    )
    refuse_missing(info["missing_keys"], spec, optional=optional)
    return ready(model, device), not info["missing_keys"]


def ready(model: Any, device: str) -> Any:
    """``model`` as a backbone is: for inference only, on ``device``."""
    return model.eval().requires_grad_(False).to(device)


def refuse_missing(missing: Iterable[Any], spec: str, *, optional: str = "") -> None:
    """Raise `Refused` where the weights lack what the model needs; names that begin with ``optional`` it does not."""
    if body := sorted(key for key in map(str, missing) if not (optional and key.startswith(optional))):
        raise Refused(f"backbone {spec!r}: its weights lack {body[0]!r} and {len(body) - 1} more; it would be random")


def filled(module: nn.Module, weights: Mapping[str, Tensor], spec: str) -> nn.Module:
    """``module`` with these ``weights``, all of them and nothing else. Raises `Refused`."""
    refuse_missing(module.state_dict().keys() - weights.keys(), spec)
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise Refused(f"backbone {spec!r}: {error}") from None
    return module


def touchable(model: nn.Module, shared: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """``layers`` and ``biases`` of `BackboneFacts`, without the modules ``shared``: what those make is no row's own."""
    modules = {name: module for name, module in model.named_modules() if name not in shared}
    linear = {name: m for name, m in modules.items() if isinstance(m, nn.Linear)}
    biased = {name: m for name, m in modules.items() if isinstance(getattr(m, "bias", None), Tensor)}
    return {
        "layers": {name: (m.out_features, m.in_features) for name, m in linear.items()},
        "biases": {name: m.bias.numel() for name, m in biased.items()},
    }
