"""What `fmplex bench engine` makes of a fleet, how it draws load, and that it finds what is wrong."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.facts import facts_of
from support.reference import Reference
from support.tiny import make_fm_repository
from tritonclient.grpc import service_pb2

from fmplex_backend.errors import InvalidInput, NotFound, Refused
from fmplex_backend.repository.config import CONFIG_FILE, fm_settings, read_config, vfm_config
from fmplex_backend.repository.interface import check_interface
from fmplex_backend.repository.layout import versions
from fmplex_backend.repository.packed import read_version
from fmplex_tools.bench.engine import churn_client, reload
from fmplex_tools.bench.engine.churn_chaos import Chaos, Placed
from fmplex_tools.bench.engine.churn_check import (
    TOLERANCE,
    Answer,
    Checker,
    difference,
    largest_difference,
    least_distance,
)
from fmplex_tools.bench.engine.churn_client import Impatience, make_texts
from fmplex_tools.bench.engine.churn_errors import GRACE, Errors
from fmplex_tools.bench.engine.fleet import Fleet, fleet_of, linear_layers, make_fleet
from fmplex_tools.bench.engine.slots import point_of
from fmplex_tools.bench.engine.slots_report import Curve, Point, SlotsPlan, details_of, draw, figures_of
from fmplex_tools.bench.engine.zipf import popularity, slot_hits
from fmplex_tools.bench.engine.zipf_generator import ZipfGenerator
from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.bench.fair.streams import FAILED, OK, REQUEST, ROW, Stream, Traffic
from fmplex_tools.engine_fleet_cli import numbers_of

FM = "tiny"


@pytest.fixture(scope="module")
def source(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with nothing but the physical FM."""
    return make_fm_repository(tmp_path_factory.mktemp("source"), FM, tiny_backbone, 16)


@pytest.fixture
def fleet(source: Path) -> Fleet:
    return fleet_of(source, FM, rank=4)


# ---- fleet ----


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_made_is_what_is_served(tmp_path: Path, source: Path, tiny_backbone: Path) -> None:
    names = make_fleet(tmp_path, source, FM, 6, rank=4, settings={"max_batch_rows": "8"})
    assert names == [f"vfm{index:04d}" for index in range(6)]
    assert fm_settings(tmp_path / FM).max_batch_rows == 8
    assert (tmp_path / FM / "1").is_dir()
    facts = facts_of(tiny_backbone)
    for port, name in enumerate(names):
        folder = tmp_path / name
        config = vfm_config(name, read_config(folder / CONFIG_FILE), {FM})
        content = read_version(folder / "1", folder, facts, max_rank=4)
        assert config is not None
        assert config.ports == (port,)
        check_interface(config, content, 16)
        assert content.width == 2 + port % 4
        assert content.adapter is not None
        assert content.adapter.a.keys() == {layer for layer in facts.layers if layer.endswith(("query", "value"))}


def test_peft_reads_the_adapters_and_they_matter(tmp_path: Path, source: Path, tiny_backbone: Path) -> None:
    make_fleet(tmp_path, source, FM, 5, rank=4)
    texts = ["good film", "the book is not very good"]
    first, fifth = (tmp_path / f"vfm000{index}" / "1" for index in (0, 4))
    ours, theirs = (np.stack(Reference(folder, tiny_backbone)(texts)) for folder in (first, fifth))
    bare = np.stack(Reference(first, tiny_backbone, adapter=False)(texts))
    assert ours.shape == theirs.shape == (2, 2)
    assert difference(ours, theirs) > 0.1
    assert difference(ours, bare) > 100 * TOLERANCE


def test_weights_follow_from_seed_vfm_and_version(tmp_path: Path, fleet: Fleet) -> None:
    made = {}
    for number, (seed, index, version) in enumerate([(0, 1, 1), (0, 1, 1), (1, 1, 1), (0, 5, 1), (0, 1, 2)]):
        replace(fleet, seed=seed).write_version(tmp_path / str(number), index, version)
        made[number] = digest(tmp_path / str(number))
    assert made[0] == made[1]
    for other in (2, 3, 4):
        for file in ("head.safetensors", "adapter/adapter_model.safetensors"):
            assert made[other][file] != made[0][file]


