"""Life in the repository without training: publishing, listing, setting, bundling, removing. Artifacts are by hand."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fmplex_backend.errors import FMplexError, InvalidInput, NotFound, Refused
from fmplex_backend.repository.artifact import Artifact, BackboneRef
from fmplex_backend.repository.config import CONFIG_FILE, read_config
from fmplex_backend.repository.layout import ports_in_use
from fmplex_backend.repository.modalities import TextSpec
from fmplex_backend.repository.watch import stamp
from fmplex_tools.task_cli import app
from fmplex_tools.tasks import create_bundle, list_tasks, publish, release_task, remove_task, set_task, show_task
from fmplex_tools.tasks.artifact_writer import write_version
from fmplex_tools.tasks.heads import Head

FM_CONFIG = 'backend: "fmplex"\nmax_batch_size: 64\nparameters { key: "backbone" value { string_value: "/none" } }\n'
RUN = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "toy" / "1").mkdir(parents=True)
    (folder / "toy" / CONFIG_FILE).write_text(FM_CONFIG)
    return folder


def _publish(repository: Path, name: str, *, pair: bool = False, parameters: dict[str, str] | None = None) -> int:
    artifact = Artifact(
        kind="classification",
        backbone=BackboneRef(name="toy", fingerprint="sha256:" + "0" * 64),
        labels=("ham", "spam"),
        encoder=TextSpec(max_length=16, pair=pair),
    )
    with publish.staged(repository) as scratch:
        write_version(scratch / "version", artifact, Head(np.zeros((2, 8), np.float32), np.zeros(2, np.float32)))
        return publish.publish_vfm(
            repository,
            name,
            "toy",
            1024,
            scratch / "version",
            artifact,
            2,
            max_batch_size=64,
            parameters=parameters or {},
        )


def _staging(repository: Path) -> list[str]:
    return [path.name for path in publish.staging_root(repository).iterdir() if path.name != "lock"]


def test_vfms_get_the_lowest_free_port(repository: Path) -> None:
    assert [_publish(repository, name) for name in "abc"] == [0, 1, 2]
    remove_task(repository, "b")
    assert _publish(repository, "d") == 1
    assert sorted(path.name for path in repository.iterdir()) == ["a", "c", "d", "toy"]
    assert _staging(repository) == []


def test_a_name_that_is_taken_or_no_name_is_refused(repository: Path) -> None:
    _publish(repository, "a")
    with pytest.raises(InvalidInput, match=r"is in .* already"):
        _publish(repository, "a")
    for bad in ("", "../a", ".hidden", "a b", "a/b"):
        with pytest.raises(InvalidInput, match="vFM name"):
            publish.check_name(bad)
    assert _staging(repository) == []


def test_an_interrupted_publication_leaves_nothing(repository: Path) -> None:
    def half() -> None:
        with publish.staged(repository) as scratch:
            (scratch / "half").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert _staging(repository) == []
    assert [path.name for path in repository.iterdir()] == ["toy"]


def test_what_a_killed_process_left_is_swept(repository: Path) -> None:
    with publish.staged(repository) as living:
        dead = publish.staging_root(repository) / "dead"
        dead.mkdir()
        (dead / ".alive").touch()
        with publish.staged(repository):
            assert not dead.exists()
            assert living.exists()


def _publish_many(repository: Path, prefix: str) -> None:
    for number in range(5):
        _publish(repository, f"{prefix}{number}")


def test_concurrent_publications_never_share_a_port(repository: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_publish_many, args=(repository, prefix)) for prefix in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    used = ports_in_use(repository, "toy")
    assert sorted(used) == list(range(15))
    assert all(len(names) == 1 for names in used.values())


def test_set_changes_the_policy_and_keeps_the_rest(repository: Path) -> None:
    _publish(repository, "a", parameters={"weight": "2"})
    before = read_config(repository / "a" / CONFIG_FILE)
    info = set_task(repository, "a", {"weight": "4", "max_queue_size": "64"})
    assert info.policy is not None
    assert (info.policy.weight, info.policy.max_queue_size) == (4, 64)
    after = read_config(repository / "a" / CONFIG_FILE)
    assert after.ensemble_scheduling == before.ensemble_scheduling
    assert (repository / "a" / CONFIG_FILE).read_text().startswith("# vFM a: classification on toy, port 0.")


def test_release_writes_the_config_as_it_is(repository: Path) -> None:
    _publish(repository, "a", parameters={"weight": "2"})
    config = repository / "a" / CONFIG_FILE
    before, text = stamp(str(config)), config.read_text()
    release_task(repository, "a")
    assert config.read_text() == text
    assert stamp(str(config)) != before


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"weight": "0"}, "'weight' is '0'"),
        ({"weight": "-1"}, "'weight' is '-1'"),
        ({"weight": "heavy"}, "'weight' is 'heavy'"),
        ({"wieght": "2"}, "unknown parameter 'wieght'"),
    ],
)
def test_a_wrong_policy_is_refused_before_anything_is_written(
    repository: Path, values: dict[str, str], says: str
) -> None:
    _publish(repository, "a")
    text = (repository / "a" / CONFIG_FILE).read_text()
    with pytest.raises(Refused) as caught:
        set_task(repository, "a", values)
    assert says in str(caught.value)
    assert "vFM 'a'" in str(caught.value)
    assert (repository / "a" / CONFIG_FILE).read_text() == text


def test_versions_can_be_pinned_and_unpinned(repository: Path) -> None:
    _publish(repository, "a")
    with publish.staged(repository) as scratch:
        (scratch / "version").mkdir()
        (scratch / "version" / "vfm.json").write_text((repository / "a" / "1" / "vfm.json").read_text())
        assert publish.publish_version(repository, "a", scratch / "version") == 2
    assert (show_task(repository, "a").version, show_task(repository, "a").pinned) == (2, False)
    info = set_task(repository, "a", {}, "1")
    assert (info.version, info.pinned) == (1, True)
    assert set_task(repository, "a", {}, "latest").version == 2
    with pytest.raises(InvalidInput, match="has no version '3'; it has 1, 2"):
        set_task(repository, "a", {}, "3")


def test_a_bundle_shows_its_members_and_keeps_them_from_being_removed(repository: Path) -> None:
    for name in "ab":
        _publish(repository, name)
    info = create_bundle(repository, "both", ["a", "b"])
    assert info.bundle
    assert info.ports == (0, 1)
    assert set(info.outputs) == {f"{name}_{output}" for name in "ab" for output in ("label", "probabilities", "info")}
    with pytest.raises(InvalidInput, match="has no policy of its own"):
        set_task(repository, "both", {"weight": "2"})
    with pytest.raises(InvalidInput, match="part of bundle both"):
        remove_task(repository, "a")
    remove_task(repository, "both")
    remove_task(repository, "a")
    assert [task.name for task in list_tasks(repository)] == ["b"]


def test_bundles_that_cannot_work_are_refused(repository: Path) -> None:
    _publish(repository, "a")
    _publish(repository, "p", pair=True)
    for members, says in ((["a"], "at least 2"), (["a", "p"], "read different inputs"), (["a", "x"], "no vFM 'x'")):
        with pytest.raises(FMplexError, match=says):
            create_bundle(repository, "both", members)


def test_broken_vfms_are_listed_with_what_is_wrong(repository: Path) -> None:
    for name in "abc":
        _publish(repository, name)
    (repository / "a" / "1" / "vfm.json").write_text("{")
    (repository / "b" / CONFIG_FILE).write_text("platform: 3")
    problems = {task.name: task.problem for task in list_tasks(repository)}
    assert "not valid JSON" in (problems["a"] or "")
    assert problems["b"]
    assert problems["c"] is None


def test_removing_what_is_not_there_or_is_shared_is_refused(repository: Path) -> None:
    with pytest.raises(NotFound, match="no vFM 'x'"):
        remove_task(repository, "x")
    with pytest.raises(InvalidInput, match="physical FM"):
        remove_task(repository, "toy")


def test_the_commands_answer_in_one_line_and_an_exit_code(repository: Path) -> None:
    _publish(repository, "a")
    where = ["-r", str(repository)]
    assert "classification" in RUN.invoke(app, ["list", *where]).output
    assert "ham, spam" in RUN.invoke(app, ["show", "a", *where]).output
    assert RUN.invoke(app, ["set", "a", "weight=3", *where]).exit_code == 0
    for line in ("set a weight=0", "set a weight", "show x", "remove x", "bundle b a"):
        result = RUN.invoke(app, [*line.split(), *where])
        assert result.exit_code == 1
        assert result.stderr.startswith("error:")
        assert "Traceback" not in result.output
    for verb in ("create", "train", "import", "list", "show", "set", "remove", "bundle"):
        assert "Examples" in RUN.invoke(app, [verb, "--help"]).output
    assert RUN.invoke(app, ["remove", "a", *where]).exit_code == 0
    assert list_tasks(repository) == []
