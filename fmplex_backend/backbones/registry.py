"""Which plug-in a backbone goes with, by the ``model_type`` of its ``config.json``."""

from __future__ import annotations

from importlib import import_module

from fmplex_backend.backbones.base import Backbone
from fmplex_backend.backbones.folder import local_folder, read_json

PLUGINS: dict[str, str] = {
    "dinov2": "vision",
    "dinov2_with_registers": "vision",
    "vit": "vision",
    "clip_vision_model": "vision",
    "clip": "clip",
    "llava": "llava",
    "whisper": "audio",
    "patchtst": "patchtst",
    "fracast": "fracast",
    "moment": "moment",
}
"""``model_type`` → module of this package, which has a function ``load(spec, folder, dtype, device)``."""
OTHERS = "text"
"""Every other model type: transformers' ``AutoModel`` and a tokenizer."""


def load_backbone(spec: str, dtype: str, device: str) -> Backbone:
    """Load ``spec`` (see `fmplex_backend.backbones.source`) in ``dtype`` (fp32, bf16, fp16).

    Raises `NotFound` or `Refused`.
    """
    folder = local_folder(spec)
    config = read_json(folder, "config.json", spec)
    model_type = config.get("model_type") or str(config.get("model_name", "")).lower()
    plugin = import_module(f"fmplex_backend.backbones.{PLUGINS.get(model_type, OTHERS)}")
    backbone: Backbone = plugin.load(spec, folder, dtype, device)
    return backbone
