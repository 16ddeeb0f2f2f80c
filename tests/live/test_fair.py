"""Shows 3: weighted shares, a flood, deadlines and limits on the real server. Orders and counts, not seconds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from support.live import FM, ask, serve
from support.recipes import Recipe, write_vfm
from tritonclient.utils import InferenceServerException

from fmplex_backend.repository.config import CONFIG_FILE, read_config, write_config
from fmplex_client import Client
from fmplex_tools.bench.fair.arena import Arena
from fmplex_tools.bench.fair.isolation import rows_unanswered
from fmplex_tools.bench.fair.load import Load
from fmplex_tools.bench.fair.meters import BATCH_ROWS, DEVICE_SECONDS, ROWS, read
from fmplex_tools.bench.fair.streams import EXPIRED, FAILED, OK, REFUSED, Stream, Traffic, latencies
from fmplex_tools.server.process import ServerOptions
from fmplex_tools.top.scrape import FmScrape

pytestmark = pytest.mark.live

A, B, C = NAMES = ("fair_a", "fair_b", "fair_c")
BATCH = 8
"""Rows in a batch: short batches, so that a few seconds hold many decisions."""
QUEUE = 256
LONG = " ".join(["film"] * 38)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, minilm_backbone: Path) -> Iterator[Arena]:
    """A server of its own: three vFMs, one of them a head alone."""
    repository = tmp_path_factory.mktemp("fair") / "repository"
    shutil.copytree(Path(__file__).parents[2] / "model_repository" / FM, repository / FM)
    config = read_config(repository / FM / CONFIG_FILE)
    config.parameters["max_batch_rows"].string_value = str(BATCH)
    write_config(repository / FM / CONFIG_FILE, config)
    lora = {"r": 4, "target_modules": ("query", "value")}
    for port, (name, adapter) in enumerate(zip(NAMES, (None, lora, lora), strict=True)):
        write_vfm(repository, name, port, Recipe(lora=adapter), minilm_backbone, seed=port)
    with serve(repository, minilm_backbone) as live:
        for name in NAMES:
            live.wait_serving(name)
        ports = (int(url.rpartition(":")[2]) for url in (live.http, live.grpc, live.metrics))
        yield Arena(ServerOptions(repository, *ports), FM)


@pytest.fixture(autouse=True)
def _same_weights(arena: Arena) -> None:
    arena.set_policies(**{name: {"weight": 1, "max_queue_size": QUEUE} for name in NAMES})


@pytest.fixture
def client(arena: Arena) -> Iterator[Any]:
    with grpc.InferenceServerClient(arena.url) as client:
        yield client


def saturating(name: str, in_flight: int = 12) -> Stream:
    return Stream(name, (8,), rows=4, in_flight=in_flight)


def load_for(arena: Arena, seconds: float, *groups: list[Stream]) -> Traffic:
    with Load(arena.url, *groups) as load:
        load.start()
        time.sleep(seconds)
        return load.stop()


def test_weights_are_shares_of_the_device(arena: Arena) -> None:
    weights = dict(zip(NAMES, (1, 2, 4), strict=True))
    arena.set_policies(**{name: {"weight": weight, "max_queue_size": QUEUE} for name, weight in weights.items()})
    with Load(arena.url, [saturating(name, in_flight=32) for name in NAMES]) as load:
        load.start()
        time.sleep(1)
        before = read(arena)
        for _ in range(10):  # of one span that grows: what a few batches are too coarse to show, and what a pause blurs
            time.sleep(4)
            shares = relative_shares(before, read(arena), weights)
            print(f"\nshares of device time, relative to what the weights say: {shares}")
            if all(share == pytest.approx(1, rel=0.1) for share in shares.values()):
                break
        else:
            pytest.fail(f"the shares are not what the weights say: {shares}")
        assert not load.stop().failures


def relative_shares(before: FmScrape, after: FmScrape, weights: dict[str, int]) -> dict[str, float]:
    """Each vFM's part of the device time between two looks, 1 where it is what its weight gives it."""
    charged = {name: after.value(DEVICE_SECONDS, vfm=name) - before.value(DEVICE_SECONDS, vfm=name) for name in weights}
    whole = sum(charged.values()) / sum(weights.values())
    return {name: seconds / whole / weights[name] for name, seconds in charged.items()}


def test_a_flood_leaves_the_light_alone(arena: Arena) -> None:
    light = [Stream(name, rate=5, poisson=True) for name in (A, B)]
    traffic = load_for(arena, 6, light, [Stream(C, rows=64, rate=30)])
    assert len(traffic.of((A, B), None)) == len(traffic.of((A, B))) > 20
    assert not len(traffic.of(C, FAILED)), traffic.failures
    assert len(traffic.of(C, REFUSED)) > len(traffic.of(C, OK)) > 0  # it got something, and far less than it wanted
    waited, own = np.median(latencies(traffic.of((A, B)))), np.median(latencies(traffic.of(C)))
    print(f"\nlight p50 {1e3 * waited:.0f} ms beside a flooder that waits {1e3 * own:.0f} ms itself")
    assert waited < own / 2  # first come, first served, they would wait as long as the flooder


def test_expired_rows_are_never_run(arena: Arena) -> None:
    before = read(arena)
    hasty = Stream(A, rows=3, rate=15, timeout_us=1_000)
    traffic = load_for(arena, 3, [hasty, saturating(B), saturating(C)])
    after = read(arena)
    asked = traffic.of(A, None)
    assert len(asked) == len(traffic.of(A, EXPIRED)) > 20
    assert after.value(ROWS, vfm=A, label="served") == before.value(ROWS, vfm=A, label="served")
    assert after.value(BATCH_ROWS) - before.value(BATCH_ROWS) == len(traffic.rows) > 0
    assert rows_unanswered(traffic.rows) == 0


