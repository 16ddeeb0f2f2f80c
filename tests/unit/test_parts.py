"""Channels mixed before the backbone, heads with an inner layer, and folders with the parts of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from support.modal import Served, Task
from support.small import STEPS, make_fracast, make_patchtst, series
from support.tiny import make_fm_repository
from typer.testing import CliRunner

from fmplex_backend.encoders.series import SeriesEncoder
from fmplex_backend.errors import InvalidInput, Refused
from fmplex_backend.repository.artifact import Artifact, BackboneRef
from fmplex_backend.repository.config import fm_settings
from fmplex_backend.repository.modalities import SeriesSpec
from fmplex_tools.task_cli import app
from fmplex_tools.tasks import backbone as training
from fmplex_tools.tasks.api import create_task
from fmplex_tools.tasks.artifact_writer import write_artifact
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.importing import ImportOptions, import_task
from fmplex_tools.tasks.options import TaskOptions

Array = NDArray[Any]
MIX = {"weight": [[0.5, -1.0, 2.0], [1.0, 1.0, 0.0]], "bias": [3.0, -2.0]}
TARGETS = ["pw", "up"]


def test_a_mix_is_what_the_backbone_sees(tmp_path: Path) -> None:
    """The rows of a vFM with a mix are answered as those that were mixed beforehand are without."""
    served = Served(tmp_path, make_patchtst(tmp_path / "backbone"))
    own = served.backbone.model
    served.put(1, Task("regression", 2, "each:mean+levels", encoder={"channels": 3, "mix": MIX}), own)
    version = served.folder / "plain"
    version.mkdir()
    plain = served.artifacts[1].model_copy(update={"encoder": SeriesSpec(channels=2)})
    write_artifact(version, plain)
    (version / "head.safetensors").write_bytes((served.folder / "1" / "head.safetensors").read_bytes())
    served.load(2, version)
    values = [series(seed, 3, 20 + seed) for seed in range(3)]
    mixed = [np.array(MIX["weight"], np.float32) @ x + np.array(MIX["bias"], np.float32)[:, None] for x in values]
    ours = served.answers([(1, {"series": x[None]}) for x in values])
    theirs = served.answers([(2, {"series": x[None].astype(np.float32)}) for x in mixed])
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-4, atol=1e-4)


def test_steps_without_all_values_have_none(tmp_path: Path) -> None:
    served = Served(tmp_path, make_fracast(tmp_path / "backbone"))
    encoder = SeriesEncoder(served.backbone.facts.input)  # type: ignore[arg-type]
    spec = SeriesSpec.model_validate({"channels": 3, "mix": MIX, "observed": True})
    known = np.ones((1, 3, 6), bool)
    known[0, 1, 2] = False
    [row] = encoder.encode(spec, {"series": np.ones((1, 3, 6), np.float32), "observed": known})
    assert row.tokens["observed"][:, -6:].tolist() == [[True, True, False, True, True, True]] * 2
    assert row.tokens["series"][:, -1].tolist() == [4.5, 0.0]
    known[0, 0, :3], known[0, 1, 3:] = False, False
    with pytest.raises(InvalidInput, match="row 0: series has no step at which every channel has a value"):
        encoder.encode(spec, {"series": np.ones((1, 3, 6), np.float32), "observed": known})


@pytest.mark.parametrize(
    ("encoder", "kind", "says"),
    [
        ({"channels": 2, "mix": MIX}, {}, "'mix' takes 3 channels, so 'channels' must say so"),
        ({"channels": 3, "mix": {"weight": [[1.0, 2.0], [1.0]]}}, {}, "all of one length"),
        ({"channels": 3, "mix": {**MIX, "bias": [1.0]}}, {}, "'bias' has 1 numbers, and 'weight' makes 2 channels"),
        ({"channels": 3, "mix": MIX}, {"kind": "anomaly", "pooling": "none", "labels": None}, "no 'encoder.mix'"),
    ],
)
def test_mixes_that_are_none(encoder: dict[str, Any], kind: dict[str, Any], says: str) -> None:
    made = {
        "kind": "classification",
        "pooling": "mean",
        "labels": ["a", "b"],
        "backbone": BackboneRef(name="x", fingerprint="sha256:" + "0" * 64),
        "encoder": {"modality": "series", **encoder},
    }
    with pytest.raises(ValueError, match=says):
        Artifact.model_validate(made | kind)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "repository").mkdir()
    return make_fm_repository(folder / "repository", "fracast", make_fracast(folder / "backbone"))


def states(rows: int = 60) -> Examples:
    """Six channels that all follow one of two hidden ones; the label is which."""
    rng, at = np.random.default_rng(0), np.arange(STEPS)
    made, labels = [], []
    for row in range(rows):
        fast = row % 2
        wave = np.sin(2 * np.pi * at / (5 + 11 * fast) + rng.uniform(0, 6))
        values = rng.uniform(1, 4, (6, 1)) * wave + 0.1 * rng.standard_normal((6, STEPS))
        made.append(values.astype(np.float32))
        labels.append(("slow", "fast")[fast])
    return Examples(rows=tuple(made), labels=tuple(labels), label_name="state", source="states")


def test_a_mix_and_an_mlp_are_learnt(repository: Path, tmp_path: Path) -> None:
    options = TaskOptions(encoder=SeriesSpec(channels=6), mix=2, head="mlp", pooling="each:max+std+last")
    result = create_task(repository, "state", states(), options, fm="fracast")
    artifact = result.artifact
    assert isinstance(artifact.encoder, SeriesSpec)
    assert artifact.encoder.mix is not None
    assert (artifact.head, len(artifact.encoder.mix.weight)) == ("mlp", 2)
    assert artifact.quality is not None
    assert artifact.quality.value >= 0.9
    served = Served(tmp_path, Path(fm_settings(repository / "fracast").backbone))
    served.load(1, repository / "state" / "1")
    rows = states().rows
    found = np.array(served.answers([(1, {"series": row[None]}) for row in rows])).argmax(1)
    right = found == np.array([artifact.labels.index(label) for label in states().labels or ()])  # type: ignore[union-attr]
    assert right.mean() >= 0.9


@pytest.mark.parametrize(
    ("mix", "channels", "says"),
    [(6, 6, "--mix 6: the series have 6 channels; mix them into fewer"), (2, None, "all have the same number")],
)
def test_mixes_that_cannot_be_learnt(repository: Path, mix: int, channels: int | None, says: str) -> None:
    options = TaskOptions(encoder=SeriesSpec(channels=channels), mix=mix)
    with pytest.raises(InvalidInput, match=says):
        create_task(repository, "no_mix", states(20), options, fm="fracast")


# ---- folders of parts ----


class Fmtk:
    """As FMTK computes: a linear map of the channels, the backbone with its adapter, the mean of all, an MLP."""

    def __init__(self, backbone: training.Backbone, folder: Path, *, adapter: bool) -> None:
        torch.manual_seed(0)
        self.backbone, self.combine = backbone, torch.nn.Linear(3, 2)
        width = backbone.facts.hidden_size
        self.net = torch.nn.Sequential(torch.nn.Linear(width, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))
        self.model: Any = None
        folder.mkdir()
        for part, prefix, module in (("encoder", "model", self.combine), ("decoder", "net", self.net)):
            state = {f"{prefix}.{name}": tensor.numpy() for name, tensor in module.state_dict().items()}
            save_file(state, folder / f"{part}.safetensors")
        if adapter:
            config = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=TARGETS, init_lora_weights=False)
            self.model = get_peft_model(backbone.fresh_model(), config).eval()
            self.model.save_pretrained(folder / "adapter", save_embedding_layers=False)

    @torch.inference_mode()
    def __call__(self, row: Array) -> Array:
        mixed = self.combine(torch.from_numpy(row.T)).T.numpy()
        encoded = self.backbone.encode([mixed], None, SeriesSpec())
        return self.net(self.backbone.forward(encoded, [0], self.model).pooled("mean")[0]).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("adapter", [False, True])
def test_parts_answer_as_they_did(repository: Path, tmp_path: Path, adapter: bool) -> None:
    backbone = training.load_backbone(repository, "fracast")
    plain = Fmtk(backbone, tmp_path / "parts", adapter=adapter)
    name = f"parts_{adapter}".lower()
    options = ImportOptions(labels=("a", "b", "c", "d"))
    result = import_task(repository, name, tmp_path / "parts", options, fm="fracast", backbone=backbone)
    assert (result.artifact.head, result.artifact.adapter) == ("mlp", adapter)
    served = Served(tmp_path, Path(fm_settings(repository / "fracast").backbone))
    served.load(1, repository / name / "1")
    rows = [series(seed, 3, 40) for seed in range(4)]
    for row, answer in zip(rows, served.answers([(1, {"series": row[None]}) for row in rows]), strict=True):
        np.testing.assert_allclose(answer, plain(row), rtol=1e-4, atol=1e-4)


def test_what_scikit_learn_has(repository: Path, tmp_path: Path) -> None:
    backbone = training.load_backbone(repository, "fracast")
    rng, width = np.random.default_rng(0), backbone.facts.hidden_size
    own = {"coef_": rng.normal(size=(1, width)), "intercept_": rng.normal(size=1)}
    scale = {"mean_": rng.normal(size=width), "scale_": rng.uniform(1, 2, width)}
    numbers = {name: array.astype(np.float32) for name, array in (own | scale).items()}
    save_file(numbers, tmp_path / "decoder.safetensors")
    common = {"fm": "fracast", "backbone": backbone}
    import_task(repository, "two", tmp_path, ImportOptions(labels=("no", "yes")), **common)  # type: ignore[arg-type]
    import_task(repository, "one", tmp_path, ImportOptions(kind="regression"), **common)  # type: ignore[arg-type]
    served = Served(tmp_path, Path(fm_settings(repository / "fracast").backbone))
    for number, name in enumerate(("two", "one"), start=1):
        served.load(number, repository / name / "1")
    row = {"series": series(0, 1, 30)[None]}
    logits, value = served.answers([(1, row), (2, row)])
    encoded = backbone.encode([row["series"][0]], None, SeriesSpec())
    pooled = backbone.features(encoded, "mean")[0]
    z = (pooled - numbers["mean_"]) / numbers["scale_"] @ numbers["coef_"][0] + numbers["intercept_"][0]
    np.testing.assert_allclose(logits, [-z / 2, z / 2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(value, [z], rtol=1e-4, atol=1e-4)


def test_parts_that_cannot_be(repository: Path, tmp_path: Path) -> None:
    def refused(says: str, **options: Any) -> None:
        with pytest.raises((Refused, InvalidInput), match=says):
            import_task(repository, "never", tmp_path, ImportOptions(**options), fm="fracast")
        assert not (repository / "never").exists()

    (tmp_path / "decoder.pkl").write_bytes(b"\x80\x04.")
    refused(r"decoder\.pkl: pickled, so it is not read; where you trust it, save its numbers as decoder\.safetensors")
    save_file({"forest": np.zeros(3, np.float32)}, tmp_path / "decoder.safetensors")
    refused(r"holds forest \[3\]; served are an MLP", labels=("a", "b"))
    (tmp_path / "decoder.safetensors").write_bytes(b"nonsense")
    refused("not readable as safetensors", labels=("a", "b"))
    linear = {"coef_": np.zeros((2, 8), np.float32), "intercept_": np.zeros(2, np.float32)}
    save_file(linear, tmp_path / "decoder.safetensors")
    refused("pass --labels A,B,…: names of the decoder's 2 outputs")
    refused("weight has 2 outputs, but vfm.json names 3 labels", labels=("a", "b", "c"))
    refused("--kind embedding: a decoder of one vector a row is", kind="embedding")
    save_file({"weight": np.zeros((2, 2, 2), np.float32)}, tmp_path / "encoder.safetensors")
    refused("served is a linear map, weight", labels=("a", "b"))
    (tmp_path / "encoder.safetensors").unlink()
    (tmp_path / "encoder.pt").write_bytes(b"")
    refused(r"encoder\.pt: pickled, so it is not read", labels=("a", "b"))


def test_parts_from_the_command_line(repository: Path, tmp_path: Path) -> None:
    Fmtk(training.load_backbone(repository, "fracast"), tmp_path / "parts", adapter=False)
    arguments = ["import", "heartbeat", str(tmp_path / "parts"), "--fm", "fracast", "-r", str(repository)]
    done = CliRunner().invoke(app, [*arguments, "--labels", "a,b,c,d"])
    assert done.exit_code == 0, done.output