def test_a_fleet_of_heads(tmp_path: Path, source: Path, tiny_backbone: Path) -> None:
    make_fleet(tmp_path, source, FM, 1, adapter=False, prefix="head")
    content = read_version(tmp_path / "head0000" / "1", tmp_path / "head0000", facts_of(tiny_backbone), 4)
    assert content.adapter is None


def test_a_backbone_inside_the_physical_fm_is_found(tmp_path: Path, tiny_backbone: Path) -> None:
    (tmp_path / "source" / FM).mkdir(parents=True)
    (tmp_path / "source" / FM / "weights").symlink_to(tiny_backbone)
    parameter = 'parameters { key: "backbone" value { string_value: "./weights" } }'
    (tmp_path / "source" / FM / CONFIG_FILE).write_text(f'backend: "fmplex"\nmax_batch_size: 4\n{parameter}\n')
    make_fleet(tmp_path / "made", tmp_path / "source", FM, 1)
    assert Path(fm_settings(tmp_path / "made" / FM).backbone) == tiny_backbone


def test_layers_are_those_of_the_loaded_backbone(tiny_backbone: Path) -> None:
    layers = facts_of(tiny_backbone).layers
    wanted = {name: shape for name, shape in layers.items() if name.endswith(("query", "output.dense"))}
    assert linear_layers(tiny_backbone, ("query", "output.dense")) == wanted
    with pytest.raises(InvalidInput, match="no layer named 'quer'"):
        linear_layers(tiny_backbone, ("quer",))


def test_fleets_that_cannot_be(tmp_path: Path, source: Path) -> None:
    with pytest.raises(NotFound, match="no physical FM 'large'"):
        make_fleet(tmp_path, source, "large", 1)
    with pytest.raises(InvalidInput, match="3 vFMs on physical FM 'tiny', which has 2 ports"):
        make_fleet(tmp_path, source, FM, 3, settings={"ports": "2"})
    with pytest.raises(Refused, match="unknown parameter 'prots'"):
        make_fleet(tmp_path, source, FM, 1, settings={"prots": "2"})


# ---- popularity ----


def test_zipf() -> None:
    parts = popularity(100, 1.0)
    assert parts.sum() == pytest.approx(1)
    assert parts[0] / parts[9] == pytest.approx(10)
    assert list(popularity(4, 0)) == [0.25] * 4
    assert slot_hits(100, 1.0, 100) == pytest.approx(1)
    assert slot_hits(4, 0, 3) == pytest.approx(0.75)
    with pytest.raises(InvalidInput, match="popularity of 0 vFMs"):
        popularity(0, 1.0)


def test_requests_are_drawn_by_popularity() -> None:
    streams = [Stream(name) for name in "abc"]
    generator = ZipfGenerator("nowhere", streams, 1, shares=popularity(3, 1.0).tolist(), rate=1.0, clients=0)
    drawn = Counter(generator._draw() for _ in range(11_000))
    assert [drawn[index] / 1_000 for index in range(3)] == pytest.approx([6, 3, 2], rel=0.1)


def test_numbers_of_vfms() -> None:
    assert numbers_of("64,8,64") == (8, 64)
    for wrong in ("", "8,x", "0,8"):
        with pytest.raises(InvalidInput, match="--counts"):
            numbers_of(wrong)


# ---- slots ----


def requests(*made: tuple[float, float, int]) -> Traffic:
    """``(due, ended, outcome)`` of each."""
    array = np.array([(0, due, due, ended, 1, outcome) for due, ended, outcome in made], REQUEST)
    return Traffic((Stream("a"),), array, np.array([], ROW))


def test_a_phase_counts_its_window_but_all_failures() -> None:
    traffic = requests((0.0, 9.0, OK), (0.5, 0.6, FAILED), (1.0, 1.1, OK), (2.0, 2.3, OK), (3.0, 3.9, OK))
    point = point_of(traffic, 1.0, 3.0)
    assert (point.answered, point.failed) == (2, 1)
    assert point.milliseconds[0] == pytest.approx(200)
    assert point_of(requests((0.0, 0.1, FAILED)), 0.0, 1.0).failed == 1


