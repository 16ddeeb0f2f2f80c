"""config.pbtxt: what is read from it, and what is refused with key, value and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from fmplex_backend.errors import Refused
from fmplex_backend.repository.config import (
    CONFIG_FILE,
    FMSettings,
    Policy,
    VfmConfig,
    ensemble_config,
    fm_settings,
    is_physical,
    read_config,
    vfm_config,
    write_config,
)
from fmplex_backend.repository.sockets import SOCKETS, output_name, parse_output_name, wanted_sockets


def ensemble(**parameters: str) -> ModelConfig:
    outputs = {"logits": (17, "vector"), "label": (17, "text")}
    return ensemble_config("minilm", outputs, {"logits": [2], "label": [1]}, parameters=parameters)


def read(config: ModelConfig) -> VfmConfig:
    found = vfm_config("spam", config, {"minilm"})
    assert found is not None
    return found


def test_threads_are_shared_by_cpu_engines() -> None:
    def threads(**settings: str) -> int:
        return FMSettings.parse({"backbone": "b", **settings}, "FM").compute_threads(cores=8)

    assert threads() == 8
    assert threads(engines="cpu,cpu") == 4
    assert threads(engines="cuda:0,cpu") == 8
    assert threads(engines=",".join(["cpu"] * 9)) == 1
    assert threads(engines="cpu,cpu", threads="3") == 3


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "spam").mkdir()
    path = tmp_path / "spam/config.pbtxt"
    write_config(path, ensemble(weight="4", max_queue_size="9", timeout_ms="250"), "A comment.")
    assert path.read_text().startswith("# A comment.\n")
    config = read(read_config(path))
    assert (config.name, config.fm, config.ports, config.is_bundle) == ("spam", "minilm", (17,), False)
    assert config.outputs == {"logits": (17, "vector"), "label": (17, "text")}
    assert config.output_dims == {"logits": (2,), "label": (1,)}
    assert config.policy == Policy(weight=4, max_queue_size=9, timeout_ms=250)


def test_defaults() -> None:
    assert read(ensemble()).policy == Policy(weight=1, max_queue_size=512, timeout_ms=0)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("weight", "0", "'weight' is '0': Input should be greater than 0"),
        ("weight", "-2", "'weight' is '-2'"),
        ("weight", "nan", "'weight' is 'nan'"),
        ("weight", "inf", "'weight' is 'inf'"),
        ("weight", "", "'weight' is ''"),
        ("weight", "four", "'weight' is 'four'"),
        ("max_queue_size", "0", "'max_queue_size' is '0'"),
        ("max_queue_size", "2.5", "'max_queue_size' is '2.5'"),
        ("timeout_ms", "-1", "'timeout_ms' is '-1'"),
        ("wieght", "1", "unknown parameter 'wieght'; known are weight, max_queue_size, timeout_ms"),
    ],
)
def test_bad_policy(key: str, value: str, says: str) -> None:
    with pytest.raises(Refused) as caught:
        read(ensemble(**{key: value}))
    assert str(caught.value).startswith("vFM 'spam': ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "parameter 'backbone' is missing"),
        ({"backbone": "x", "dtype": "int8"}, "'dtype' is 'int8'"),
        ({"backbone": "x", "engines": "gpu"}, "'engines' is 'gpu'"),
        ({"backbone": "x", "engines": "cuda:0,"}, "'engines' is 'cuda:0,'"),
        ({"backbone": "x", "ports": "0"}, "'ports' is '0'"),
        ({"backbone": "x", "max_adapter_rank": "many"}, "'max_adapter_rank' is 'many'"),
        ({"backbone": "x", "policy": "lifo"}, "'policy' is 'lifo'"),
        ({"backbone": "x", "port": "9"}, "unknown parameter 'port'"),
    ],
)
def test_bad_physical_fm(parameters: dict[str, str], says: str, tmp_path: Path) -> None:
    config = ModelConfig(backend="fmplex")
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    assert is_physical(config)
    folder = tmp_path / "minilm"
    folder.mkdir()
    write_config(folder / CONFIG_FILE, config)
    with pytest.raises(Refused) as caught:
        fm_settings(folder)
    assert str(caught.value).startswith("physical FM 'minilm': ")
    assert says in str(caught.value)


def test_several_devices() -> None:
    assert FMSettings(backbone="x", engines="cuda:0,cuda:1").engines == "cuda:0,cuda:1"


def _two_steps(config: ModelConfig) -> None:
    config.ensemble_scheduling.step.add(model_name="minilm").output_map["port3.vector"] = "other"


def _socket(name: str) -> Callable[[ModelConfig], None]:
    def change(config: ModelConfig) -> None:
        config.ensemble_scheduling.step[0].output_map[name] = "logits"

    return change


def _no_outputs(config: ModelConfig) -> None:
    config.ensemble_scheduling.step[0].output_map.clear()


def _type(config: ModelConfig) -> None:
    config.output[0].data_type = "TYPE_INT64"  # type: ignore[assignment]


def _unknown_type(config: ModelConfig) -> None:
    config.output[0].data_type = 99  # type: ignore[assignment]


def _no_batches(config: ModelConfig) -> None:
    config.max_batch_size = 0


def _versions(config: ModelConfig) -> None:
    config.version_policy.specific.versions.extend([1, 2])


def _latest_two(config: ModelConfig) -> None:
    config.version_policy.latest.num_versions = 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_two_steps, "several steps to physical FMs"),
        (_socket("port17.vectr"), "'port17.vectr' is no socket"),
        (_socket("vector"), "'vector' is no socket"),
        (_socket("port-1.vector"), "'port-1.vector' is no socket"),
        (_socket("port01.vector"), "'port01.vector' is no socket"),
        (_socket("port٣.vector"), "'port٣.vector' is no socket"),
        (_socket(f"port{'9' * 5000}.vector"), "is no socket"),
        (_no_outputs, "maps no output"),
        (_type, "is TYPE_INT64, its socket gives"),
        (_unknown_type, "is data_type 99, its socket gives"),
        (_no_batches, "max_batch_size is 0"),
        (_versions, "version_policy serves several versions"),
        (_latest_two, "version_policy serves several versions"),
    ],
)
def test_bad_ensemble(change: Callable[[ModelConfig], None], says: str) -> None:
    config = ensemble()
    change(config)
    with pytest.raises(Refused) as caught:
        read(config)
    assert str(caught.value).startswith("vFM 'spam': ")
    assert says in str(caught.value)


def test_pinned_version_and_latest() -> None:
    config = ensemble()
    config.version_policy.specific.versions.append(3)
    assert read(config).pinned_version == 3
    config.version_policy.latest.num_versions = 1
    assert read(config).pinned_version is None


def test_other_ensembles_are_none_of_ours() -> None:
    assert vfm_config("other", ensemble(), {"somebody else"}) is None


def test_bundle() -> None:
    config = ensemble_config("minilm", {"a": (1, "vector"), "b": (2, "text")}, {"a": [2], "b": [1]})
    assert read(config).is_bundle
    assert read(config).ports == (1, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("platform: ensemble", "not a valid model configuration: 1:"),
        ('nmae: "x"', "not a valid model configuration: 1:1"),
        (f"max_batch_size: {'9' * 5000}", "not a valid model configuration"),
        ('name: "other"', "says name 'other'"),
        (b"\xff", "cannot read config.pbtxt"),
        (None, "cannot read config.pbtxt"),
    ],
)
def test_unreadable(tmp_path: Path, text: str | bytes | None, says: str) -> None:
    (tmp_path / "spam").mkdir()
    if text is not None:
        (tmp_path / "spam/config.pbtxt").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(Refused) as caught:
        read_config(tmp_path / "spam/config.pbtxt")
    assert says in str(caught.value)
    assert "'spam'" in str(caught.value)


@given(port=st.integers(0, 99999), socket=st.sampled_from(sorted(SOCKETS)))
def test_socket_names_round_trip(port: int, socket: str) -> None:
    assert parse_output_name(output_name(port, socket)) == (port, socket)


def test_what_a_request_asks_of_which_port() -> None:
    wanted = wanted_sockets(frozenset({"port10.info", "port2.vector", "port2.text", "status", "port2.nothing"}))
    assert list(wanted.items()) == [(2, {"vector", "text"}), (10, {"info"})]
    assert not wanted_sockets(frozenset({"status"}))


def test_a_bundle_has_no_policy() -> None:
    outputs = {"a": (1, "vector"), "b": (2, "vector")}
    config = ensemble_config("minilm", outputs, {"a": [2], "b": [2]}, parameters={"weight": "2"})
    with pytest.raises(Refused, match="bundle 'both': parameter 'weight' would have no effect"):
        vfm_config("both", config, {"minilm"})


def test_a_backbone_may_lie_in_the_physical_fms_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "minilm"
    (folder / "1").mkdir(parents=True)
    config = ModelConfig(backend="fmplex")
    config.parameters["backbone"].string_value = "./1"
    write_config(folder / CONFIG_FILE, config)
    assert fm_settings(folder).backbone == str(folder / "1")
