"""What a fleet is kept by: claims that only one controller has at a time, contents by their hashes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.recipes import RECIPES, write_vfm

from fmplex_backend.errors import InvalidInput, NotFound, Refused
from fmplex_backend.repository.config import CONFIG_FILE, parameters_of, read_config, write_config
from fmplex_tools.fleet.agent import Agent
from fmplex_tools.fleet.claims import Claims, Desired
from fmplex_tools.fleet.content import Contents, FMContent, VfmContent, read_contents
from fmplex_tools.planner.fleet_file import Fleet, parse_fleet
from fmplex_tools.planner.placement import PlanFile
from fmplex_tools.tasks.manage import create_bundle

FLEET = """
devices: {cpu: {count: 2, memory: 3 GB}}
fms: {tiny: {memory: 100 MB, cost: {cpu: {alpha: 0.01, beta: 0.0001}}}}
vfms: {left: {fm: tiny, rate: 1, p99_ms: 500}, right: {fm: tiny, rate: 1, p99_ms: 500, weight: 6}}
"""


def desired(**more: object) -> Desired:
    return Desired.model_validate({"fleet": "{}", "contents": Contents(), "plan": PlanFile(devices={}), **more})


def test_only_the_last_one_who_claims_may_change_a_fleet(tmp_path: Path) -> None:
    first, second = Claims(str(tmp_path), "f"), Claims(str(tmp_path), "f")
    first.claim()
    assert first.read() is None
    first.save(desired(number=1))
    second.claim()
    assert second.read() == desired(number=1)
    with pytest.raises(Refused, match=r"another controller has taken the fleet \(claim 2, this one's is 1\)"):
        first.save(desired(number=2))
    assert second.read() == desired(number=1), "it is as it was"
    second.save(desired(number=3))
    third = Claims(str(tmp_path), "f")
    third.claim()
    assert third.read() == desired(number=3)
    other = Claims(str(tmp_path), "g")
    other.claim()
    assert other.number == 1, "fleets of other names have claims of their own"


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    claims = Claims(str(tmp_path), "f")
    claims.claim()
    (tmp_path / "fleets" / "f" / "desired.json").write_text('{"number": "x"')
    with pytest.raises(Refused, match=r"desired\.json: is not what a controller saves"):
        claims.read()


def test_agents_do_not_listen_to_a_controller_that_was_replaced(tmp_path: Path) -> None:
    agent = Agent("127.0.0.1", tmp_path, str(tmp_path))
    agent.order(2, 1, {})
    with pytest.raises(Refused, match="claim 1 is outdated"):
        agent.order(1, 7, {})
    assert agent.reports({}) == (1, {})


def test_contents_are_what_the_repository_holds(small_repository: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    write_vfm(small_repository, "other", 7, RECIPES["bare_two"], tiny_backbone, fm="tiny", parameters={"weight": "6"})
    store, told = tmp_path / "store", list[str]()

    def read(left: str, right: str, fm: str = "tiny") -> Contents:
        text = FLEET.replace("left", left).replace("right", right).replace("tiny", fm)
        return read_contents(parse_fleet(text, "fleet"), small_repository, str(store), told.append)

    contents = read("good", "other")
    assert told == ["good", "other"]
    assert contents.fms == {"tiny": FMContent(config=(small_repository / "tiny" / CONFIG_FILE).read_text())}
    assert contents.vfms["good"].config == (small_repository / "good" / CONFIG_FILE).read_text()
    assert all((store / vfm.versions["1"] / "manifest.json").is_file() for vfm in contents.vfms.values())
    assert read("good", "other") == contents

    part = contents.part({"other"}, {"other": 3}, cuda=1)
    assert set(part.vfms) == {"other"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CONFIG_FILE).write_text(part.vfms["other"].config)
    shared = parameters_of(read_config(tmp_path / "other" / CONFIG_FILE))
    assert shared["weight"] == "2", "three replicas share a weight of 6"
    assert contents.part({"other"}, {"other": 0}).vfms == {"other": contents.vfms["other"]}, "it has no place"
    assert 'string_value: "cuda:1"' in part.fms["tiny"].config

    with pytest.raises(NotFound, match="has no vFM 'ghost', which the fleet file names"):
        read("ghost", "good")
    with pytest.raises(NotFound, match="has no physical FM 'small'"):
        read("good", "other", fm="small")
    with pytest.raises(Refused, match="'bad': parameter 'weight' is '0'"):
        read("good", "bad")


def test_a_bundle_goes_with_its_vfms(small_repository: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    for port, name in enumerate(("left", "right", "third"), start=10):
        write_vfm(small_repository, name, port, RECIPES["bare_two"], tiny_backbone, fm="tiny")
    create_bundle(small_repository, "both", ["left", "right"])

    def read(text: str) -> Contents:
        return read_contents(parse_fleet(text, "fleet"), small_repository, str(tmp_path), lambda name: None)

    contents = read(FLEET + "bundles: {both: [right, left]}")
    assert contents.vfms["both"].versions == {}
    assert contents.vfms["both"].version == "1"
    part = contents.part({"both", "left", "right"}, {"both": 2, "left": 2, "right": 2})
    assert part.vfms["both"] == contents.vfms["both"], "it has no weight of its own to spread"

    with pytest.raises(InvalidInput, match=r"bundle 'both': the fleet file says left, third; its .* asks left, right"):
        read(
            FLEET.replace("vfms: {", "vfms: {third: {fm: tiny, rate: 1, p99_ms: 500}, ")
            + "bundles: {both: [left, third]}"
        )
    with pytest.raises(InvalidInput, match="asks left, port 11, which is no vFM of the fleet file"):
        read(FLEET.replace("right", "third") + "bundles: {both: [left, third]}")
    with pytest.raises(InvalidInput, match="'both' is a bundle: name it with its vFMs under 'bundles'"):
        read(FLEET.replace("right", "both"))
    with pytest.raises(NotFound, match="has no vFM 'nowhere', which the fleet file names"):
        read(FLEET + "bundles: {nowhere: [left, right]}")


def test_an_ensemble_over_two_fms_is_no_vfm_of_either(
    small_repository: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    write_vfm(small_repository, "right", 10, RECIPES["bare_two"], tiny_backbone, fm="tiny")
    write_vfm(small_repository, "left", 11, RECIPES["bare_two"], tiny_backbone, fm="tiny")
    shutil.copytree(small_repository / "tiny", small_repository / "second")
    config = read_config(small_repository / "left" / CONFIG_FILE)
    other = config.ensemble_scheduling.step.add()
    other.CopyFrom(config.ensemble_scheduling.step[0])
    other.model_name = "second"
    write_config(small_repository / "left" / CONFIG_FILE, config)
    text = FLEET.replace("\nfms: {", "\nfms: {second: {memory: 100 MB, cost: {cpu: {alpha: 0.01, beta: 0.0001}}}, ")
    with pytest.raises(Refused, match="vFM 'left': has several steps to physical FMs"):
        read_contents(parse_fleet(text, "fleet"), small_repository, str(tmp_path), lambda name: None)


def test_the_version_that_is_to_be_served() -> None:
    hashes = {"2": "b", "10": "a"}
    assert VfmContent(fm="m", config="", versions=hashes).version == "10"
    pinned = "version_policy { specific { versions: 2 } }"
    assert VfmContent(fm="m", config=pinned, versions=hashes).version == "2"


def test_a_fleet_that_is_to_run_says_where_from() -> None:
    run = "run: {repository: r, store: s, door: {tls_cert: a.pem}}"
    with pytest.raises(InvalidInput, match="tls_cert and tls_key go together"):
        parse_fleet(FLEET + run, "fleet")
    fleet = parse_fleet(FLEET + "run: {repository: r, store: s}", "fleet")
    assert fleet.run is not None
    assert (fleet.run.name, fleet.run.door.port) == ("fleet", 8080)
    assert Fleet.model_validate_json(fleet.model_dump_json()) == fleet, "as the controller keeps it"
