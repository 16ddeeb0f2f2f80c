"""Golden rows between loading and serving: what is swapped in, refused, tried again or given up, with a paper engine.

The paper engine answers every row with the number of its generation, so golden outputs name the generation that is to
pass.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_engine import answer_all, dies_on
from support.live import wait_for
from support.recipes import Recipe
from support.site import PLAIN, Site

from fmplex_backend.messages import BatchDone, GroupAnswer, RunBatch

TOKENS = Recipe("token_classification", 2, pooling="none")


def golden(version: Path, answer: float, rows: int = 1) -> None:
    content = {"inputs": [{"text": f"good film {i}"} for i in range(rows)], "outputs": [[answer, answer]] * rows}
    (version / "golden.json").write_text(json.dumps(content))


@pytest.fixture
def site(tmp_path: Path, tiny_backbone: Path) -> Iterator[Site]:
    site = Site(tmp_path, tiny_backbone)
    yield site
    site.dispatcher.stop()


def until_served(site: Site, port: int, version: int) -> None:
    def look() -> bool:
        site.scan(1)
        served = site.served(port)
        return served is not None and served[1] == version

    wait_for(look, f"version {version} on port {port}")


def until_refused(site: Site, name: str) -> str:
    def look() -> Any:
        site.scan(1)
        return site.record(name)["reason"]

    return str(wait_for(look, f"{name!r} is refused"))


def test_at_the_start_all_are_asked_together(site: Site) -> None:
    for port, name in enumerate("abcd"):
        golden(site.add(name, port) / "1", port + 1.0, rows=2)
    site.add("e", 4)
    site.registry.scan(settled=True)
    assert [site.served(port) for port in range(5)] == [(name, 1, port + 1) for port, name in enumerate("abcde")]
    assert [v["golden"] for v in site.registry.status()] == ["passed"] * 4 + ["none"]
    assert sorted(g for batch in site.engine.batches for g in batch.generations) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_golden_rows_are_nobodys_traffic(site: Site) -> None:
    golden(site.add("a", 0) / "1", 1.0)
    site.registry.scan(settled=True)
    snapshot = site.dispatcher.metrics()
    assert {name for name, _ in snapshot.vfms} == {"a"}
    assert not any(value for series, vfm, value in snapshot.samples() if vfm == "a" and "rows" in series.name)
    assert site.dispatcher.waiting("a") == 0


def test_a_mismatch_is_refused_and_the_old_version_goes_on(site: Site) -> None:
    golden(site.add("a", 0) / "1", 1.0)
    site.registry.scan(settled=True)
    version = site.version("a", 2)
    golden(version, 7.0, rows=2)
    reason = until_refused(site, "a")
    assert reason.startswith(
        "vFM 'a': version 2: its golden input 0 answers [2, 2] instead of [7, 7] (largest difference 5, tolerance "
        "0.007 in fp32); "
    )
    assert site.served(0) == ("a", 1, 1)
    assert (site.record("a")["state"], site.record("a")["golden"]) == ("serving", "passed")
    wait_for(lambda: site.engine.live == {1}, "the refused generation is dropped")
    wait_for(lambda: [p.name for p in site.work.iterdir()] == ["1.safetensors"], "and its file")
    logged = len(site.log)
    site.scan(4)
    assert len(site.log) == logged, "it is refused once, not at every scan"
    golden(version, 3.0)
    until_served(site, 0, 2)
    assert site.record("a")["reason"] is None


def test_a_new_vfm_that_mismatches_is_not_served_and_leaves_nothing(site: Site) -> None:
    golden(site.add("a", 0) / "1", 2.0)
    site.add("b", 1)
    site.registry.scan(settled=True)
    assert site.served(1) == ("b", 1, 2)
    assert site.record("a")["state"] == "refused"
    assert {name for name, _ in site.dispatcher.metrics().vfms} == {"b"}
    wait_for(lambda: site.engine.live == {2}, "the refused generation is dropped")


def test_a_broken_golden_file_is_refused(site: Site) -> None:
    (site.add("a", 0) / "1/golden.json").write_text('{"inputs": [{"text": "x"}], "outputs": [[1.0]]}')
    site.registry.scan(settled=True)
    assert site.record("a")["reason"] == (
        "vFM 'a': version 1: golden.json: outputs.0 has shape [1]; with this artifact [2]"
    )
    (site.repository / "a/1/golden.json").write_text('{"inputs": [{"text": " "}], "outputs": [[1.0, 1.0]]}')
    site.scan()
    assert site.record("a")["reason"] == "vFM 'a': version 1: golden.json: row 0: text is empty"


def test_a_scan_does_not_wait_for_answers(site: Site) -> None:
    golden(site.add("a", 0) / "1", 1.0)
    site.engine.gate.clear()
    site.scan(1)
    assert site.registry.scan() is False
    assert site.engine.entered.acquire(timeout=60), "the golden row is on the engine"
    assert site.registry.scan() is False
    assert site.record("a")["state"] == "loading"
    site.engine.gate.set()
    until_served(site, 0, 1)


def test_removed_while_it_is_asked(site: Site) -> None:
    folder = site.add("a", 0)
    golden(folder / "1", 1.0)
    site.engine.gate.clear()
    site.scan()
    assert site.engine.entered.acquire(timeout=60)
    folder.rename(site.repository.parent / "away")
    site.scan()
    site.engine.gate.set()
    wait_for(lambda: not site.engine.live, "the engine forgot it")
    site.scan()
    assert (site.served(0), site.registry.status()) == (None, [])


def test_replaced_while_it_is_asked(site: Site) -> None:
    """The newer version is taken, and the one on its way is given up, whatever it answers."""
    golden(site.add("a", 0) / "1", 7.0)
    site.engine.gate.clear()
    site.scan()
    assert site.engine.entered.acquire(timeout=60)
    golden(site.version("a", 2), 2.0)
    opened = threading.Timer(0.1, site.engine.gate.set)  # loading waits for the engine
    opened.start()
    site.scan()
    opened.join()
    until_served(site, 0, 2)
    wait_for(lambda: site.engine.live == {2}, "generation 1 is dropped")
    assert not any("instead of" in line for line in site.log)


def test_taken_back_while_it_is_asked(site: Site) -> None:
    golden(site.add("a", 0) / "1", 1.0)
    site.registry.scan(settled=True)
    assert site.engine.entered.acquire(timeout=60)
    version = site.version("a", 2)
    golden(version, 2.0)
    site.engine.gate.clear()
    site.scan()
    assert site.engine.entered.acquire(timeout=60)
    version.rename(site.repository.parent / "away")
    site.scan()
    site.engine.gate.set()
    wait_for(lambda: site.engine.live == {1}, "generation 2 is dropped")
    assert site.served(0) == ("a", 1, 1)


def test_no_answer_in_time_is_tried_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine dies under the golden row and is away for longer than the row may wait."""
    monkeypatch.setattr("fmplex_backend.host.golden.QUEUE_SECONDS", 0.05)
    site.engine.deaths.append(dies_on(RunBatch))
    site.engine.start_errors.append("not yet")
    golden(site.add("a", 0) / "1", 2.0)
    site.registry.scan(settled=True)
    assert site.record("a")["state"] == "loading"
    assert any("the deadline passed" in line for line in site.log)
    until_served(site, 0, 1)


