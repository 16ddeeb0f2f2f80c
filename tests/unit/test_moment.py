"""MOMENT against its formulas around transformers' T5 encoder, alone and in mixed batches with adapters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from support.modal import Served, Task, headed, with_adapter
from support.small import CONTEXT, series
from transformers import T5Config, T5EncoderModel

from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.errors import Refused

PATCH, WIDTH = 4, 32
POSITIONS = CONTEXT // PATCH
T5 = {
    "vocab_size": 50, "d_model": WIDTH, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True,
}  # fmt: skip
CONFIG = {
    "task_name": "reconstruction", "model_name": "MOMENT", "transformer_type": "encoder_only", "d_model": None,
    "seq_len": CONTEXT, "patch_len": PATCH, "patch_stride_len": PATCH, "transformer_backbone": "google/flan-t5-small",
    "t5_config": T5,
}  # fmt: skip


class Plain(torch.nn.Module):
    """One channel at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = torch.nn.Module()
        self.patch_embedding.value_embedding = torch.nn.Linear(PATCH, WIDTH, bias=False)
        self.patch_embedding.mask_embedding = torch.nn.Parameter(torch.zeros(WIDTH))
        self.encoder = T5EncoderModel(T5Config(**{**T5, "is_encoder_decoder": False})).get_encoder()

    def forward(self, values: NDArray[np.float32]) -> torch.Tensor:
        """[whole patches, width] of one channel, NaN where it has no value."""
        known = np.isfinite(values)
        level, spread = values[known].mean(), values[known].std() + 1e-5
        embedding: Any = self.patch_embedding
        made, whole = [], []
        for place in range(POSITIONS):
            piece = values[place * PATCH : (place + 1) * PATCH]
            whole.append(bool(np.isfinite(piece).all()))
            scaled = torch.from_numpy(((piece - level) / spread).astype(np.float32))
            one = embedding.value_embedding(scaled[None])[0] if whole[-1] else embedding.mask_embedding
            angles = [place / 10_000 ** (2 * k / WIDTH) for k in range(WIDTH // 2)]
            made.append(one + torch.tensor([wave(angle) for angle in angles for wave in (math.sin, math.cos)]))
        mask = torch.tensor([whole])
        hidden = self.encoder(inputs_embeds=torch.stack(made)[None], attention_mask=mask.long()).last_hidden_state
        return hidden[0][mask[0]]


def make_moment(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = Plain()
        for parameter in plain.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    head = {"head.linear.weight": torch.zeros(PATCH, WIDTH), "head.linear.bias": torch.zeros(PATCH)}
    save_file({**plain.state_dict(), **head}, folder / "model.safetensors")
    return folder


def plain_of(folder: Path) -> Plain:
    plain = Plain()
    weights = load_file(folder / "model.safetensors")
    plain.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("head.")})
    return plain.eval()


def row_of(values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    return {"series": np.nan_to_num(values)[None], "observed": np.isfinite(values)[None]}


LORA = {"r": 3, "target_modules": ["q", "v", "wo", "value_embedding"]}
TASKS = {
    1: Task(encoder={"observed": True}),
    2: Task(pooling="each:mean+last", encoder={"channels": 2, "observed": True}, lora=LORA),
    3: Task("regression", 2, "mean+max", {"r": 2, "use_dora": True, "target_modules": ["k", "wi_0"]},
            encoder={"observed": True}),
    4: Task("embedding", pooling="none", head="identity", encoder={"observed": True, "channels": 1}),
}  # fmt: skip


def test_parity_alone_and_mixed(tmp_path: Path) -> None:
    folder = make_moment(tmp_path / "backbone")
    plain = plain_of(folder)
    served = Served(tmp_path, folder)
    versions = {number: served.put(number, task, plain) for number, task in TASKS.items()}
    rows = {}
    for number, task in TASKS.items():
        for seed in range(3):
            values = series(10 * number + seed, task.encoder.get("channels", 2), (CONTEXT, 20, 45)[seed])
            values[0, 5] = np.nan  # its patch does not count
            rows[number, seed] = values
    sent = [(number, row_of(values)) for (number, _), values in rows.items()]
    for ((number, seed), values), row, answer in zip(rows.items(), sent, served.answers(sent), strict=True):
        model, pooling = with_adapter(plain, versions[number]), TASKS[number].pooling
        seen = values[:, -CONTEXT:]
        with torch.inference_mode():
            padded = np.pad(seen, ((0, 0), (CONTEXT - seen.shape[1], 0)), constant_values=np.nan)
            channels = [model(channel) for channel in padded]
        if pooling == "none":
            answer = answer[np.isfinite(padded).reshape(POSITIONS, PATCH).all(1)]
            pooled = channels[0]
        elif pooling.startswith("each:"):
            pooled = torch.cat([torch.cat([channel.mean(0), channel[-1]]) for channel in channels])
        else:
            both = torch.cat(channels)
            pooled = torch.cat([both.mean(0), both.amax(0)]) if "max" in pooling else both.mean(0)
        wanted = headed(versions[number], served.artifacts[number], pooled)
        np.testing.assert_allclose(answer, wanted, atol=2e-5, rtol=2e-5, err_msg=f"{number} {seed}")
        if pooling != "none":
            np.testing.assert_allclose(served.answers([row])[0], wanted, atol=2e-5, rtol=2e-5)


def test_a_channel_without_a_whole_patch_has_no_answer(tmp_path: Path) -> None:
    backbone = load_backbone(str(make_moment(tmp_path / "backbone")), "fp32", "cpu")
    values, known = np.zeros((2, CONTEXT), np.float32), np.ones((2, CONTEXT), bool)
    known[1, ::PATCH] = False
    with torch.inference_mode():
        features = backbone.forward(backbone.collate([{"series": values, "observed": known}]))
    assert features.hidden.isfinite().all(-1).all(-1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_stride_len": 2}, "patch_stride_len is 2; served is 4"),
        ({"transformer_type": "encoder_decoder"}, "transformer_type is 'encoder_decoder'; served is 'encoder_only'"),
        ({"seq_len": 30}, "seq_len 30 is not a multiple of patch_len 4"),
        ({"t5_config": None}, "config.json is none of MOMENT's"),
        ({"t5_config": {**T5, "num_layers": 3}}, r"its weights lack 'encoder\.block\.2"),
        ({"t5_config": {**T5, "d_ff": 32}}, "size mismatch"),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        load_backbone(str(make_moment(tmp_path / "backbone", **changes)), "fp32", "cpu")
