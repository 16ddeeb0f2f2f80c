"""Small random backbones of every modality, and rows for them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaModel,
    PatchTSTConfig,
    PatchTSTModel,
    WhisperConfig,
    WhisperModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.configuration_clip import CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fmplex_backend.backbones.fracast import FracastCore, QuantileHead
from support.tiny import make_tiny_bert

QV = ["q_proj", "v_proj"]
"""Layers that adapters touch, in all of them."""
IMAGE_SIZE = 56
RATE = 16_000
POSITIONS = 100
"""Of the audio backbone: two seconds."""
CONTEXT = 32
"""Steps of a series."""
STEPS, WIDTH, KERNEL, STAGES, PERIODS = 64, 8, 3, 4, 2
FRACAST = {
    "model_type": "fracast", "context_length": STEPS, "d_model": WIDTH, "n_stages": STAGES, "dilation_base": 2,
    "kernel_size": KERNEL, "ffn_mult": 1.5, "scale_cond_dim": 4, "periodic_topk": PERIODS, "periodic_harmonics": 2,
    "periodic_alpha": 0.05, "periodic_min_period": 2,
}  # fmt: skip
HORIZON = 6
QUANTILES = [0.1, 0.5, 0.9]
FORECASTING = {
    "head_kind": "gather", "head_future_conv": True, "horizon": HORIZON, "quantiles": QUANTILES, "head_d_ff": 12,
    "head_layers": 1, "head_fc_layers": 2, "head_fc_kernel": 3, "head_future_conv_layers": 2,
    "head_future_conv_seed": 16, "head_phase_bins": 4,
}  # fmt: skip
_ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION: dict[str, tuple[dict[str, Any], Any]] = {
    "dinov2": ({"image_size": 70, "patch_size": 14}, BitImageProcessorPil),
    "dinov2_with_registers": (
        {"image_size": 70, "patch_size": 14, "num_register_tokens": 4},
        BitImageProcessorPil,
    ),
    "vit": ({"image_size": 56, "patch_size": 14}, ViTImageProcessorPil),
    "clip_vision_model": ({"image_size": 56, "patch_size": 14}, CLIPImageProcessorPil),
}


def processor(name: str, size: int) -> Any:
    """transformers' own preprocessing for images of ``size``."""
    kind = VISION[name][1]
    if kind is ViTImageProcessorPil:
        return kind(size={"height": size, "width": size})
    shorter = round(64 * size / IMAGE_SIZE)
    return kind(size={"shortest_edge": shorter}, crop_size={"height": size, "width": size})


def make_vision(folder: Path, name: str) -> Path:
    """A random backbone with its preprocessing."""
    config = AutoConfig.for_model(name, **_ENCODER, **VISION[name][0], initializer_range=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    processor(name, IMAGE_SIZE).save_pretrained(folder)
    return folder


_PAIRED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_SEEING = {**_PAIRED, "image_size": IMAGE_SIZE, "patch_size": 14, "initializer_range": 0.2}


def _finished(folder: Path, model: Any) -> Path:
    """Its preprocessing and tokenizer beside it."""
    model.save_pretrained(folder)
    processor("clip_vision_model", IMAGE_SIZE).save_pretrained(folder)
    return folder


def make_clip(folder: Path) -> Path:
    make_tiny_bert(folder)
    words = len(AutoTokenizer.from_pretrained(folder))
    text = {**_PAIRED, "vocab_size": words, "max_position_embeddings": 24, "eos_token_id": 3, "pad_token_id": 0}
    (folder / "config.json").unlink()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _finished(folder, CLIPModel(CLIPConfig(text_config=text, vision_config=_SEEING, projection_dim=16)))


def make_llava(folder: Path) -> Path:
    make_tiny_bert(folder)
    words = len(AutoTokenizer.from_pretrained(folder))
    text = LlamaConfig(**_PAIRED, vocab_size=words + 1, num_key_value_heads=2, max_position_embeddings=64)
    vision = CLIPVisionConfig(**_SEEING)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=words, vision_feature_layer=-1)
    (folder / "config.json").unlink()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _finished(folder, LlavaModel(config))


def picture(seed: int, width: int = 90, height: int = 70) -> Image.Image:
    """Some shapes in colour."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def file_of(image: Image.Image, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, form)
    return data.getvalue()


def whisper_config(positions: int = POSITIONS) -> Any:
    return WhisperConfig(
        vocab_size=100, num_mel_bins=16, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=positions,
        init_std=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, classifier_proj_size=16,
    )  # fmt: skip


def make_whisper(folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        WhisperModel(whisper_config()).save_pretrained(folder)
    return folder


def sound(seed: int, seconds: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    at = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * (200 + 150 * seed) * at) + 0.05 * rng.standard_normal(len(at))).astype(np.float32)


def make_patchtst(folder: Path, **changes: Any) -> Path:
    config = PatchTSTConfig(
        **{
            "num_input_channels": 1, "context_length": CONTEXT, "patch_length": 8, "patch_stride": 4, "d_model": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "norm_type": "batchnorm", "init_std": 0.2,
            "use_cls_token": True, **changes,
        }
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PatchTSTModel(config).save_pretrained(folder)
    return folder


def series(seed: int, channels: int, steps: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    walk = rng.standard_normal((channels, steps)).cumsum(1)
    return (rng.uniform(0.1, 30, (channels, 1)) * walk + rng.uniform(-50, 50, (channels, 1))).astype(np.float32)


def make_fracast(folder: Path, *, head: bool = False, **changes: Any) -> Path:
    folder.mkdir()
    config = {**FRACAST, **(FORECASTING if head else {})}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        modules = {"core": FracastCore(config)} | ({"head": QuantileHead(config)} if head else {})
        for parameter in (parameter for module in modules.values() for parameter in module.parameters()):
            torch.nn.init.normal_(parameter, std=0.3)
    weights = {f"{part}.{n}": tensor for part, module in modules.items() for n, tensor in module.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    return folder