def test_rows_that_take_engines_down_are_tried_alone_and_refused(site: Site) -> None:
    golden(site.add("a", 0) / "1", 1.0)
    golden(site.add("b", 1) / "1", 2.0)
    golden(site.add("c", 2) / "1", 3.0)
    kills = lambda message: isinstance(message, RunBatch) and 2 in message.generations  # noqa: E731
    site.engine.deaths += [kills] * 50
    site.registry.scan(settled=True)
    assert site.served(0) == ("a", 1, 1)
    assert site.served(2) == ("c", 1, 3)
    assert site.record("b")["state"] == "refused"
    assert "its golden rows kill engines, one after the other" in site.record("b")["reason"]


def test_a_row_that_the_engine_cannot_answer_is_refused(site: Site) -> None:
    def fails(message: RunBatch) -> BatchDone:
        answer = answer_all(message)
        (group,) = answer.groups
        errors = dict.fromkeys(group.rows, "its logits are not finite")
        return BatchDone(answer.batch, [GroupAnswer(group.generation, group.rows, group.columns, errors)], 0.001)

    site.engine.answer = fails
    golden(site.add("a", 0) / "1", 1.0)
    site.registry.scan(settled=True)
    assert site.record("a")["reason"] == "vFM 'a': version 1: its golden rows fail: its logits are not finite"
    assert len(site.engine.batches) == 2, "it was tried twice"


def test_a_full_queue_and_a_rate_limit_do_not_concern_golden_rows(site: Site) -> None:
    parameters = {"max_queue_size": "1", "rate_limit_rows_per_second": "0.001", "rate_limit_burst_rows": "1"}
    golden(site.add("a", 0, parameters=parameters) / "1", 1.0, rows=4)
    site.registry.scan(settled=True)
    golden(site.version("a", 2), 2.0, rows=4)
    until_served(site, 0, 2)
    site.dispatcher.check(["a"], 1)  # its one token is still there


def test_shutdown_while_it_is_asked(site: Site) -> None:
    golden(site.add("a", 0) / "1", 1.0)
    site.engine.deaths.append(dies_on(RunBatch))
    site.engine.start_errors += ["not yet"] * 100
    site.scan()
    site.dispatcher.stop()
    site.scan(1)
    assert site.served(0) is None
    assert any("shutting down" in line for line in site.log)


def test_answers_by_token(site: Site) -> None:
    def by_token(message: RunBatch) -> BatchDone:
        tables = [np.ones((len(row["input_ids"]), 2), np.float32) for row in message.rows]
        group = GroupAnswer(message.generations[0], list(range(len(tables))), {"matrix": tables})
        return BatchDone(message.batch, [group], 0.001)

    site.engine.answer = by_token
    folder = site.add("a", 0, TOKENS)
    content = {"inputs": [{"text": "good film"}], "outputs": [[[1.0, 1.0]] * 4]}
    (folder / "1/golden.json").write_text(json.dumps(content))
    site.registry.scan(settled=True)
    assert site.record("a")["golden"] == "passed"
    content["outputs"] = [[[1.0, 1.0]] * 5]
    (folder / "1/golden.json").write_text(json.dumps(content))
    assert "its golden input 0 is answered in shape [4, 2] instead of [5, 2]" in until_refused(site, "a")


def test_plain_recipe_has_two_outputs() -> None:
    """The paper engine answers two numbers."""
    assert PLAIN.outputs == 2
