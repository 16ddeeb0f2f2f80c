"""Every way in which a vFM can be broken, as a table: how to break a good one, and what its refusal must say."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from safetensors.numpy import load_file, save_file
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.repository.config import write_config
from support.recipes import Recipe, save_adapter

GOOD = Recipe(outputs=3, lora={"r": 8, "target_modules": ("query", "value")})
"""What each of them would be if it were not broken."""
_LAYER = "base_model.model.encoder.layer.0.attention.self.query"

Break = Callable[[Path], None]


@dataclass(frozen=True)
class Broken:
    """One broken vFM: ``says`` are parts of its refusal (the value and the remedy); its name is always among them."""

    name: str
    breaks: Break
    says: tuple[str, ...]
    client_hears_it: bool = True
    """False where a client gets Triton's own words, because it refuses the ensemble or the request by itself."""


def edit_json(file: str, **changes: Any) -> Break:
    """Change keys of a JSON file; a dotted key leads into it."""

    def breaks(folder: Path) -> None:
        path = folder / "1" / file
        content = json.loads(path.read_text())
        for key, value in changes.items():
            inner = content
            *parents, last = key.split("__")
            for parent in parents:
                inner = inner[parent]
            inner[last] = value
        path.write_text(json.dumps(content))

    return breaks


def edit_tensors(file: str, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Break:
    """Rewrite a safetensors file."""

    def breaks(folder: Path) -> None:
        path = folder / "1" / file
        save_file(change(load_file(path)), path)

    return breaks


def edit_config(change: Callable[[ModelConfig], None]) -> Break:
    """Change the ensemble."""

    def breaks(folder: Path) -> None:
        path = folder / "config.pbtxt"
        config = text_format.Parse(path.read_text(), ModelConfig())
        change(config)
        write_config(path, config)

    return breaks


def parameter(key: str, value: str) -> Break:
    """Set one parameter of the ensemble."""

    def change(config: ModelConfig) -> None:
        config.parameters[key].string_value = value

    return edit_config(change)


def remap(old: str, new: str) -> Break:
    """Map ``new`` instead of the output whose name ends in ``old``."""

    def change(config: ModelConfig) -> None:
        outputs = config.ensemble_scheduling.step[0].output_map
        key = next(key for key in outputs if key.endswith(old))
        outputs[new.format(port=key.split(".")[0])] = outputs[key]
        del outputs[key]

    return edit_config(change)


def move_ports(port: int) -> Break:
    """Map every socket at ``port``."""

    def change(config: ModelConfig) -> None:
        outputs = config.ensemble_scheduling.step[0].output_map
        for key, tensor in list(outputs.items()):
            del outputs[key]
            outputs[f"port{port}.{key.partition('.')[2]}"] = tensor

    return edit_config(change)


def _serve_all_versions(config: ModelConfig) -> None:
    config.version_policy.all.SetInParent()


def _pin(config: ModelConfig) -> None:
    config.version_policy.specific.versions.append(7)


def _feed_pair(config: ModelConfig) -> None:
    config.input.add(name="text_pair", data_type="TYPE_STRING", dims=[1])
    config.ensemble_scheduling.step[0].input_map["text_pair"] = "text_pair"


def _wrong_dims(config: ModelConfig) -> None:
    next(output for output in config.output if output.name == "logits").dims[:] = [7]


def _too_many_rows(config: ModelConfig) -> None:
    config.max_batch_size = 65


def _truncate(folder: Path) -> None:
    path = folder / "1/adapter/adapter_model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def _foreign(folder: Path) -> None:
    """A checkpoint of a backbone with the same layer names and another width."""
    from support.tiny import make_tiny_bert

    other = make_tiny_bert(folder.parent / "other-backbone")
    shutil.rmtree(folder / "1/adapter")
    save_adapter(folder / "1/adapter", GOOD, other)
    shutil.rmtree(other)


def _pickle(folder: Path) -> None:
    adapter = folder / "1/adapter"
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def _link_out(file: str) -> Break:
    def breaks(folder: Path) -> None:
        outside = folder.parent / f"outside-{folder.name}"
        (folder / file).rename(outside)
        (folder / file).symlink_to(outside.resolve())

    return breaks


def _to_nan(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    first = next(iter(tensors))
    return tensors | {first: np.full_like(tensors[first], np.nan)}


def _rename_layers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.replace("layer.0.", "layer.99."): value for key, value in tensors.items()}


def _rank_128(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    a, b = f"{_LAYER}.lora_A.weight", f"{_LAYER}.lora_B.weight"
    return {a: np.zeros((128, tensors[a].shape[1]), np.float32), b: np.zeros((tensors[b].shape[0], 128), np.float32)}


def _both(*breaks: Break) -> Break:
    def all_of_them(folder: Path) -> None:
        for one in breaks:
            one(folder)

    return all_of_them


ADAPTER, HEAD = "adapter/adapter_model.safetensors", "head.safetensors"
CONFIG = "adapter/adapter_config.json"

BROKEN = (
    Broken("no_adapter", lambda f: shutil.rmtree(f / "1/adapter"), ("adapter/adapter_config.json is missing",)),
    Broken("no_weights", lambda f: (f / "1" / ADAPTER).unlink(), (f"{ADAPTER} is missing",)),
    Broken("no_version", lambda f: shutil.rmtree(f / "1"), ("no version folder",), client_hears_it=False),
    Broken("no_vfm_json", lambda f: (f / "1/vfm.json").unlink(), ("vfm.json is missing",)),
    Broken("no_head", lambda f: (f / "1" / HEAD).unlink(), ("head.safetensors is missing",)),
    Broken("truncated", _truncate, (ADAPTER, "not a whole safetensors file")),
    Broken("foreign", _foreign, ("has shape [8, 32]", "it is [8, 384]")),
    Broken(
        "rank_over_limit",
        _both(edit_tensors(ADAPTER, _rank_128), edit_json(CONFIG, r=128)),
        ("adapter rank 128", "exceeds the bank's 64", "max_adapter_rank"),
    ),
    Broken("rank_differs", edit_json(CONFIG, r=4), ("has shape [8, 384]", "it is [4, 384]")),
    Broken("no_such_layer", edit_tensors(ADAPTER, _rename_layers), ("no linear layer 'encoder.layer.99.", "the first")),
    Broken("nan_adapter", edit_tensors(ADAPTER, _to_nan), (ADAPTER, "NaN or infinite")),
    Broken("nan_head", edit_tensors(HEAD, _to_nan), (HEAD, "NaN or infinite")),
    Broken("pickle", _pickle, ("adapter_model.bin is a pickle", "safe_serialization=True")),
    Broken("link_adapter", _link_out(f"1/{ADAPTER}"), ("leads out of the vFM's folder",), client_hears_it=False),
    Broken("link_vfm_json", _link_out("1/vfm.json"), ("leads out of the vFM's folder",), client_hears_it=False),
    Broken("dora", edit_json(CONFIG, use_dora=True), ("use_dora is set", "has no lora_magnitude_vector")),
    Broken(
        "other_peft",
        edit_json(CONFIG, peft_type="PREFIX_TUNING"),
        ("'PREFIX_TUNING'", "served are LORA (also rsLoRA and DoRA), IA3, PROMPT_TUNING and P_TUNING"),
    ),
    Broken(
        "head_too_wide",
        edit_tensors(HEAD, lambda t: t | {"weight": np.zeros((3, 400), np.float32)}),
        ("weight has shape [3, 400]", "[outputs, 384]"),
    ),
    Broken(
        "head_not_the_labels",
        edit_tensors(HEAD, lambda _: {"weight": np.zeros((4, 384), np.float32)}),
        ("4 outputs", "names 3 labels"),
    ),
    Broken(
        "other_backbone",
        edit_json("vfm.json", backbone__fingerprint="sha256:" + "0" * 64),
        ("sha256:000000000000…", "the physical FM runs", "fmplex task train"),
    ),
    Broken("unknown_key", edit_json("vfm.json", thresold=0.5), ("unknown key 'thresold'", "known are")),
    Broken("long_rows", edit_json("vfm.json", encoder__max_length=4096), ("max_length 4096", "512 tokens")),
    Broken("not_json", lambda f: (f / "1/vfm.json").write_text("{"), ("vfm.json is not valid JSON",)),
    Broken("weight_0", parameter("weight", "0"), ("'weight' is '0'", "greater than 0")),
    Broken("weight_negative", parameter("weight", "-1"), ("'weight' is '-1'", "greater than 0")),
    Broken("weight_abc", parameter("weight", "abc"), ("'weight' is 'abc'", "valid number")),
    Broken("weight_nan", parameter("weight", "nan"), ("'weight' is 'nan'", "finite number")),
    Broken("wieght", parameter("wieght", "2"), ("unknown parameter 'wieght'", "known are weight")),
    Broken("all_versions", edit_config(_serve_all_versions), ("version_policy", "latest { num_versions: 1 }")),
    Broken("pinned_nowhere", edit_config(_pin), ("version 7", "no folder 7/"), client_hears_it=False),
    Broken("wrong_dims", edit_config(_wrong_dims), ("'logits' declares dims [7]", "gives [3]")),
    Broken("too_many_rows", edit_config(_too_many_rows), ("max_batch_size 65", "the 64 of"), client_hears_it=False),
    Broken("not_its_socket", remap(".scores", "{port}.matrix"), ("'matrix'", "does not fill"), client_hears_it=False),
    Broken("no_socket", remap(".scores", "{port}.vectr"), (".vectr'", "sockets are"), client_hears_it=False),
    Broken(
        "feeds_a_pair",
        edit_config(_feed_pair),
        ("feeds ['text', 'text_pair']", "its encoder reads ['text']"),
        client_hears_it=False,
    ),
    Broken(
        "port_out_of_range",
        move_ports(5000),
        ("port 5000 is out of range", "ports 0 to 1023", "'ports'"),
        client_hears_it=False,
    ),
    Broken(
        "garbage",
        lambda f: (f / "config.pbtxt").write_text("platform: 'ensemble' {"),
        ("not a valid model configuration", "1:"),
        client_hears_it=False,
    ),
)