def curve(p95: float, rate: float, failed: int = 0) -> Curve:
    return Curve([Point((p95 / 2, p95, 2 * p95), 1.0, 10)], [Point((1, 1, 1), rate, 10, failed)])


@pytest.mark.parametrize(
    ("beyond", "most", "missed"),
    [
        (curve(11, 99), curve(19, 80), []),
        (curve(11, 99), curve(21, 80), ["p95 of 9 vFMs"]),
        (curve(14, 99), curve(19, 80), ["p95 with one vFM more"]),
        (curve(11, 89), curve(19, 80), ["rows/s with one vFM more"]),
        (curve(11, 99), curve(19, 80, failed=1), ["requests failed"]),
    ],
)
def test_promises_of_slots(tmp_path: Path, beyond: Curve, most: Curve, missed: list[str]) -> None:
    plan = SlotsPlan(source=tmp_path, counts=(4, 5, 9), slots=4)
    plan.check()
    curves = {4: curve(10, 100), 5: beyond, 9: most}
    bad = [figure.name for figure in figures_of(plan, curves) if figure.good is False]
    assert len(bad) == len(missed)
    assert all(name.startswith(start) for name, start in zip(bad, missed, strict=True))
    details = details_of(plan, curves)
    json.dumps(details)
    assert draw(Outcome(details=details), tmp_path).stat().st_size > 1_000


def test_counts_without_anything_to_compare(tmp_path: Path) -> None:
    for counts in ((8, 64), (65, 1000)):
        with pytest.raises(InvalidInput, match="give the number of slots, 64"):
            SlotsPlan(source=tmp_path, counts=counts).check()


# ---- reload ----


def test_others_with_and_without_changes(tmp_path: Path, fleet: Fleet) -> None:
    quiet = [(second / 10, second / 10 + 0.1, OK) for second in range(50)]
    slow = [(5 + second / 10, 5 + second / 10 + 0.2, OK) for second in range(50)]
    windows = [reload.Window(reload.QUIET, 0.0, 5.0), reload.Window(reload.CHANGING, 5.0, 10.0)]
    changes = reload.Changes(fleet, tmp_path, tmp_path, "nowhere", 1, 8, [0.5, 2.5], ["vfm0009: no answer"])
    outcome = reload.outcome_of(requests(*quiet, *slow), windows, changes)
    figures = {figure.name: figure for figure in outcome.figures}
    assert figures["p99 with changes, to without"].value == pytest.approx(2)
    bad = [figure.name for figure in outcome.figures if figure.good is False]
    assert bad == [
        "p99 with changes, to without",
        "renamed in until answered, longest",
        "never answered, or by another",
    ]
    json.dumps(outcome.details)


# ---- churn: finding wrong answers ----

REFERENCES = {
    ("a", 1): np.array([[0.0, 1.0], [2.0, 0.0]], np.float32),
    ("a", 2): np.array([[5.0, 1.0], [2.0, 4.0]], np.float32),
    ("b", 1): np.array([[9.0, 8.0], [7.0, 6.0]], np.float32),
}
LABELS = {"a": ("no", "yes"), "b": ("low", "high")}


def answer(asked: str = "a", version: int = 1, texts: tuple[int, ...] = (0, 1), **changed: Any) -> Answer:
    """What that version would answer, but for what is ``changed``."""
    logits = REFERENCES[asked, version][list(texts)]
    labels = tuple(LABELS[asked][row.argmax()] for row in logits)
    infos = tuple({"vfm": asked, "version": version, "generation": version} for _ in texts)
    return replace(Answer(asked, texts, logits, labels, infos), **changed)


def info(vfm: str, version: int, generation: int = 1) -> dict[str, Any]:
    return {"vfm": vfm, "version": version, "generation": generation}


