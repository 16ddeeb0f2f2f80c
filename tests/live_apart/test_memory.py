"""Shows 5: one backbone in memory, however many vFMs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as grpc
from support.live import TEXTS, LiveServer, ask, serve
from support.recipes import Recipe, write_vfm

pytestmark = pytest.mark.live

N = 8
ROOT = Path(__file__).parents[2]


def resident(pid: int) -> int:
    """Bytes of the process tree under ``pid``, shared pages counted once (PSS)."""
    root = psutil.Process(pid)
    total = 0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


@pytest.fixture
def fresh(tmp_path: Path, minilm_backbone: Path) -> Iterator[LiveServer]:
    """A server of its own with nothing but the physical FM."""
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "model_repository/minilm", repository / "minilm")
    with serve(repository, minilm_backbone) as live:
        yield live


def test_eight_vfms_on_one_backbone(fresh: LiveServer, minilm_backbone: Path) -> None:
    lora = Recipe(outputs=3, lora={"r": 8, "target_modules": ("query", "value")})
    sizes: dict[int, int] = {}
    with grpc.InferenceServerClient(fresh.grpc) as client:
        for number in range(1, N + 1):
            write_vfm(fresh.repository, f"vfm{number}", number, lora, minilm_backbone, seed=number)
            fresh.wait_serving(f"vfm{number}")
            if number in (1, N):
                for turn in range(2 * N):  # buffers reach their size
                    ask(client, f"vfm{1 + turn % number}", list(TEXTS))
                sizes[number] = resident(fresh.pid)
    n_bytes = [vfm["n_bytes"] for vfm in fresh.status()["vfms"]]
    backbone = (minilm_backbone / "model.safetensors").stat().st_size
    added = (sizes[N] - sizes[1]) / (N - 1)
    print(f"\nresident (PSS of the process tree): {sizes[1] / 1e6:.0f} MB with 1 vFM, {sizes[N] / 1e6:.0f} MB with {N}")
    print(f"per added vFM: {added / 1e6:+.2f} MB resident, noise about 1 MB; n_bytes {n_bytes[0] / 1e6:.2f} MB")
    print(f"the backbone's weights: {backbone / 1e6:.0f} MB, which {N - 1} more models would each have added")
    assert len(n_bytes) == N
    assert sum(n_bytes) < backbone / 10
    assert sizes[N] - sizes[1] < backbone / 2, "7 more vFMs cost less than half of one more backbone"
