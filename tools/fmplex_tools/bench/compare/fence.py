"""Static spatial partitioning: each of N models is kept to 1/N of the machine, whether the others are busy or not.

A CPU is divided by cgroup quotas: the kernel's own bandwidth control, which also divides a core. Where cgroups cannot
be written, each model gets cores of its own (CPU affinity), and where there are fewer cores than models some share one.
A GPU is divided by MPS. A model joins its fence by itself (`join`), before it loads anything.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fmplex_backend.errors import InvalidInput

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
"""Of the quota, the kernel's own choice, Docker's and Kubernetes'."""
LEAST_QUOTA_US = 1_000
"""The kernel takes no smaller one."""
MPS_THREADS = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
_GROUP = re.compile(r"fmplex-bench-(\d+)-\d+")
_NUMBERS = itertools.count()
_GONE_SECONDS = 5.0


@dataclass
class Fences:
    """Fences of equal size; a model is told its own as text, see `join`. From `make_fences`."""

    how: str
    """In words, for the report."""
    members: list[str]
    """Of model 0, 1, …"""
    groups: _Groups | None = field(default=None, repr=False)

    def add(self) -> str | None:
        """A fence more, while the others run: all are cut anew to 1/(N+1). None where only a restart could do that."""
        if self.groups is None:
            return None
        self.members += [f"cgroup:{folder}" for folder in self.groups.add()]
        return self.members[-1]


class _Groups:
    """Cgroups with equal CPU quotas, of version 1 or 2."""

    def __init__(self, root: Path, unified: bool, cpus: int) -> None:
        self._root, self.unified, self._cpus = root, unified, cpus
        self.folders: list[Path] = []

    def add(self, count: int = 1) -> list[Path]:
        """Make ``count`` groups more and give all there are the same quota; the new ones. Raises `OSError`."""
        made = []
        for _ in range(count):
            made.append(self._root / f"fmplex-bench-{os.getpid()}-{next(_NUMBERS)}")
            made[-1].mkdir()
            self.folders.append(made[-1])
        # Together never more than the machine, each never less than the kernel takes.
        period = max(PERIOD_US, LEAST_QUOTA_US * len(self.folders) // self._cpus + 1)
        quota = self._cpus * period // len(self.folders)
        for one in self.folders:
            if self.unified:
                (one / "cpu.max").write_text(f"{quota} {period}")
            else:
                (one / "cpu.cfs_period_us").write_text(str(period))
                (one / "cpu.cfs_quota_us").write_text(str(quota))
        return made

    def remove(self) -> None:
        """Remove the groups; what still runs in one goes back to where it would have been."""
        for folder in self.folders:
            _remove(folder)


@contextmanager
def make_fences(count: int, device: str = "cpu", root: Path = CGROUPS) -> Iterator[Fences]:
    """``count`` fences of 1/``count`` of the CPUs that this process may use, or of the GPU ``device``.

    Cgroups are gone when the block ends, whatever became of their processes; those that a killed benchmark left are
    removed first. Raises `InvalidInput` where ``count`` is not positive.
    """
    if count < 1:
        raise InvalidInput(f"{count} fences; at least 1 is needed")
    if device != "cpu":
        percentage = 100 / count
        how = f"MPS: {percentage:g} % of the GPU's threads each, where its control daemon runs"
        yield Fences(how, [f"mps:{percentage:g}"] * count)
        return
    cpus = sorted(os.sched_getaffinity(0))
    groups = _cgroups(root, len(cpus))
    try:
        fences = _divide(groups, count, cpus)
        yield fences
    finally:
        if groups is not None:
            groups.remove()


def _divide(groups: _Groups | None, count: int, cpus: Sequence[int]) -> Fences:
    share = f"{len(cpus) / count:g} of {len(cpus)} CPUs each"
    if groups is not None:
        try:
            members = [f"cgroup:{folder}" for folder in groups.add(count)]
            return Fences(f"cgroup v{2 if groups.unified else 1} CPU quota: {share}", members, groups)
        except OSError:
            groups.remove()
            groups.folders.clear()
    each = max(1, len(cpus) // count)
    own = [[cpus[(model * each + turn) % len(cpus)] for turn in range(each)] for model in range(count)]
    how = f"CPU affinity (no cgroup can be written): {each} of {len(cpus)} CPUs each"
    how += f", {count / len(cpus):g} models on one" if count > len(cpus) else ""
    return Fences(how, [f"cpus:{','.join(map(str, one))}" for one in own])


def _cgroups(root: Path, cpus: int) -> _Groups | None:
    """Where groups can be made: version 1's hierarchy ``cpu``, else the unified one. None where neither can."""
    unified = (root / "cgroup.controllers").is_file()
    folder = root if unified else root / "cpu"
    try:
        if unified:
            (folder / "cgroup.subtree_control").write_text("+cpu")
        if not os.access(folder, os.W_OK) or not (unified or (folder / "cpu.cfs_quota_us").is_file()):
            return None
        for stale in folder.iterdir():
            if (found := _GROUP.fullmatch(stale.name)) and not Path(f"/proc/{found[1]}").exists():
                _remove(stale)
    except OSError:
        return None
    return _Groups(folder, unified, cpus)


def _remove(folder: Path) -> None:
    end = time.monotonic() + _GONE_SECONDS
    while folder.exists():
        with contextlib.suppress(OSError):  # a process that ends just now can be neither moved nor left
            for pid in (folder / "cgroup.procs").read_text().split():
                (folder.parent / "cgroup.procs").write_text(pid)
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def may_join_late(fence: str) -> bool:
    """Whether all threads of a process come into ``fence`` with it, so that it may load at the machine's full speed.

    16 models that load at a 16th of it, one after the other as Triton loads them, take ten minutes.
    """
    return fence.startswith("cgroup:")


def join(fence: str) -> None:
    """Put this process, all of its threads and all that it will start into ``fence``; "" is no fence.

    Raises `InvalidInput` where it is none that `make_fences` made, `OSError` where it is gone.
    """
    kind, _, value = fence.partition(":")
    if kind == "cgroup":
        (Path(value) / "cgroup.procs").write_text(str(os.getpid()))
    elif kind == "cpus":
        os.sched_setaffinity(0, {int(cpu) for cpu in value.split(",")})
    elif kind == "mps":
        os.environ[MPS_THREADS] = value  # read by CUDA when this process first uses the GPU
    elif fence:
        raise InvalidInput(f"fence {fence!r}: is none of cgroup:FOLDER, cpus:0,1,… or mps:PERCENTAGE")
