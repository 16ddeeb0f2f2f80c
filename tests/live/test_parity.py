"""Shows 3: what is served equals plain transformers + peft + head, alone, in batches, and under everybody's load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from support.live import PAIRS, TEXTS, LiveServer, Load, ask, numbers
from support.recipes import RECIPES
from support.reference import Reference

pytestmark = pytest.mark.live

TOLERANCE = 1e-5
"""Absolute and relative. Logits of 8 to 16, as two demo vFMs have, vary by 9e-6 to 2e-5 in plain transformers itself,
between a row alone and the same row in a padded batch."""
BATCHES = ([0], [3, 1], [4, 0, 2, 5, 1, 3] * 3)
"""Rows of TEXTS: single, a pair of unequal lengths, and a batch with every length several times."""
ROOT = Path(__file__).parents[2]


def vfms_with_artifact(repository: Path) -> dict[str, Path]:
    """Name → version 1, of every vFM in the repository; bundles and physical FMs have none."""
    return {path.parents[1].name: path.parent for path in sorted(repository.glob("*/1/vfm.json"))}


@pytest.fixture(scope="module")
def vfms(server: LiveServer) -> dict[str, Path]:
    return vfms_with_artifact(server.repository)


@pytest.fixture(scope="module")
def references(server: LiveServer, vfms: dict[str, Path]) -> dict[str, list[Any]]:
    """Name → the reference's answer to each of TEXTS."""
    found = {}
    for name, version in vfms.items():
        pairs = list(PAIRS) if takes_pairs(version) else None
        found[name] = Reference(version, server.backbone)([fitting(name, t) for t in TEXTS], pairs)
    return found


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[Any]:
    with grpc.InferenceServerClient(server.grpc) as client:
        yield client


def takes_pairs(version: Path) -> bool:
    return bool(json.loads((version / "vfm.json").read_text())["encoder"]["pair"])


def fitting(name: str, text: str) -> str:
    """``text``, cut where the vFM refuses longer ones."""
    return text[:30] if name == "untruncated" else text


def check(client: Any, name: str, version: Path, expected: list[Any], batches: Any = BATCHES) -> float:
    """Ask ``name`` for every batch and compare; returns the largest difference, relative where answers exceed 1."""
    worst = 0.0
    for batch in batches:
        texts = [fitting(name, TEXTS[i]) for i in batch]
        pairs = [PAIRS[i] for i in batch] if takes_pairs(version) else None
        served = numbers(ask(client, name, texts, pairs))
        for row, place in zip(served, batch, strict=True):
            wanted = expected[place]
            got = row[: len(wanted)]
            assert got.shape == wanted.shape
            assert not row[len(wanted) :].any(), "beyond a row's own tokens there is only padding"
            np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name} in {batch}")
            worst = max(worst, float(np.abs(got - wanted).max() / max(1, np.abs(wanted).max())))
    return worst


def largest(worst: dict[str, float]) -> str:
    """For people: the largest difference and whose it is."""
    name = max(worst, key=worst.__getitem__)
    return f"largest difference {worst[name]:.1e} ({name})"


def test_alone_and_in_batches(vfms: dict[str, Path], references: dict[str, list[Any]], client: Any) -> None:
    worst = {name: check(client, name, version, references[name]) for name, version in vfms.items()}
    assert set(RECIPES) <= set(worst)
    print(f"\nparity of {len(worst)} vFMs: {largest(worst)}")


def test_over_http(server: LiveServer, vfms: dict[str, Path], references: dict[str, list[Any]]) -> None:
    with http.InferenceServerClient(server.http) as client:
        for name, version in vfms.items():
            check(client, name, version, references[name], batches=([1, 4],))


def test_while_16_clients_load_every_vfm(
    server: LiveServer, vfms: dict[str, Path], references: dict[str, list[Any]], client: Any
) -> None:
    pairs = [name for name, version in vfms.items() if takes_pairs(version)]
    worst, mixed = {}, 0
    names = list(vfms)
    with Load(server, names, threads=16, pairs=pairs) as load:
        for name in names:
            worst[name] = check(client, name, vfms[name], references[name], batches=([4, 0, 2],))
            info = ask(client, name, ["good film"], ["bad"] if name in pairs else None)["info"][0]
            mixed += info["batch_vfms"] > 1
    load.check()
    assert mixed > len(names) // 2, "the answers hardly ever shared a batch, so this proved nothing"
    print(f"\nunder load of 16 clients: {largest(worst)}; {mixed} of {len(names)} shared a batch when asked")


def test_an_ignored_adapter_would_be_seen(
    server: LiveServer, vfms: dict[str, Path], references: dict[str, list[Any]]
) -> None:
    """The comparison has teeth: without its adapter every LoRA vFM's reference is far off."""
    for name, version in vfms.items():
        if name in RECIPES and RECIPES[name].adapter is not None and not RECIPES[name].imported:
            pairs = list(PAIRS) if takes_pairs(version) else None
            bare = Reference(version, server.backbone, adapter=False)(list(TEXTS), pairs)
            gap = max(float(np.abs(a - b).max()) for a, b in zip(bare, references[name], strict=True))
            assert gap > 100 * TOLERANCE, f"{name}: the adapter changes answers by {gap:.1e} only"