def test_right_answers_are_right() -> None:
    checker = Checker(REFERENCES, LABELS)
    for good in (
        answer(),
        answer("a", 2, (1, 0, 1)),
        answer("b", 1, (1,)),
        answer(logits=REFERENCES["a", 1] + np.float32(TOLERANCE / 2)),
    ):
        assert checker.check(good), checker.details
    assert (checker.requests, checker.rows, checker.wrong) == (4, 8, 0)
    assert checker.deviation == pytest.approx(TOLERANCE / 2, rel=0.01)
    assert checker.by_version == {("a", 1): 2, ("a", 2): 1, ("b", 1): 1}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (answer(logits=REFERENCES["a", 2]), "info names version 1, from which it deviates by 5"),
        (answer(logits=REFERENCES["b", 1]), "closest is version 1 of 'b', at 0"),
        (answer(logits=REFERENCES["a", 1] + np.float32(3 * TOLERANCE)), "deviates by 0.0003"),
        (answer(logits=np.stack([REFERENCES["a", 1][0], REFERENCES["a", 2][1]])), "row 1 is"),
        (answer(logits=np.full((2, 2), np.nan, np.float32)), "deviates by inf"),
        (answer(logits=np.zeros((2, 3), np.float32)), "no vFM has so many outputs"),
        (answer(infos=(info("b", 1), info("b", 1))), "answered by 'b'"),
        (answer(infos=(info("a", 1), info("b", 1))), "answered by 'b'"),
        (answer(infos=(info("a", 1), info("a", 2, 2))), "rows of several generations"),
        (answer(infos=(info("a", 1, 1), info("a", 1, 2))), "rows of several generations"),
        (answer(infos=(info("a", 3), info("a", 3))), "version 3 was never published"),
        (answer(infos=(info("a", 1),)), "rows asked, and of logits, labels and info, are (2, 2, 2, 1)"),
        (answer(labels=("yes", "yes")), "row 1 is labelled 'yes', its largest logit is 'no'"),
    ],
)
def test_wrong_answers_are_found(wrong: Answer, told: str) -> None:
    checker = Checker(REFERENCES, LABELS)
    assert not checker.check(wrong)
    assert checker.wrong == 1
    [detail] = checker.details
    assert "asked 'a' for texts [0, 1]" in detail
    assert told in detail


def test_references_compared() -> None:
    moved = REFERENCES | {("b", 1): REFERENCES["b", 1] + np.float32(0.5)}
    assert largest_difference(REFERENCES, REFERENCES) == 0
    assert largest_difference(REFERENCES, moved) == pytest.approx(0.5)
    assert largest_difference(REFERENCES, {}) == math.inf
    assert least_distance(REFERENCES) == 4  # text 1: versions 1 and 2 of 'a'
    assert least_distance(REFERENCES | {("c", 1): REFERENCES["a", 1]}) == 0