def test_full_queue_is_told_at_once_and_clients_come_again(arena: Arena, client: Any) -> None:
    arena.set_policies(**{A: {"max_queue_size": 4}})
    with Load(arena.url, [Stream(B, (40,), rows=8, in_flight=8)]) as load, ThreadPoolExecutor(6) as pool:
        load.start()
        time.sleep(1)
        replies = list(pool.map(lambda _: _reply(client, A, 4), range(6)))
        answered = [ended for ended, error in replies if error is None]
        refused = [(ended, str(error)) for ended, error in replies if error is not None]
        assert answered
        assert refused
        assert all("no room for 4 more rows in its queue" in message for _, message in refused)
        assert all("retry in" in message and "UNAVAILABLE" in message for _, message in refused)
        assert min(refused)[0] < min(answered)
        with Client(arena.options.http) as patient:
            results = list(pool.map(lambda _: patient.predict(A, ["good film"] * 4), range(6)))
        assert [len(result) for result in results] == [4] * 6
        assert not load.stop().failures
    with pytest.raises(InferenceServerException, match=r"ask for at most 4 at a time \(max_queue_size\)"):
        ask(client, A, ["good"] * 5)


def _reply(client: Any, name: str, rows: int) -> tuple[float, InferenceServerException | None]:
    """When the answer or error came, and the error."""
    try:
        ask(client, name, ["good film"] * rows)
    except InferenceServerException as error:
        return time.monotonic(), error
    return time.monotonic(), None


def test_rate_limit(arena: Arena, client: Any) -> None:
    arena.set_policies(**{A: {"rate_limit_rows_per_second": 2, "rate_limit_burst_rows": 5}})
    time.sleep(1)
    begun = time.monotonic()
    errors = [error for _, error in (_reply(client, A, 1) for _ in range(20))]
    seconds = time.monotonic() - begun
    assert 5 <= errors.count(None) <= 5 + 2 * seconds + 1
    messages = [str(error) for error in errors if error is not None]
    assert messages
    assert all("rate limit of 2 rows/s (bursts of 5)" in message and "retry in" in message for message in messages)
    with pytest.raises(InferenceServerException, match=r"ask for at most 5 at a time"):
        ask(client, A, ["good"] * 6)


def rows_together(traffic: Traffic, rows: NDArray[Any]) -> list[int]:
    """Of each batch with any of ``rows``, how many of them it had.

    Rows of one batch tell the same compute time and size; of two batches that agree in both, one began later.
    """
    begun = traffic.requests["sent"][rows["request"]] + rows["queued"]
    order = np.lexsort((begun, rows["batch_rows"], rows["computed"]))
    rows, begun = rows[order], begun[order]
    another = rows[1:][["computed", "batch_rows"]] != rows[:-1][["computed", "batch_rows"]]
    another |= np.diff(begun) > rows["computed"][1:] / 2
    starts = [0, *(np.flatnonzero(another) + 1), len(rows)]
    return np.diff(starts).tolist()


def test_max_rows_in_flight(arena: Arena) -> None:
    arena.set_policies(**{A: {"max_rows_in_flight": 2}, B: {}})
    traffic = load_for(arena, 1, [Stream(A, (8,), rows=4, in_flight=4)])
    assert len(traffic.rows) > 10
    assert set(traffic.rows["batch_rows"]) == {2}
    both = load_for(arena, 2, [Stream(A, (8,), rows=4, in_flight=4), saturating(B)])
    rows, others = both.rows_of(A), both.rows_of(B)
    assert max(rows_together(both, rows)) <= 2
    assert others["batch_rows"].max() >= BATCH  # the rest of the batch is the neighbour's; a twin may ride on top


def test_a_large_request_holds_back_nobody_for_more_than_a_batch(arena: Arena, client: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        large = pool.submit(ask, client, B, [f"{row} {LONG}" for row in range(64)])
        time.sleep(0.1)
        with grpc.InferenceServerClient(arena.url) as other:
            asked = time.monotonic() - begun
            [info] = ask(other, A, ["good film"])["info"]
        infos = large.result()["info"]
    started = asked + info["queue_us"] / 1e6
    starts = {row["queue_us"] / 1e6 for row in infos}
    between = [start for start in starts if asked + 0.01 < start < started - 0.01]
    print(f"\n64 rows ran in {len(starts)} batches; {len(between)} of them began while the single row waited")
    assert len(starts) >= 64 / BATCH
    assert len(between) <= 1
    assert max(starts) > started


def test_an_edited_weight_is_obeyed(arena: Arena) -> None:
    times = []
    with Load(arena.url, [saturating(A, in_flight=32), saturating(B, in_flight=32)]) as load:
        times += [load.start() + 1, time.monotonic() + 5]
        for weight, in_place in ((4, False), (1, True)):
            time.sleep(times[-1] - time.monotonic())
            edited = arena.edit_weight(B, weight, in_place=in_place)
            times += [edited + 1.5, edited + 5.5]
        time.sleep(times[-1] - time.monotonic())
        traffic = load.stop()
    ended = traffic.ended(traffic.rows_of(B)), traffic.ended(traffic.rows)
    shares = []
    for start, end in zip(times[::2], times[1::2], strict=True):
        of_b, of_all = (np.sum((found >= start) & (found < end)) for found in ended)
        shares.append(of_b / of_all)
    print(f"\nshares at weights 1:1, 1:4, 1:1: {shares}")
    assert shares == pytest.approx([0.5, 0.8, 0.5], abs=0.08)
