"""How `fmplex bench engine` measures: turns, ratios, goals, loads without twins; `mixed` itself on a tiny backbone."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from tritonclient.grpc import service_pb2

from fmplex_backend.errors import InvalidInput
from fmplex_backend.messages import RunBatch
from fmplex_tools.bench.engine import bundle, lone, saturated
from fmplex_tools.bench.engine.adapters import AdapterSpec, peft_model
from fmplex_tools.bench.engine.command import choices, numbers, title
from fmplex_tools.bench.engine.contenders import Field, adapters, bare_vfms
from fmplex_tools.bench.engine.cpu import used_between
from fmplex_tools.bench.engine.gpu import batch_runner
from fmplex_tools.bench.engine.lean import Answered, infos_of, requests_for
from fmplex_tools.bench.engine.limit import Products
from fmplex_tools.bench.engine.mixed import KINDS, Kind, figures_of, measure_mixed
from fmplex_tools.bench.engine.random_bert import make_random_bert
from fmplex_tools.bench.engine.report import SERIES, as_json, number, plots, table
from fmplex_tools.bench.engine.rounds import Ratio, at_least, at_most, interleave, ratio
from fmplex_tools.bench.fair.bench import Figure, Outcome
from fmplex_tools.bench.fair.generator import POOL


def test_everyone_has_a_turn_in_each_round_and_another_begins() -> None:
    now, order = itertools.count(), []

    def contender(name: str) -> float:
        order.append(name)
        return float(len(order))

    ticks: list[float] = []
    times = interleave(
        {name: (lambda name=name: contender(name)) for name in "abc"},
        10,
        on_tick=ticks.append,
        clock=lambda: float(next(now)),
    )
    assert order[:3] == ["a", "b", "c"], "a round that does not count"
    assert "".join(order[3:12]) == "abcbcacab"
    assert len({len(found) for found in times.values()}) == 1
    assert times["a"][0] == 4
    assert ticks == sorted(ticks)
    assert ticks[-1] <= 1


def test_at_least_three_rounds_however_short_the_time() -> None:
    times = interleave({"slow": lambda: 1.0}, 0.001, clock=itertools.count().__next__)
    assert times == {"slow": [1.0] * 3}


def test_ratio_is_of_the_same_round() -> None:
    found = ratio([2.0, 20.0, 3.0], [1.0, 10.0, 2.0])
    assert found == Ratio(median=2.0, of_minima=2.0)
    assert at_most("s", "n", found, 2.0).good is True
    assert at_most("s", "n", found, 1.9).good is False
    assert at_least("s", "n", found, 2.1).good is False
    assert at_least("s", "n", found).good is None


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "1,65"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="--vfms is"):
        numbers(text, "--vfms", 1, 64)


def test_lists_of_options() -> None:
    assert numbers("1,16,16,64", "--vfms", 1, 64) == [1, 16, 64]
    assert choices("bf16,fp32", "--dtypes", ("fp32", "bf16")) == ["bf16", "fp32"]
    with pytest.raises(InvalidInput, match="known are fp32, bf16"):
        choices("fp64", "--dtypes", ("fp32", "bf16"))


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("vfms", [1, 3, 16, 64])
def test_load_saturates_and_has_no_twins(rows: int, vfms: int) -> None:
    streams = saturated.streams_for("v", 32, rows, vfms)
    assert vfms * rows * sum(stream.in_flight for stream in streams) >= saturated.WAITING
    for stream in streams:
        assert POOL % stream.in_flight == 0, "each of its loops keeps to requests of its own"


def reply(infos: dict[str, list[dict[str, int]]]) -> service_pb2.ModelInferResponse:
    made = service_pb2.ModelInferResponse()
    for name, rows in infos.items():
        made.outputs.add(name=name)
        texts = [json.dumps(row).encode() for row in rows]
        made.raw_output_contents.append(b"".join(struct.pack("<I", len(text)) + text for text in texts))
    return made


def test_infos_are_found_among_other_outputs() -> None:
    rows = [{"compute_us": 1}, {"compute_us": 2}]
    assert list(infos_of(reply({"logits": [{}], "info": rows, "spam_info": rows[:1]}))) == [*rows, rows[0]]


def answered(seconds: float, *batches: tuple[int, int, int]) -> Answered:
    """``(queue_us, compute_us, batch_rows)`` of each row."""
    keys = ("queue_us", "compute_us", "batch_rows")
    return Answered(seconds, tuple(dict(zip(keys, batch, strict=True)) for batch in batches))


def test_device_time_counts_a_batch_once() -> None:
    two = answered(0.1, (10, 5000, 2), (20, 5000, 2), (30, 7000, 1))
    assert two.device == pytest.approx(0.012)
    assert two.queue == pytest.approx(30e-6)


def test_requests_ask_for_what_is_wanted() -> None:
    for request in requests_for("v", 8, 0, ("probabilities", "info")):
        assert [output.name for output in request.outputs] == ["probabilities", "info"]
        assert request.inputs[0].shape == [1, 1]


def by_name(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def test_figures_of_lone() -> None:
    times = {"served, 8 tokens": [0.011, 0.012], "bare, 8 tokens": [0.01, 0.01]}
    found = by_name(lone.figures_of(8, times, [answered(0.0115, (200, 10_000, 1))], [0.01]))
    assert found["served / bare"].value == pytest.approx(1.15)
    assert found["served / bare"].good
    assert found["served - bare"].value == pytest.approx(1.5)
    assert found["of served: gRPC, Triton, host, client"].value == pytest.approx(1.3)


def test_figures_of_bundle() -> None:
    one, apart, both = bundle.ONE, bundle.apart(2), bundle.BUNDLE
    times = {one: [0.01], apart: [0.02], both: [0.014]}
    answers = {
        one: [answered(0.01, (1, 8000, 1))],
        apart: [answered(0.02, (1, 8000, 1), (1, 9000, 1))],
        both: [answered(0.014, (1, 8500, 2), (1, 8500, 2))],
    }
    found = [figure for figure in bundle.figures_of(times, answers, 2) if figure.name == "bundle / one request"]
    assert [figure.good for figure in found] == [False, True]
    assert found[1].value == pytest.approx(8.5 / 8)


def test_figures_of_saturated() -> None:
    cpu = used_between({"engine": 1.0, "client": 0.0}, {"engine": 3.0, "client": 1.0}, 1000)
    pairs = [saturated.Pair(saturated.Served(0.01, cpu, n), bare, 0.0) for n, bare in ((0, 0.0095), (1, 0.0085))]
    found = by_name(saturated.figures_of("fp32", 1, 16, pairs))
    assert found["16 vFMs: served / bare"].value == pytest.approx(0.9)
    assert found["16 vFMs: CPU per row"].value == pytest.approx(3000)
    assert "engine 2,000, client 1,000" in found["16 vFMs: CPU per row"].unit
    assert found["16 vFMs: failed requests"].good is False


def test_report(tmp_path: Path) -> None:
    figures = [Figure("a", "x", 1.5, "×", "≤ 1×", False), Figure("b", "[y]", float("nan"))]
    outcome = Outcome(figures, {SERIES: {"a, ms": {"x": [1.0, 2.0], "y": [1.0, 1.5]}}})
    noted = {"cores": 2, "seed": 0, "machine": "a processor", "torch_threads": 2}
    assert title("mixed", noted) == "mixed: a processor, cores 2, torch threads 2, seed 0"
    assert table(outcome, title("mixed", noted)).row_count == 4
    assert json.loads(as_json(outcome, noted))["figures"][0]["good"] is False
    (drawn,) = plots("mixed", outcome, tmp_path)
    assert drawn.name == "engine_mixed_a__ms.png"
    assert drawn.stat().st_size > 1000
    assert [number(x) for x in (2.0, 0.12345, 1234.5, float("inf"))] == ["2", "0.123", "1,234", "–"]


def test_goals_of_mixed() -> None:
    kind = Kind("k", 8, (), one=1.02, many=1.1, peft=2.0)
    times = {
        name: [seconds] * 3
        for name, seconds in {
            "plain forward of the backbone": 1.0,
            bare_vfms(1): 1.0,
            bare_vfms(4): 1.05,
            adapters(1): 1.03,
            adapters(4): 1.1,
            "PEFT, mixed batch": 2.5,
            "a pass per adapter": 4.0,
        }.items()
    }
    found = by_name(figures_of(kind, times, (1, 4)))
    assert found["1 adapter / 1 bare vFM"].good is False
    assert found["4 adapters / 4 bare vFMs"].good is True
    assert found["4 adapters / plain forward"].good is None
    assert found["PEFT, mixed batch / 4 adapters"].good is True


def test_mixed_on_a_tiny_backbone(tiny_backbone: Path) -> None:
    threads = torch.get_num_threads()
    with Progress(disable=True) as progress:
        outcome = measure_mixed(
            str(tiny_backbone), "fp32", "cpu", 6, 8, 0.01, 0, progress, progress.add_task("", total=1)
        )
    assert torch.get_num_threads() == threads
    parts = {figure.scenario for figure in outcome.figures}
    assert {kind.title for kind in KINDS} < parts
    same = [figure for figure in outcome.figures if figure.name == "largest difference, mixed to alone"]
    assert len(same) == 3
    assert all(figure.good for figure in same)
    assert all(f.value < 1e-4 for f in outcome.figures if f.name == "largest difference to PEFT")
    assert all(f.value > 1e-3 for f in outcome.figures if f.name == "largest difference to no adapter")
    json.loads(as_json(outcome, {}))


def test_random_backbone_and_its_products(tmp_path: Path) -> None:
    from fmplex_backend.backbones.registry import load_backbone
    from fmplex_backend.encoders.text import TextEncoder
    from fmplex_backend.repository.modalities import TextSpec

    backbone = load_backbone(str(make_random_bert(tmp_path, small=True)), "fp32", "cpu")
    (row,) = TextEncoder(backbone.facts).encode_texts(TextSpec(), ["the film was good"], None)
    assert row.size == 6
    products = Products(backbone, rows=2, tokens=4)
    per_token = 2 * (4 * 32 * 32 + 2 * 32 * 64)  # 2 layers: 4 square matrices and 2 of the feed-forward part
    assert products.flops == 2 * per_token * 8 + 2 * 4 * 2 * 4 * 4 * 32
    assert products.run() > 0
    field = Field(backbone, load_backbone(str(tmp_path), "fp32", "cpu"), AdapterSpec(2, ("query",)), 3, 4, 0)
    try:
        (tmp_path / "files").mkdir()
        field.load(tmp_path / "files")
        assert batch_runner(field.worker, 3, 4, 2, 0)() > 0
        done = field.worker.run(RunBatch(1, field.generations(3), field.rows))
        assert not any(group.errors for group in done.groups)
    finally:
        field.close()
    assert len(peft_model(backbone, AdapterSpec(2), 2).peft_config) == 2
