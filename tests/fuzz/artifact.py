"""A version directory: vfm.json, adapter, head and golden rows, as the registry reads and packs them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from fmplex_backend.arrays import Array
from fmplex_backend.backbones.facts import BackboneFacts, TextInput
from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.config import ensemble_config, vfm_config
from fmplex_backend.repository.golden import compare, read_golden
from fmplex_backend.repository.interface import check_interface
from fmplex_backend.repository.layout import socket_dims, sockets_of
from fmplex_backend.repository.packed import VersionContent, pack, read_version
from fuzz import parts
from fuzz.told import check_told
from fuzz.words import tokenizer

HIDDEN = 4
MAX_RANK = 8
QUERY, DENSE = "encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense"
FACTS = BackboneFacts(
    spec="small",
    fingerprint="sha256:" + "ab" * 32,
    model_type="bert",
    prefix="bert",
    hidden_size=HIDDEN,
    max_length=32,
    layers={QUERY: (HIDDEN, HIDDEN), DENSE: (HIDDEN, 2 * HIDDEN)},
    biases={QUERY: HIDDEN, DENSE: HIDDEN, "encoder.layer.0.output.LayerNorm": HIDDEN},
    input=TextInput(tokenizer(), pad_token_id=0, token_type_ids=True),
)
_CONFIG, _WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
_FILES = ("vfm.json", "head.safetensors", "golden.json", _CONFIG, _WEIGHTS)
_BASE = "base_model.model."
_LORA = {"r": 2, "lora_alpha": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {"dense": 8}, "bias": "all"}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _vfm(**changes: Any) -> bytes:
    plain = {"kind": "classification", "labels": ["no", "yes"], "adapter": True, "encoder": {"max_length": 16}}
    return _json({"backbone": {"name": "small", "fingerprint": FACTS.fingerprint}, **plain, **changes})


def _ones(**shapes: tuple[int, ...]) -> bytes:
    tensors: dict[str, Array] = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    return save({name: array.astype(np.float16) if "bias" in name else array for name, array in tensors.items()})


def _version(vfm: bytes, *, width: int = 2, config: dict[str, Any] | None = None, **weights: tuple[int, ...]) -> bytes:
    golden = {"inputs": [{"text": "a good film"}], "outputs": [[0.5] * width], "made_with": {"torch": "2"}}
    files = {"vfm.json": vfm, "head.safetensors": _ones(weight=(width, HIDDEN), bias=(width,))}
    files["golden.json"] = _json(golden)
    if config is not None:
        files |= {_CONFIG: _json(config), _WEIGHTS: _ones(**weights)}
    return parts.join(files)


def seeds() -> list[bytes]:
    """Good ones, of every kind of head and adapter."""
    pair = {f"{_BASE}{QUERY}.lora_A.weight": (2, HIDDEN), f"{_BASE}{QUERY}.lora_B.weight": (HIDDEN, 2)}
    both = pair | {f"{_BASE}{DENSE}.lora_A.weight": (2, 2 * HIDDEN), f"{_BASE}{DENSE}.lora_B.weight": (HIDDEN, 2)}
    biased = both | {f"{_BASE}{DENSE}.base_layer.bias": (HIDDEN,), f"{_BASE}{QUERY}.lora_B.bias": (HIDDEN,)}
    lora, ia3 = {"peft_type": "LORA", **_LORA}, {"peft_type": "IA3", "feedforward_modules": ["output.dense"]}
    prompt = {"peft_type": "PROMPT_TUNING", "task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": 3}
    scales = {f"{_BASE}{QUERY}.ia3_l": (HIDDEN, 1), f"{_BASE}{DENSE}.ia3_l": (1, 2 * HIDDEN)}
    own_head = {f"{_BASE}classifier.weight": (2, HIDDEN), f"{_BASE}classifier.bias": (2,)}
    dora = {**pair, f"{_BASE}{QUERY}.lora_magnitude_vector": (HIDDEN,)}
    embedding = {"kind": "embedding", "labels": None, "adapter": False, "normalize": True}
    return [
        _version(_vfm(adapter=False)),
        _version(_vfm(kind="multi_label", threshold=0.25), config=lora, **biased),
        _version(_vfm(), config={**lora, "use_dora": True, "use_rslora": True}, **dora),
        _version(_vfm(kind="regression", labels=None, encoder={"pair": True}), config=ia3, **scales),
        _version(_vfm(), config=prompt, prompt_embeddings=(3, HIDDEN)),
        _version(_vfm(head="transformers"), config={**lora, "task_type": "SEQ_CLS"}, **pair, **own_head),
        _version(_vfm(**embedding, head="identity"), width=HIDDEN),
        _version(_vfm(kind="token_classification", pooling="none"), config=lora, **pair),
    ]


damage = parts.damage


def check(data: bytes, folder: Path) -> None:
    """Refused, or whole: finite weights of the shapes that are served, which pack, and golden rows to be asked."""
    root = folder / "vfm"
    shutil.rmtree(root, ignore_errors=True)
    (root / "1/adapter").mkdir(parents=True)
    for name, content in parts.split(data).items():
        if name in _FILES:
            (root / "1" / name).write_bytes(content)
    try:
        content = read_version(root / "1", root, FACTS, MAX_RANK)
        _check_whole(content, folder / "packed.safetensors")
        _check_golden(content, root)
    except Refused as error:
        check_told(error, secret=str(root))


def _check_whole(content: VersionContent, packed: Path) -> None:
    artifact, width = content.artifact, content.width
    assert width >= 1
    sockets = {name: (3, socket) for name, socket in sockets_of(artifact.kind, artifact.pooling).items()}
    dims = socket_dims(artifact.kind, artifact.pooling, width)
    inputs = artifact.encoder.tensors
    config = ensemble_config("minilm", sockets, {name: dims[s] for name, (_, s) in sockets.items()}, inputs=inputs)
    read = vfm_config("vfm", config, {"minilm"})
    assert read is not None
    check_interface(read, content, 64)
    pack(content, packed)
    assert all(np.isfinite(array).all() for array in load_file(packed).values())
    if content.adapter is not None:
        assert content.adapter.rank <= MAX_RANK
        assert content.adapter.virtual_tokens + 4 <= FACTS.max_length


def _check_golden(content: VersionContent, root: Path) -> None:
    golden = read_golden(root / "1", root, content.artifact, content.width)
    if golden is None:
        return
    compare(golden, golden.arrays, "fp32")
    try:
        for row in golden.inputs:
            _encoder().encode(content.artifact.encoder, row.tensors)
    except InvalidInput as error:
        check_told(error)


_encoder = functools.cache(lambda: TextEncoder(FACTS))
