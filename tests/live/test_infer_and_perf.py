"""``fmplex infer`` and ``fmplex bench perf`` against the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fmplex_tools import bench_cli, infer_cli

app = typer.Typer()
app.command("infer")(infer_cli.infer)
app.add_typer(bench_cli.app, name="bench")
runner = CliRunner()


def test_infer_prints_a_table(server: Any) -> None:
    done = runner.invoke(app, ["infer", "review_polarity", "Great sound, I love [it].", "--url", server.http, "--info"])
    assert done.exit_code == 0, done.output
    assert "Great sound, I love [it]." in done.output
    assert "positive" in done.output
    assert "version" in done.output


@pytest.mark.parametrize(
    "task", ["review_polarity", "newsgroup_tags", "tweet_intensity", "news_embedding", "guardrail"]
)
def test_infer_prints_json_a_line_per_text(server: Any, task: str) -> None:
    arguments = ["infer", task, "first", "-", "--json", "--info", "--url", server.grpc, "--protocol", "grpc"]
    done = runner.invoke(app, arguments, input="second\n\nthird é\n")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == ["first", "second", "third é"]
    assert len(lines[0]) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_task", "x"], "no_such_task"),
        (["review_polarity", ""], "empty"),
        (["review_polarity", "x", "--protocol", "ftp"], "http or grpc"),
        (["review_polarity", "x", "--pair", "y"], "single texts"),
    ],
)
def test_infer_says_what_is_wrong(server: Any, arguments: list[str], message: str) -> None:
    done = runner.invoke(app, ["infer", *arguments, "--url", server.http])
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_real_perf_analyzer(server: Any, protocol: str) -> None:
    where = ["--url", getattr(server, protocol), "--protocol", protocol]
    how = ["--concurrency", "1,4", "--seconds", "3", "--json"]
    done = runner.invoke(app, ["bench", "perf", "review_polarity", "guardrail", *where, *how])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [(row["task"], row["concurrency"]) for row in rows] == [
        ("review_polarity", 1),
        ("review_polarity", 4),
        ("guardrail", 1),
        ("guardrail", 4),
    ]
    for row in rows:
        assert row["rows_per_s"] > 0
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]


def test_perf_fails_loudly(server: Any) -> None:
    unknown = runner.invoke(app, ["bench", "perf", "no_such_task", "--url", server.grpc])
    assert unknown.exit_code == 1
    assert "no_such_task" in unknown.output
    refused = runner.invoke(app, ["bench", "perf", "review_polarity", "--batch", "4096", "--url", server.grpc])
    assert refused.exit_code == 1
    assert "at most" in refused.output
