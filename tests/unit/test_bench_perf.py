"""What goes into perf_analyzer, and what is read from its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmplex_backend.errors import FMplexError, InvalidInput
from fmplex_tools.bench.perf import TEXTS, TRIES, UNSTABLE, Load, input_data, levels, measure, parse, read_texts
from fmplex_tools.bench.perf_binary import PerfAnalyzer

FIGURES = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,Avg latency,\
request/response,response wait
4,1253.02,11,4882,2,35,1404,15,5,5853,9483,10889,14194,6357,16,6302
"""
REPORT = """\
  Server:
    Inference count: 3172
    Avg request latency: 5618 usec (overhead 1410 usec + queue 2753 usec + compute 1455 usec)

  Composing models:
  minilm, version: 1
      Avg request latency: 4210 usec (overhead 2 usec + queue 9 usec + compute input 35 usec + compute infer 1404 \
usec + compute output 15 usec)
"""
LOAD = Load("topic", "127.0.0.1:8001", "grpc", 4, batch=2, seconds=6)


def test_figures_of_perf_analyzer_2_50() -> None:
    row = parse(LOAD, FIGURES, REPORT)
    assert (row.task, row.concurrency, row.batch, row.rows_per_s) == ("topic", 4, 2, 1253.02)
    assert (row.mean_ms, row.p50_ms, row.p90_ms, row.p95_ms, row.p99_ms) == (6.357, 5.853, 9.483, 10.889, 14.194)
    assert (row.server_queue_ms, row.server_compute_ms) == (2.753, 1.455)


@pytest.mark.parametrize(("figures", "report"), [("a,b\n", REPORT), ("a,b\n1,2\n", REPORT), (FIGURES, "nothing")])
def test_other_figures_are_an_error(figures: str, report: str) -> None:
    with pytest.raises(FMplexError, match="perf_analyzer"):
        parse(LOAD, figures, report)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("4", [4]), ("1,4,16", [1, 4, 16]), ("1:4", [1, 2, 3, 4]), ("1:9:4", [1, 5, 9]), ("2:2", [2])],
)
def test_levels(spec: str, expected: list[int]) -> None:
    assert levels(spec) == expected


@pytest.mark.parametrize("spec", ["", "0", "a", "1:2:3:4", "5:1", "1:9:0", "1:2000", "1,,2", "1:"])
def test_levels_that_are_none(spec: str) -> None:
    with pytest.raises(InvalidInput, match="concurrency"):
        levels(spec)


def test_pairs_are_each_text_with_the_next() -> None:
    data = input_data(["a", "b"], pair=True)["data"]
    assert [(step["text"]["content"], step["text_pair"]["content"]) for step in data] == [
        (["a"], ["b"]),
        (["b"], ["a"]),
    ]
    assert all(len(text.split()) >= 3 for text in TEXTS)


def test_texts_from_files(tmp_path: Path) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("one\n\ntwo é\n", encoding="utf-8")
    assert read_texts(lines) == ["one", "two é"]
    objects = tmp_path / "texts.jsonl"
    objects.write_text('{"text": "x"}\n', encoding="utf-8")
    assert read_texts(objects) == ["x"]
    objects.write_text('{"txt": "x"}\n', encoding="utf-8")
    with pytest.raises(InvalidInput, match="not texts"):
        read_texts(objects)


def test_command_is_bounded_in_time() -> None:
    command = LOAD.command(Path("perf_analyzer"), Path("in.json"), Path("out.csv"))
    assert command[command.index("--measurement-interval") + 1] == "2000"
    assert command[command.index("--max-trials") + 1] == "3"


@pytest.mark.parametrize(("unstable", "runs"), [(0, 1), (2, 3), (9, TRIES)])
def test_windows_far_apart_are_measured_again(tmp_path: Path, unstable: int, runs: int) -> None:
    (tmp_path / "figures").write_text(FIGURES)
    (tmp_path / "report").write_text(REPORT)
    binary = tmp_path / "perf_analyzer"
    binary.write_text(f"""#!/bin/sh
echo run >> {tmp_path}/runs
[ $(wc -l < {tmp_path}/runs) -le {unstable} ] && {{ echo '{UNSTABLE[unstable % 2]}' >&2; exit 99; }}
while [ "$1" != -f ]; do shift; done
cp {tmp_path}/figures "$2"; cat {tmp_path}/report
""")
    binary.chmod(0o755)
    if unstable < TRIES:
        assert measure(PerfAnalyzer(binary), LOAD, ["a"]).p50_ms == 5.853
    else:
        with pytest.raises(FMplexError, match="No valid requests recorded"):
            measure(PerfAnalyzer(binary), LOAD, ["a"])
    assert (tmp_path / "runs").read_text().count("run") == runs