class Failed(Exception):
    """gRPC's error, as far as it is looked at."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "some words"


@pytest.mark.parametrize(
    ("code", "vfm", "impatience", "excused"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, Placed(0, "a", 0), Impatience("deadline", 0.01), True),
        (grpc.StatusCode.CANCELLED, Placed(0, "a", 0), Impatience("timeout", 0.01), True),
        (grpc.StatusCode.CANCELLED, Placed(0, "a", 0), None, False),
        (grpc.StatusCode.INTERNAL, Placed(0, "a", 0), Impatience("cancel", 0.01), False),
        (grpc.StatusCode.UNAVAILABLE, Placed(0, "a", None), None, True),
        (grpc.StatusCode.NOT_FOUND, Placed(0, "a", 0, moved=100 - GRACE / 2), None, True),
        (grpc.StatusCode.NOT_FOUND, Placed(0, "a", 0, {1}, moved=100 - 2 * GRACE), None, False),
        (grpc.StatusCode.NOT_FOUND, Placed(0, "a", 0, moved=100 - 2 * GRACE), None, True),
        (grpc.StatusCode.UNAVAILABLE, Placed(0, "a", 0, {1}), None, False),
        (grpc.StatusCode.INTERNAL, Placed(0, "a", None), None, False),
    ],
)
def test_what_excuses_a_failure(
    code: grpc.StatusCode, vfm: Placed, impatience: Impatience | None, excused: bool
) -> None:
    errors = Errors()
    errors.note(Failed(code), vfm, impatience, sent=100.0)
    assert (errors.allowed.total(), errors.others.total()) == (int(excused), int(not excused))
    assert len(errors.messages) == int(not excused)


def test_how_long_a_replaced_version_answered() -> None:
    vfm = Placed(0, "a", 0, history=[(10.0, 1), (20.0, 2), (30.0, None), (40.0, 1)])
    assert vfm.stale_seconds(2, 25.0) == 0
    assert vfm.stale_seconds(2, 30.5) == 0.5
    assert vfm.stale_seconds(1, 20.5) == 0  # it is served again
    assert vfm.stale_seconds(3, 20.5) == 0  # published this moment, and not noted yet


# ---- churn: what is done, and asked ----


def on_disk(repository: Path) -> dict[str, tuple[tuple[int, ...], list[int]]]:
    """vFM → its ports and versions."""
    found = {}
    for folder in sorted(repository.iterdir()):
        config = vfm_config(folder.name, read_config(folder / CONFIG_FILE), {FM})
        assert config is not None
        found[folder.name] = (config.ports, versions(folder))
    return found


def test_chaos_keeps_the_repository_whole(tmp_path: Path, fleet: Fleet) -> None:
    (repository := tmp_path / "repository").mkdir()
    (beside := tmp_path / "beside").mkdir()
    chaos = Chaos(fleet, repository, beside, 4, 3, seed=1)
    chaos.put_all(1)
    assert on_disk(repository).keys() == chaos.vfms.keys()
    for _ in range(80):
        chaos.step()
        there = {vfm.name: ((vfm.port,), sorted(vfm.versions)) for vfm in chaos.vfms.values() if vfm.port is not None}
        assert on_disk(repository) == there
        assert len({port for port, _ in there.values()}) == len(there) >= 3
        assert not any(beside.iterdir())
    assert chaos.counts.keys() == {"publish", "roll back", "remove", "put back", "edit weight"}
    assert {vfm.port for vfm in chaos.vfms.values()} != set(range(4))
    chaos.put_all(2)
    assert all(there == [1, 2] for _, there in on_disk(repository).values())
    name = min(chaos.vfms)
    fleet.write_version(tmp_path / "again", 0, 2)
    assert digest(repository / name / "2") == digest(tmp_path / "again")


def test_texts_differ_and_have_many_lengths() -> None:
    texts = make_texts(12, 0)
    assert texts == make_texts(12, 0) != make_texts(12, 1)
    lengths = [len(text.split()) for text in texts]
    assert len(set(texts)) == 12
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, churn_client.LONGEST)


def test_a_reply_is_taken_apart() -> None:
    def strings(*values: str) -> bytes:
        return b"".join(struct.pack("<I", len(value)) + value.encode() for value in values)

    reply = service_pb2.ModelInferResponse()
    for name, shape in (("info", (2, 1)), ("logits", (2, 3)), ("label", (2, 1))):
        reply.outputs.add(name=name, shape=shape)
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    infos = [json.dumps(info("a", 1)), json.dumps(info("a", 1))]
    reply.raw_output_contents.extend([strings(*infos), logits.tobytes(), strings("yes", "no")])
    made = churn_client._answer("a", [4, 0], reply)
    assert (made.asked, made.texts, made.labels) == ("a", (4, 0), ("yes", "no"))
    assert np.array_equal(made.logits, logits)
    assert list(made.infos) == [info("a", 1)] * 2


def test_some_clients_give_up() -> None:
    chance = random.Random(0)
    drawn = [churn_client.draw_impatience(chance) for _ in range(2_000)]
    ways = Counter(one.way for one in drawn if one is not None)
    assert ways.keys() == {"deadline", "cancel", "timeout"}
    assert drawn.count(None) == pytest.approx(1_700, rel=0.05)
