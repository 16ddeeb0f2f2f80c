"""The registry over a real folder, with an engine of paper: what is loaded, swapped, kept, refused and dropped when."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format
from support.broken import edit_tensors, move_ports, parameter
from support.fake_engine import dies_on
from support.live import wait_for
from support.site import Site
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.errors import Quarantined
from fmplex_backend.host.routes import Serving
from fmplex_backend.messages import LoadGeneration
from fmplex_backend.repository.config import CONFIG_FILE, ensemble_config, read_config, write_config


@pytest.fixture
def site(tmp_path: Path, tiny_backbone: Path) -> Iterator[Site]:
    site = Site(tmp_path, tiny_backbone)
    yield site
    site.dispatcher.stop()


def test_start_takes_everything_at_once(site: Site) -> None:
    site.add("a", 0)
    site.add("b", 1)
    site.registry.scan(settled=True)
    assert (site.served(0), site.served(1)) == (("a", 1, 1), ("b", 1, 2))
    assert [v["state"] for v in site.registry.status()] == ["serving", "serving"]


def test_later_a_version_waits_until_it_is_at_rest(site: Site) -> None:
    site.scan()
    site.add("a", 0)
    site.scan(1)
    assert site.served(0) is None
    assert site.record("a")["state"] == "loading"
    site.scan(1)
    assert site.served(0) == ("a", 1, 1)


def test_status_while_vfms_come(site: Site) -> None:
    """A collection of garbage amid the listing runs code of others, which lets the thread of the scans go on."""

    def come(number: int) -> None:
        (site.repository / f"n{number}").mkdir()
        (site.repository / f"n{number}/config.pbtxt").write_text("")

    def collected(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and len(scans) < 5:
            scans.append(len(scans))
            come(100 + len(scans))
            site.registry.scan()

    for number in range(40):
        come(number)
    site.add("a", 0)
    site.scan()
    scans: list[int] = []
    thresholds = gc.get_threshold()
    gc.collect()  # or tuples come from the free list, without a collection
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        site.registry.status()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collected)
    assert scans, "scans came between"


def test_swap_and_drain(site: Site) -> None:
    site.add("a", 0)
    site.scan()
    site.version("a", 2)
    site.scan()
    assert site.served(0) == ("a", 2, 2)
    wait_for(lambda: site.engine.live == {2}, "the old generation is dropped")
    wait_for(lambda: len(list(site.work.iterdir())) == 1, "and its file")


def test_nothing_changes_nothing(site: Site) -> None:
    site.add("a", 0)
    site.scan(6)
    assert site.served(0) == ("a", 1, 1)
    assert sum("is served" in line for line in site.log) == 1


def test_touching_a_file_reloads_the_same_version(site: Site) -> None:
    folder = site.add("a", 0)
    site.scan()
    os.utime(folder / "1/head.safetensors", (1, 1))
    site.scan()
    assert site.served(0) == ("a", 1, 2)


def test_a_broken_version_leaves_the_old_one(site: Site) -> None:
    folder = site.add("a", 0)
    site.scan()
    edit = site.version("a", 2)
    (edit / "head.safetensors").write_bytes(b"garbage")
    site.scan()
    record = site.record("a")
    assert (record["state"], record["version"]) == ("serving", 1)
    assert record["reason"].startswith("vFM 'a': version 2: 2/head.safetensors is not a whole safetensors file")
    assert site.served(0) == ("a", 1, 1)
    logged = len(site.log)
    site.scan(4)
    assert len(site.log) == logged, "it is refused once, not at every scan"
    shutil.rmtree(folder / "2")
    site.scan()
    assert site.record("a")["reason"] is None
    assert site.served(0) == ("a", 1, 1), "the same generation: nothing of version 1 changed"


def test_a_refusal_by_the_engine_leaves_the_old_one(site: Site) -> None:
    site.add("a", 0)
    site.scan()
    site.engine.refuse = lambda message: "all adapters are taken" if message.version == 2 else None
    site.version("a", 2)
    site.scan()
    assert site.served(0) == ("a", 1, 1)
    assert site.record("a")["reason"] == "vFM 'a': version 2: all adapters are taken"
    assert [p.name for p in site.work.iterdir()] == ["1.safetensors"]


def test_policy_is_live_and_no_new_generation(site: Site) -> None:
    folder = site.add("a", 0)
    site.scan()
    parameter("weight", "4")(folder)
    site.scan(1)
    assert site.record("a")["policy"]["weight"] == 4
    assert site.served(0) == ("a", 1, 1)
    parameter("weight", "-4")(folder)
    site.scan(1)
    record = site.record("a")
    assert (record["state"], record["policy"]["weight"]) == ("serving", 4)
    assert "'weight' is '-4'" in record["reason"]


def test_remove_and_come_back(site: Site) -> None:
    folder = site.add("a", 0)
    site.scan()
    os.rename(folder, site.repository.parent / "away")
    site.scan(1)
    assert (site.served(0), site.registry.status()) == (None, [])
    wait_for(lambda: not site.engine.live, "the engine forgot it")
    os.rename(site.repository.parent / "away", folder)
    site.scan()
    assert site.served(0) == ("a", 1, 2)


def test_two_on_one_port(site: Site) -> None:
    site.add("a", 0)
    site.scan()
    other = site.add("b", 0)
    site.scan()
    assert site.served(0) is None
    reasons = {v["name"]: (v["state"], v["reason"]) for v in site.registry.status()}
    assert reasons["a"] == reasons["b"]
    assert "'a' and 'b' both map port 0" in str(reasons["a"])
    move_ports(1)(other)
    site.scan()
    assert site.served(0) == ("a", 1, 1)
    assert site.served(1) == ("b", 1, 2)


def test_port_out_of_range(site: Site) -> None:
    site.add("a", 16)
    site.scan()
    assert "port 16 is out of range" in site.record("a")["reason"]
    assert "ports 0 to 15" in site.record("a")["reason"]


def test_unfit_interface_is_refused_then_mended(site: Site) -> None:
    folder = site.add("a", 0)
    good = (folder / "config.pbtxt").read_text()
    config = text_format.Parse(good, ModelConfig())
    next(o for o in config.output if o.name == "logits").dims[:] = [9]
    write_config(folder / "config.pbtxt", config)
    site.scan()
    assert "'logits' declares dims [9], the artifact gives [2]" in site.record("a")["reason"]
    (folder / "config.pbtxt").write_text(good)
    site.scan()
    assert site.served(0) == ("a", 1, 1)


def test_pinned_version(site: Site) -> None:
    folder = site.add("a", 0)
    site.version("a", 2)
    site.scan()
    assert site.served(0) == ("a", 2, 1)
    path = folder / "config.pbtxt"
    path.write_text(path.read_text() + "version_policy { specific { versions: 1 } }")
    site.scan()
    assert site.served(0) == ("a", 1, 2)


def test_bundle_follows_its_members(site: Site) -> None:
    site.add("a", 0)
    bundle = site.repository / "both"
    (bundle / "1").mkdir(parents=True)
    outputs = {"x": (0, "vector"), "y": (1, "vector")}
    write_config(bundle / "config.pbtxt", ensemble_config("minilm", outputs, {"x": [-1], "y": [-1]}))
    site.scan()
    assert site.record("both")["reason"] == "bundle 'both': port 1 has no vFM"
    edit = site.add("b", 1)
    site.scan()
    assert (site.record("both")["state"], site.record("both")["reason"]) == ("serving", None)
    edit_tensors("head.safetensors", lambda t: {k: v[:1] for k, v in t.items()})(edit)
    site.scan()
    assert site.record("b")["reason"].endswith("weight has 1 outputs, but vfm.json names 2 labels")
    assert site.served(1) == ("b", 1, 2), "what was loaded goes on"


def test_a_vfm_that_becomes_a_bundle_is_let_go(site: Site) -> None:
    folder = site.add("a", 0)
    site.scan()
    outputs = {"x": (0, "vector"), "y": (1, "vector")}
    write_config(folder / "config.pbtxt", ensemble_config("minilm", outputs, {"x": [-1], "y": [-1]}))
    site.scan()
    assert site.served(0) is None
    wait_for(lambda: not site.engine.live, "the engine forgot it")


def test_a_config_that_is_just_being_written_removes_nothing(site: Site) -> None:
    path = site.add("a", 0) / "config.pbtxt"
    site.scan()
    good = path.read_text()
    path.write_text("")
    site.scan(1)
    assert site.served(0) == ("a", 1, 1)
    path.write_text(good)
    site.scan()
    assert site.served(0) == ("a", 1, 1), "the same generation"
    path.write_text("")
    site.scan(2)
    assert site.served(0) is None, "it stays like that"


def test_an_engine_that_is_away_is_not_the_vfms_fault(site: Site) -> None:
    """It died under the load: the same version is loaded on its successor, not refused."""
    site.engine.deaths.append(dies_on(LoadGeneration))
    site.add("a", 0)
    site.scan()
    assert site.served(0) == ("a", 1, 1)
    assert site.record("a")["reason"] is None


def test_a_quarantine_is_told_and_ends_when_files_change(site: Site) -> None:
    folder = site.add("a", 0)
    site.add("b", 1)
    site.registry.scan(settled=True)

    def quarantine() -> None:
        route = site.registry.routes[0]
        assert isinstance(route, Serving)
        route.generation.quarantine = Quarantined("vFM 'a': kills")
        site.scan()
        assert (site.record("a")["state"], site.record("a")["reason"]) == ("quarantined", "vFM 'a': kills")
        assert site.record("b")["state"] == "serving"

    quarantine()
    config = folder / CONFIG_FILE
    write_config(config, read_config(config))  # as `fmplex task release` does
    site.scan()
    assert (site.record("a")["state"], site.record("a")["reason"]) == ("serving", None)
    assert site.served(0) == ("a", 1, 1), "no new generation for that"
    assert "vFM 'a': its config was written, its quarantine is over" in site.log

    quarantine()
    site.version("a", 2)
    site.scan()
    assert site.record("a")["state"] == "serving"
    assert site.served(0) == ("a", 2, 3)
