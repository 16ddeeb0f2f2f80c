"""What is assumed of a cluster: its devices, and what each FM takes on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fmplex_backend.scheduling.cost import CostModel
from fmplex_tools.planner.estimate import mean_work

MOST_VFMS = 1000
"""Of a replica: as many as one was really served with (docs/results.md)."""
MOST_ROWS = 64
"""Of a batch, everywhere."""
PATIENCE = 10
"""A target is at least so many times what a row takes alone."""
GPU_MEMORY = 80 * 10**9
GPU_FASTER = 100.0
"""A row's work on the GPU that is assumed, as a part of what was measured on this machine's processor."""
GPU_ALPHA, GPU_GAMMA = 5e-3, 2e-5
"""As the simulator's "h200" has them: most of a small model's batch is its launches."""
GPU_PROCESS = 500 * 10**6
"""Of a process's CUDA context and libraries."""


@dataclass(frozen=True)
class OnDevice:
    """What an FM takes on one device; bytes and seconds."""

    name: str
    cost: CostModel
    lengths: Mapping[int, float]
    """Tokens of a row → how often."""
    weights: int
    """Of the backbone alone."""
    replica: int
    """Of a replica without vFMs."""
    vfm: int
    """Of an adapter and a head."""
    copy: int
    """Of a private copy."""

    @property
    def work(self) -> float:
        """Seconds of a mean row, apart from its launch."""
        return mean_work(self.lengths, self.cost)

    def target(self, p99: float) -> float:
        """Seconds within which 99 of 100 rows are answered, where ``p99`` are wanted."""
        return max(p99, PATIENCE * (self.cost.alpha + self.work))


@dataclass(frozen=True)
class World:
    """A kind of device, and what is assumed of private copies on it."""

    name: str
    says: str
    """For people: what was measured, and what is assumed."""
    memory: int
    """Of a device, bytes."""
    fms: tuple[OnDevice, ...]
    overlap: bool = False
    """Whether a private copy's launches take no time of the device, as if each had a processor core of its own."""


def measured_world(fms: tuple[OnDevice, ...], memory: int) -> World:
    """Devices such as this machine."""
    return World("this machine", "all measured", memory, fms)


def gpu_world(fms: tuple[OnDevice, ...]) -> World:
    """GPUs, by assumption."""
    made = tuple(_on_gpu(fm) for fm in fms)
    return World("GPU", "assumed: work of a row a hundredth of that measured, launches 5 ms", GPU_MEMORY, made)


def kind_to_copies(world: World) -> World:
    """The same, where private copies cost nothing but their weights and their rows' work."""
    fms = tuple(replace(fm, copy=fm.weights + fm.vfm) for fm in world.fms)
    says = "as above, and kind to copies: no memory but weights, launches for nothing"
    return replace(world, name=f"{world.name}, kind to copies", says=says, fms=fms, overlap=True)


def _on_gpu(fm: OnDevice) -> OnDevice:
    cost = CostModel(GPU_ALPHA, fm.cost.beta / GPU_FASTER, GPU_GAMMA, fm.cost.delta / GPU_FASTER)
    replica = fm.weights + GPU_PROCESS
    return replace(fm, cost=cost, replica=replica, copy=replica + fm.vfm)
