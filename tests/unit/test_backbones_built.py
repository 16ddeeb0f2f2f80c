"""Weights that packages carry in other forms: what is read is what was written, and what is not whole is refused."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save
from support.small import whisper_config
from transformers import AutoModel, BertConfig, BertModel, WhisperModel
from typer.testing import CliRunner

from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.backbones.source import BUILT_PREFIX, built_dir, resolve
from fmplex_backend.errors import NotFound, Refused
from fmplex_tools.backbones import converters
from fmplex_tools.backbones.ctranslate2_file import read_ctranslate2
from fmplex_tools.backbones.known import BUILT, build
from fmplex_tools.backbones.onnx_file import read_onnx
from fmplex_tools.cli import app


def write_onnx(path: Path, model: Any, prefix: str, *, quantized: bool = False) -> None:
    """As PyTorch's exporter does: linear weights transposed, under names of the exporter's own."""
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    constants, nodes = [], []
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        array, module = tensor.numpy(), name.rpartition(".")[0]
        if not (module in linear and name.endswith(".weight")):
            constants.append(numpy_helper.from_array(array, prefix + name))
            continue
        own, kind = f"onnx::MatMul_{number}", "MatMul"
        array = np.ascontiguousarray(array.T)
        if quantized:
            scale = np.float32(np.abs(array).max() / 127)
            whole = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
            constants.append(numpy_helper.from_array(np.array(scale), f"{own}_scale"))
            constants.append(numpy_helper.from_array(np.array(0, np.int8), f"{own}_zero_point"))
            own, array, kind = f"{own}_quantized", whole, "MatMulInteger"
        constants.append(numpy_helper.from_array(array, own))
        where = "/" + (prefix + module).replace(".", "/")
        nodes.append(helper.make_node(kind, ["x", own], [f"y{number}"], name=f"{where}/MatMul"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    save(helper.make_model(helper.make_graph(nodes, "graph", [x], [x], constants)), str(path))


def small_bert() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
        return BertModel(config, add_pooling_layer=False).eval()


@pytest.mark.parametrize("prefix", ["", "bert.", "model.0.auto_model."])
def test_onnx(tmp_path: Path, prefix: str) -> None:
    model = small_bert()
    write_onnx(tmp_path / "model.onnx", model, prefix)
    found = read_onnx(tmp_path / "model.onnx", ("model.0.auto_model.", "bert.", ""))
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)


def test_onnx_of_eight_bits(tmp_path: Path) -> None:
    model = small_bert()
    write_onnx(tmp_path / "model.onnx", model, "", quantized=True)
    found = read_onnx(tmp_path / "model.onnx", ("",))
    name = "encoder.layer.1.output.dense.weight"
    wanted = model.state_dict()[name].numpy()
    assert 0 < np.abs(found[name] - wanted).max() <= np.abs(wanted).max() / 254 * 1.01


def test_a_bert_with_its_tokenizer(tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BertConfig(hidden_size=384, num_hidden_layers=1, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config, add_pooling_layer=False)
    write_onnx(tmp_path / "model.onnx", model, "bert.")
    converters.bert(tmp_path / "model.onnx", tiny_backbone, tmp_path / "made", layers=1, max_length=40)
    backbone = load_backbone(str(tmp_path / "made"), "fp32", "cpu")
    assert backbone.facts.max_length == 40
    ids = torch.arange(8).view(1, 8)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.model(ids).last_hidden_state, model.eval()(ids).last_hidden_state)
    with pytest.raises(Refused, match=r"the weights lack \['encoder.layer.1"):
        converters.bert(tmp_path / "model.onnx", tiny_backbone, tmp_path / "more", layers=2, max_length=40)


def write_ctranslate2(path: Path, tensors: dict[str, np.ndarray[Any, Any]], version: int = 6) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, array in tensors.items():
        kind = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.float16): 4}[array.dtype]
        data += text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        data += struct.pack("<BI", kind, array.nbytes) + array.tobytes()
    path.write_bytes(data + struct.pack("<I", 0))


def as_ctranslate2(encoder: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A Whisper encoder's weights under CTranslate2's names, in 16 bits."""
    state = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    found = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}
    for name in ("weight", "bias"):
        for conv in (1, 2):
            found[f"encoder/conv{conv}/{name}"] = state[f"conv{conv}.{name}"]
    norms = {"layer_norm": "encoder/layer_norm"}
    for layer in range(len(encoder.layers)):
        to, of = f"encoder/layer_{layer}/", f"layers.{layer}."
        for name in ("weight", "bias"):
            keys = state.get(f"{of}self_attn.k_proj.{name}", np.zeros(encoder.config.d_model, np.float32))
            whole = [state[f"{of}self_attn.q_proj.{name}"], keys, state[f"{of}self_attn.v_proj.{name}"]]
            found[f"{to}self_attention/linear_0/{name}"] = np.concatenate(whole)
            found[f"{to}self_attention/linear_1/{name}"] = state[f"{of}self_attn.out_proj.{name}"]
            for number in (0, 1):
                found[f"{to}ffn/linear_{number}/{name}"] = state[f"{of}fc{number + 1}.{name}"]
        norms[f"{of}self_attn_layer_norm"] = f"{to}self_attention/layer_norm"
        norms[f"{of}final_layer_norm"] = f"{to}ffn/layer_norm"
    for of, to in norms.items():
        found[f"{to}/gamma"], found[f"{to}/beta"] = state[f"{of}.weight"], state[f"{of}.bias"]
    return {name: array.astype(np.float16) for name, array in found.items()}


