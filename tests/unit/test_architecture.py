"""The halves stay apart: no torch in the host, nothing but itself in the scheduler, Triton at one edge only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fmplex_backend"
TORCHLESS = (
    "fmplex_backend.host.host",
    "fmplex_backend.scheduling.fifo",
    "fmplex_backend.repository.packed",
    "fmplex_backend.repository.interface",
    "fmplex_backend.repository.peft_checkpoint",
    "fmplex_backend.encoders.choice",
    "fmplex_backend.encoders.image",
    "fmplex_backend.backbones.facts",
    "fmplex_backend.backbones.source",
    "fmplex_backend.messages",
)


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("module", TORCHLESS)
def test_host_side_imports_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "bad = {'torch', 'transformers', 'peft', 'triton_python_backend_utils'} & set(sys.modules)\n"
        "sys.exit(f'{sorted(bad)} imported' if bad else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("part", ["host", "repository", "scheduling", "encoders"])
def test_host_side_never_imports_torch_later_either(part: str) -> None:
    for path in modules(PACKAGE / part):
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"torch", "transformers", "peft"}, path


def test_scheduling_imports_only_itself_and_the_standard_library() -> None:
    files = modules(PACKAGE / "scheduling")
    assert len(files) >= 3
    for path in files:
        for name in imported(path):
            root = name.split(".")[0]
            assert root in sys.stdlib_module_names or name.startswith("fmplex_backend.scheduling"), (path, name)
            assert root not in {"threading", "time", "asyncio", "queue"}, f"{path}: the queue is pure"


def test_only_the_edge_knows_triton() -> None:
    mention = [p.relative_to(PACKAGE).as_posix() for p in modules(PACKAGE) if _mentions_triton(p)]
    assert mention == ["model.py"]


def _mentions_triton(path: Path) -> bool:
    return "triton_python_backend_utils" in imported(path)


def test_nothing_unpickles_what_a_stranger_wrote() -> None:
    """`transport` does: it carries messages between a host and the engine that it started, and nothing from files."""
    for path in modules(PACKAGE):
        if path.name == "transport.py":
            continue
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}, path
        assert "torch.load" not in path.read_text(encoding="utf-8"), path
