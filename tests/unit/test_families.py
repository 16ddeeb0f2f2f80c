"""Imported PEFT checkpoints of many families: backbone, adapter and head against transformers' own task class."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from support.tiny import MAX_LENGTH, make_tiny_bert
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import LoadGeneration, RunBatch
from fmplex_backend.repository.artifact import Artifact, BackboneRef
from fmplex_backend.repository.modalities import TextSpec
from fmplex_backend.repository.packed import pack, read_version

TEXTS = ["good film", "a very good book, not a bad film", "no", "it was not very good, was it?"]
LABELS = ("a", "b", "c")


@dataclass(frozen=True)
class Family:
    """A tiny configuration of one model type."""

    config: dict[str, Any] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    """Modules of the head that PEFT does not save unless told."""
    positions: int = MAX_LENGTH


_ENCODER = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "bert": Family(_ENCODER),
    "roberta": Family({**_ENCODER, "pad_token_id": 0}),
    "mpnet": Family({**_ENCODER, "pad_token_id": 0}),
    "electra": Family({**_ENCODER, "embedding_size": 16}),
    "distilbert": Family({"n_layers": 2, "n_heads": 4, "dim": 32, "hidden_dim": 64}, saved=("pre_classifier",)),
    "deberta-v2": Family({**_ENCODER, "pooler_hidden_size": 32}, saved=("pooler",)),
    "qwen2": Family(_DECODER),
    "llama": Family(_DECODER),
    "gemma3_text": Family({**_DECODER, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}),
}


def make_backbone(name: str, family: Family, folder: Path) -> Path:
    """A random backbone of ``family`` with the tiny WordPiece tokenizer."""
    make_tiny_bert(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.for_model(
        name,
        vocab_size=len(tokenizer),
        max_position_embeddings=family.positions,
        initializer_range=0.2,
        **family.config,
    )
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


def make_checkpoint(folder: Path, backbone: Path, family: Family) -> None:
    """A LoRA checkpoint for sequence classification with random weights, as PEFT writes it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(LABELS))
        own = rf".*({'|'.join(('classifier', 'score', *family.saved))}).*"
        lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", exclude_modules=own)
        lora.modules_to_save = list(family.saved) or None
        model = get_peft_model(model, lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.05
        model.save_pretrained(folder)


def plain_logits(folder: Path, backbone: Path) -> np.ndarray:
    """What transformers + peft answer, each text alone."""
    model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=len(LABELS))
    model = PeftModel.from_pretrained(model, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    takes = inspect.signature(type(AutoModel.from_pretrained(backbone)).forward).parameters
    logits = []
    with torch.inference_mode():
        for text in TEXTS:
            row = tokenizer(text, return_tensors="pt")
            inputs = {name: tensor for name, tensor in row.items() if name in takes}
            logits.append(model(**inputs).logits.numpy())
    return np.concatenate(logits)


def load(worker: Worker, version: Path, name: str) -> str | None:
    """Write ``vfm.json``, read, pack and load the version; the engine's refusal, if any."""
    facts = worker.backbone.facts
    ref = BackboneRef(name=name, fingerprint=facts.fingerprint)
    artifact = Artifact(kind="classification", backbone=ref, head="transformers", adapter=True, labels=LABELS)
    (version / "vfm.json").write_text(artifact.model_dump_json())
    packed = version.parent / "packed.safetensors"
    pack(read_version(version, version.parent, facts, 64), packed)
    return worker.load(LoadGeneration(1, name, 1, str(packed))).error


@pytest.mark.parametrize("name", FAMILIES)
def test_an_imported_checkpoint_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = make_backbone(name, family, tmp_path / "backbone")
    version = tmp_path / "vfm" / "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_checkpoint(version / "adapter", folder, family)
        expected = plain_logits(version / "adapter", folder)
    worker = Worker(load_backbone(str(folder), "fp32", "cpu"), "cpu", 4)
    assert load(worker, version, name) is None
    facts = worker.backbone.facts
    rows = TextEncoder(facts).encode_texts(TextSpec(), TEXTS, None)
    done = worker.run(RunBatch(1, [1] * len(rows), [row.tokens for row in rows]))
    np.testing.assert_allclose(done.groups[0].columns["vector"], expected, rtol=1e-5, atol=1e-5)


def test_a_head_that_the_checkpoint_lacks_is_refused_and_not_left_random(tmp_path: Path) -> None:
    folder = make_backbone("bert", FAMILIES["bert"], tmp_path / "backbone")
    version = tmp_path / "vfm" / "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_checkpoint(version / "adapter", folder, FAMILIES["bert"])
    weights = version / "adapter" / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if not name.endswith("classifier.bias")}
    save_file(kept, weights)
    worker = Worker(load_backbone(str(folder), "fp32", "cpu"), "cpu", 4)
    assert load(worker, version, "x") == (
        "the checkpoint lacks 'classifier.bias', a parameter of BertForSequenceClassification's head; "
        "save it by modules_to_save"
    )