def test_whisper(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = whisper_config(1500)
        config.num_mel_bins, config.encoder_ffn_dim = 80, 128
        encoder = WhisperModel(config).encoder.eval().half().float()
    write_ctranslate2(tmp_path / "model.bin", {**as_ctranslate2(encoder), "odd": np.zeros(3, np.int8)})
    data = (tmp_path / "model.bin").read_bytes()
    halves = [tmp_path / "one", tmp_path / "two"]
    for path, part in zip(halves, (data[:999], data[999:]), strict=True):
        path.write_bytes(part)
    converters.whisper(halves, tmp_path / "made", width=32, layers=2, heads=4)
    backbone = load_backbone(str(tmp_path / "made"), "fp32", "cpu")
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(backbone.model.state_dict()[name], tensor)


@pytest.mark.parametrize("size", [0, 3, 40, 4000])
def test_files_that_are_cut(tmp_path: Path, size: int) -> None:
    write_ctranslate2(tmp_path / "model.bin", {"a": np.ones((40, 40), np.float32)})
    (tmp_path / "cut.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:size])
    with pytest.raises(Refused, match=r"cut\.bin: no model of CTranslate2"):
        read_ctranslate2([tmp_path / "cut.bin"])
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x07 not a model at all"[: size or 1])
    with pytest.raises(Refused, match=r"cut\.onnx"):
        read_onnx(tmp_path / "cut.onnx", ("",))


def test_a_zip_in_pieces(tmp_path: Path, tiny_backbone: Path) -> None:
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for path in tiny_backbone.iterdir():
            archive.write(path, f"model/{path.name}")
        archive.writestr("other/config.json", "{}")
    data = (tmp_path / "whole.zip").read_bytes()
    parts = [tmp_path / f"part{number}" for number in range(3)]
    for number, part in enumerate(parts):
        part.write_bytes(data[number * len(data) // 3 : (number + 1) * len(data) // 3])
    converters.joined_zip(parts, "model", tmp_path / "made")
    assert type(AutoModel.from_pretrained(tmp_path / "made")).__name__ == "BertModel"


def test_names() -> None:
    assert set(BUILT) == {built.name for built in BUILT.values()}
    with pytest.raises(NotFound, match="no backbone 'nothing' can be built; there is answerai"):
        build("nothing")
    with pytest.raises(NotFound, match=r"'built:nothing': it is not in .*run `fmplex fetch`"):
        resolve(BUILT_PREFIX + "nothing")
    for name in ("../x", "A", ""):
        with pytest.raises(Refused, match="write built:NAME"):
            built_dir(name)


def test_the_list_of_what_can_be_built() -> None:
    done = CliRunner().invoke(app, ["fetch", "--list"], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    for name in BUILT:
        assert f"built:{name}" in done.output
    assert len(BUILT) >= 16
