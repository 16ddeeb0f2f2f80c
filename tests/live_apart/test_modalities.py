"""Text, images, sound and series behind one tritonserver, several vFMs each, over HTTP and gRPC; and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from support.live import LiveServer, serve, wait_for
from support.modal import Served, Task, answers_of, write_task
from support.recipes import Recipe, write_vfm
from support.served import run
from support.small import QV, file_of, make_fracast, make_patchtst, make_vision, make_whisper, picture, series, sound
from support.tiny import make_fm_repository, make_tiny_bert
from tritonclient.utils import InferenceServerException

from fmplex_backend.messages import RunBatch
from fmplex_backend.repository.artifact import STEPWISE, Artifact
from fmplex_backend.repository.config import CONFIG_FILE, write_config
from fmplex_client import Anomaly, Client, Embedding, FMplexClientError, Forecast, Imputation
from fmplex_tools.tasks import backbone as training
from fmplex_tools.tasks.artifact_writer import write_golden
from fmplex_tools.tasks.golden import make_golden
from fmplex_tools.tasks.publish import vfm_ensemble
from fmplex_tools.tasks.rows import Sound

pytestmark = pytest.mark.live
LORA = {"r": 4, "target_modules": QV}
EMBEDDING = Task("embedding", pooling="mean", head="identity", normalize=True)
TASKS: dict[str, dict[str, Task]] = {
    "vision": {
        "image_class": Task(),
        "image_lora": Task(outputs=4, pooling="cls+mean", lora=LORA),
        "image_vector": EMBEDDING,
        "image_patches": Task("token_classification", 4, pooling="none"),
        "image_pixels": Task(encoder={"pixels": True}),
    },
    "hearing": {
        "sound_class": Task(pooling="mean+std"),
        "sound_lora": Task(outputs=2, lora=LORA, encoder={"seconds": 0.5}),
        "sound_vector": EMBEDDING,
    },
    "foresight": {
        "series_class": Task(pooling="mean+levels"),
        "series_lora": Task(outputs=2, pooling="each:mean", encoder={"channels": 2}, lora=LORA),
        "series_mixed": Task(
            pooling="each:mean", encoder={"channels": 2, "mix": {"weight": [[0.5, 1.0], [1.0, -1.0], [1.0, 0.0]]}}
        ),
        "series_gaps": Task("regression", 1, encoder={"observed": True}),
        "series_vector": EMBEDDING,
    },
    "fracast": {
        "next_steps": Task("forecast", pooling="none", head="native", horizon=4, labels=("0.1", "0.5", "0.9")),
        "next_learnt": Task("forecast", pooling="last+mean", horizon=5, labels=("0.2", "0.8")),
        "filled": Task("imputation", pooling="none", encoder={"observed": True, "backwards": True}),
        "oddness": Task("anomaly", pooling="none", encoder={"backwards": True}),
        "next_state": Task(pooling="mean+last+levels", lora={"r": 2, "target_modules": ["pw", "up"]}),
    },
}
ROWS: dict[str, list[Any]] = {
    "vision": [picture(0), picture(1, 60, 90), picture(2)],
    "hearing": [(sound(0, 0.4), 16_000), (sound(1, 0.7), 16_000), (sound(2, 0.4), 16_000)],
    "foresight": [series(0, 2, 20), series(1, 2, 40), series(2, 2, 20)],
    "fracast": [series(0, 1, 50), series(1, 3, 50), series(2, 1, 70)],
}


def rows_for(fm: str, task: Task) -> list[Any]:
    """As a client has them."""
    if fm == "vision" and not task.encoder.get("pixels"):
        return [file_of(image) for image in ROWS[fm]]
    return ROWS[fm]


class Site:
    """A repository with a physical FM of each modality, and what their vFMs must answer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository = folder, folder / "repository"
        self.repository.mkdir()
        self.expected: dict[str, list[np.ndarray[Any, Any]]] = {}
        self.text = make_tiny_bert(folder / "bert")
        make_fm_repository(self.repository, "reading", self.text)
        write_vfm(self.repository, "text_class", 0, Recipe(outputs=3), self.text, fm="reading")
        made = {
            "vision": make_vision(folder / "dinov2", "dinov2"),
            "hearing": make_whisper(folder / "whisper"),
            "foresight": make_patchtst(folder / "patchtst"),
            "fracast": make_fracast(folder / "fracast-0", head=True),
        }
        for fm, backbone in made.items():
            make_fm_repository(self.repository, fm, backbone)
            self._fill(fm, Served(folder / fm, backbone), training.Backbone(str(backbone)))

    def _fill(self, fm: str, served: Served, backbone: training.Backbone) -> None:
        for port, (name, task) in enumerate(TASKS[fm].items()):
            version = served.put(port, task, served.backbone.model)
            artifact = served.artifacts[port]
            rows = rows_for(fm, task)
            own = [Sound(*row) if fm == "hearing" else row if fm == "vision" else np.asarray(row) for row in rows]
            golden = make_golden(version, artifact, backbone, own)
            assert golden is not None
            write_golden(version, golden)
            encoded = backbone.encode(own, None, artifact.encoder)
            done = served.worker.run(RunBatch(1, [port] * len(own), encoded.tokens))
            self.expected[name] = answers_of(done, len(own))
            if task.kind in STEPWISE:
                self.expected[name] = [x[:, -row.shape[1] :] for x, row in zip(self.expected[name], own, strict=True)]
            target = self.repository / name
            target.mkdir()
            shutil.copytree(version, target / "1")
            width = self.expected[name][0].shape[-1]
            write_config(target / CONFIG_FILE, vfm_ensemble(fm, port, artifact, width, 8, {}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("modalities"))


@pytest.fixture(scope="module")
def live(site: Site) -> Iterator[LiveServer]:
    with serve(site.repository, site.text) as server, grpc.InferenceServerClient(server.grpc) as triton:
        for name in ("text_class", *(name for tasks in TASKS.values() for name in tasks)):
            wait_for(lambda name=name: triton.is_model_ready(name), f"{name!r} is ready")
        yield server


def numbers(answer: Any) -> np.ndarray[Any, Any]:
    if isinstance(answer, Embedding):
        return np.asarray(answer.vector)
    if isinstance(answer, Anomaly):
        assert answer.scores is not None
        assert answer.score == pytest.approx(answer.scores.max())
        return answer.scores
    return np.asarray(answer.logits if hasattr(answer, "logits") else answer.values)


def test_each_is_asked_for_its_health_by_a_row_that_it_reads(live: LiveServer) -> None:
    def examined() -> dict[str, Any] | None:
        told = run("health", "--url", live.http, "--metrics", live.metrics, "--timeout", "60", "--json")
        found = {line["fm"]: line for line in map(json.loads, told.stdout.splitlines())}
        assert told.returncode == 0, told.stdout
        return found if {*TASKS} <= found.keys() else None

    found = wait_for(examined, "all physical FMs have told metrics")
    assert all(line["ok"] and line["vfm"] for line in found.values())
    named = run("health", "image_lora", "sound_class", "series_gaps", "--url", live.http, "--timeout", "60")
    assert named.returncode == 0, named.stdout


def test_forecasts_tell_their_quantiles(live: LiveServer) -> None:
    with Client(live.grpc, "grpc", timeout=120) as client:
        answers = client.predict("next_steps", ROWS["fracast"], expect=Forecast)
    assert [answer.values.shape for answer in answers] == [(1, 4, 3), (3, 4, 3), (1, 4, 3)]
    assert answers[0].quantiles == (0.1, 0.5, 0.9)
    np.testing.assert_array_equal(answers[1].median, answers[1].values[..., 1])


def test_gaps_are_filled_and_nothing_else(live: LiveServer) -> None:
    row = ROWS["fracast"][1].copy()
    row[1, 10:14] = np.nan
    with Client(live.http, timeout=120) as client:
        [answer] = client.predict("filled", [row], expect=Imputation)
    known = np.isfinite(row)
    np.testing.assert_array_equal(answer.values[known], row[known])
    assert np.isfinite(answer.values).all()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_every_modality_answers_as_it_must(live: LiveServer, site: Site, protocol: Any) -> None:
    """All at once, from several clients; each also passed its golden rows when it was loaded."""
    asked = [(fm, name, task) for fm, tasks in TASKS.items() for name, task in tasks.items()]
    with Client(getattr(live, protocol), protocol, timeout=120) as client, ThreadPoolExecutor(8) as pool:

        def ask(fm: str, name: str, task: Task) -> tuple[str, list[Any]]:
            return name, client.predict(name, rows_for(fm, task))

        for name, answers in pool.map(lambda one: ask(*one), asked * 3):
            for answer, wanted in zip(answers, site.expected[name], strict=True):
                np.testing.assert_allclose(numbers(answer), wanted, atol=1e-4, err_msg=name)
        assert len(client.predict("text_class", ["good film", "bad"])) == 2


def test_the_status_tells_the_modality_and_every_version_was_checked(live: LiveServer) -> None:
    with Client(live.http) as client:
        modalities = {fm: client.status(fm) for fm in ("reading", *TASKS)}
    assert {fm: status["modality"] for fm, status in modalities.items()} == {
        "reading": "text", "vision": "image", "hearing": "audio", "foresight": "series", "fracast": "series",
    }  # fmt: skip
    for fm, tasks in TASKS.items():
        records = {vfm["name"]: vfm for vfm in modalities[fm]["vfms"]}
        assert {name: records[name]["state"] for name in tasks} == dict.fromkeys(tasks, "serving")
        assert all(records[name]["golden"] for name in tasks)


def infer(client: Any, name: str, **tensors: tuple[Any, str]) -> Any:
    inputs = []
    for key, (array, kind) in tensors.items():
        tensor = grpc.InferInput(key, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return client.infer(name, inputs, client_timeout=60)


def bytes_of(*values: bytes) -> tuple[Any, str]:
    return np.array([[value] for value in values], object), "BYTES"


def floats(*values: Any) -> tuple[Any, str]:
    return np.array(values, np.float32), "FP32"


RATE = (np.array([[16_000]], np.int32), "INT32")
BAD: list[tuple[str, dict[str, tuple[Any, str]], str]] = [
    ("image_class", {"image": bytes_of(b"nothing of the kind")}, "row 0: image is no image"),
    ("image_class", {"image": bytes_of(file_of(picture(0))[:300])}, "row 0: image cannot be decoded"),
    ("image_class", {"image": bytes_of(file_of(picture(0)), b"")}, "row 1: image is empty"),
    ("image_class", {"text": bytes_of(b"a text")}, "text"),
    ("image_pixels", {"pixels": (np.zeros((1, 4, 4, 4), np.uint8), "UINT8")}, "pixels"),
    ("sound_class", {"audio": floats([0.1, np.nan]), "sample_rate": RATE}, "row 0: audio is nan at sample 1"),
    (
        "sound_class",
        {"audio": floats([0.1]), "sample_rate": (np.array([[8000]], np.int32), "INT32")},
        "sample_rate is 8000; the backbone hears 16000",
    ),
    ("series_class", {"series": floats([[1.0, np.nan]])}, "row 0: series is nan at channel 0, step 1"),
    ("series_class", {"series": (np.zeros((1, 2, 0), np.float32), "FP32")}, ""),
    ("series_lora", {"series": floats([[1.0, 2.0]])}, "has 1 channels; it has 2"),
    (
        "series_gaps",
        {"series": floats([[1.0, 2.0]]), "observed": (np.zeros((1, 1, 2), bool), "BOOL")},
        "row 0: series has no value at all in channel 0",
    ),
]


@pytest.mark.parametrize(("name", "tensors", "says"), BAD)
def test_bad_input_is_told_and_disturbs_nobody(
    live: LiveServer, site: Site, name: str, tensors: dict[str, tuple[Any, str]], says: str
) -> None:
    with grpc.InferenceServerClient(live.grpc) as client:
        with pytest.raises(InferenceServerException) as caught:
            infer(client, name, **tensors)
        assert says in str(caught.value)
    with Client(live.http, timeout=120) as good:
        fm, task = next((fm, tasks[name]) for fm, tasks in TASKS.items() if name in tasks)
        for answer, wanted in zip(good.predict(name, rows_for(fm, task)), site.expected[name], strict=True):
            np.testing.assert_allclose(numbers(answer), wanted, atol=1e-4)


def test_a_vfm_of_another_modality_is_refused_by_name(live: LiveServer, site: Site) -> None:
    """Published on the wrong physical FM: its backbone's fingerprint is another one."""
    target = site.repository / "astray"
    staged = site.folder / "astray"
    shutil.copytree(site.repository / "image_class", staged)
    artifact = Artifact.model_validate_json((staged / "1" / "vfm.json").read_text())
    write_config(staged / CONFIG_FILE, vfm_ensemble("hearing", 9, artifact, 3, 8, {}))
    staged.rename(target)
    try:
        with Client(live.http) as client:

            def refused() -> str | None:
                records = {vfm["name"]: vfm for vfm in client.status("hearing")["vfms"]}
                return records.get("astray", {}).get("reason") or None

            assert "trained on backbone" in wait_for(refused, "it is refused")
            wait_for(lambda: "astray" in [task.name for task in client.tasks()], "Triton has polled it")
            with pytest.raises(FMplexClientError, match=r"vFM 'astray'.*trained on backbone"):
                client.predict("astray", [file_of(picture(0))])
    finally:
        shutil.rmtree(target)


def test_write_task_is_what_is_served(site: Site, tmp_path: Path) -> None:
    """The files in the repository are those that training would write: the same task gives the same bytes."""
    served = Served(tmp_path / "again", site.folder / "dinov2")
    write_task(tmp_path / "v", TASKS["vision"]["image_class"], served.backbone, served.backbone.model, seed=0)
    one, two = (path / "head.safetensors" for path in (tmp_path / "v", site.repository / "image_class" / "1"))
    assert one.read_bytes() == two.read_bytes()
