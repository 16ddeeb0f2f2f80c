"""What the metrics cost, measured: ``python -m fmplex_tools.top.cost``.

Events are timed here. Publishing is timed inside a real tritonserver, in a Python model that does nothing else: a
first push of so many busy vFMs, further ones, idle ones, and the end of all series. No engine runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmplex_backend.host.metrics import Meter
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.scheduling.fair import BatchFairQueue
from fmplex_backend.scheduling.interface import Batch, Row, VfmPolicy
from fmplex_tools.console import out
from fmplex_tools.server.install import find_triton
from fmplex_tools.server.process import free_ports

VFMS = (8, 1000)
_CONFIG = """backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [1] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [1] } ]
"""
_MODEL = """
import triton_python_backend_utils as pb_utils
from fmplex_tools.top.cost import measure_publishing

def family(series):
    kinds = {"counter": pb_utils.MetricFamily.COUNTER, "gauge": pb_utils.MetricFamily.GAUGE}
    return pb_utils.MetricFamily(name=series.name, description=series.help, kind=kinds[series.kind])

class TritonPythonModel:
    def initialize(self, args):
        measure_publishing(family)

    def execute(self, requests):
        return []
"""


def _batch(rows: int, vfms: int) -> Batch:
    queue = BatchFairQueue(rows, CostModel(alpha=1.0, beta=1e-6))
    for number in range(vfms):
        queue.add_vfm(f"vfm{number}", VfmPolicy(), 0.0)
    for number in range(rows):
        queue.submit([Row(f"vfm{number % vfms}", 20, None)], 0.0)
    batch = queue.next_batch(0.0).batch
    assert batch is not None
    return batch


def events() -> dict[str, float]:
    """Event → microseconds."""
    meter = Meter()
    for number in range(8):
        meter.set_policy(f"vfm{number}", 1.0, 0.1)
    batch = _batch(64, 8)
    charges = dict.fromkeys(batch.shares, 0.001)
    calls: dict[str, Callable[[], None]] = {
        "request queued": lambda: meter.submitted(1e-5),
        "request answered": lambda: meter.answered(["vfm1"], "served", 0.01),
        "request rejected": lambda: meter.refused(["vfm1"], 1, "rejected", "queue_full"),
        "row expired": lambda: meter.expired("vfm1", "passed"),
        f"batch of {len(batch.rows)} rows of 8 vFMs decided": lambda: meter.decided(batch, 1e-5),
        f"batch of {len(batch.rows)} rows of 8 vFMs completed": lambda: meter.completed(batch, charges, 0.01, 1.0, 2.0),
    }
    return {what: _time(call, 20_000) * 1e6 for what, call in calls.items()}


def _time(call: Callable[[], None], times: int) -> float:
    """Seconds a call; the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(times // 3):
            call()
        best = min(best, (time.perf_counter() - began) / (times // 3))
    return best


def measure_publishing(open_family: Callable[[Any], Any]) -> None:
    """Inside tritonserver's Python stub: write the figures to the file that the environment names."""
    from fmplex_backend.host import publishing

    publishing.DUTY = 1.0  # without rests: what the sending itself takes
    figures = {}
    for vfms in VFMS:
        meter = Meter()
        for number in range(vfms):
            meter.set_policy(f"review_polarity{number}", 1.0, None)
        clock = iter(range(1_000))
        snapshots: list[float] = []

        def look(meter: Meter = meter, clock: Any = clock, snapshots: list[float] = snapshots) -> Any:
            began = time.perf_counter()
            snapshot = meter.snapshot(float(next(clock)), {})
            snapshots.append(time.perf_counter() - began)
            return snapshot

        publisher = publishing.Publisher("minilm", look, open_family, print)
        memory = _memory()
        found = {"first push, idle": _cost(publisher.publish), "push, idle": _cost(publisher.publish)}
        for label in ("first push, all busy", "push, all busy"):
            _work(meter, vfms)
            found[label] = _cost(publisher.publish)
            found[f"{label}: snapshot"] = (snapshots[-1], 0.0, 0.0)
        found["end of all series"] = _cost(publisher.stop)
        figures[vfms] = {"seconds": found, "bytes": [now - then for now, then in zip(_memory(), memory, strict=True)]}
    Path(os.environ["FMPLEX_COST_FILE"]).write_text(json.dumps(figures))


def _work(meter: Meter, vfms: int) -> None:
    """A row served for every vFM, and a request."""
    queue = BatchFairQueue(64, CostModel(alpha=1.0, beta=1e-6))
    for number in range(vfms):
        name = f"review_polarity{number}"
        queue.add_vfm(name, VfmPolicy(), 0.0)
        queue.submit([Row(name, 20, None)], 0.0)
    while (batch := queue.next_batch(0.0).batch) is not None:
        meter.decided(batch, 1e-4)
        meter.completed(batch, queue.complete(batch, 0.01, 0.0), 0.01, 0.5, 1.0)
    for number in range(vfms):
        meter.answered([f"review_polarity{number}"], "served", 0.03)


def _cost(call: Callable[[], None]) -> tuple[float, float, float]:
    """Seconds by the clock, of this process's CPU and of tritonserver's."""
    began, own, server = time.perf_counter(), time.process_time(), _cpu(os.getppid())
    call()
    return time.perf_counter() - began, time.process_time() - own, _cpu(os.getppid()) - server


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory() -> list[int]:
    """Resident bytes of this process and of tritonserver."""
    return [int(Path(f"/proc/{p}/statm").read_text().split()[1]) * 4096 for p in (os.getpid(), os.getppid())]


def publishing_in_triton() -> dict[str, Any]:
    """Run `measure_publishing` in a real tritonserver; its figures."""
    install = find_triton()
    with tempfile.TemporaryDirectory(prefix="fmplex-cost-") as name:
        folder = Path(name)
        model = folder / "repository" / "cost"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(_CONFIG)
        (model / "1" / "model.py").write_text(_MODEL)
        figures = folder / "figures.json"
        ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
        server = subprocess.Popen(
            [
                str(install.binary),
                f"--backend-directory={install.lay_out(folder)}",
                f"--model-repository={model.parent}",
                *(f"--{what}-port={port}" for what, port in ports.items()),
            ],
            env=install.environment() | {"FMPLEX_COST_FILE": str(figures)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 120
            while not (figures.exists() and figures.stat().st_size):
                if server.poll() is not None or time.monotonic() > end:
                    sys.exit("tritonserver gave no figures")
                time.sleep(0.2)
            time.sleep(0.2)
            found: dict[str, Any] = json.loads(figures.read_text())
            return found
        finally:
            server.terminate()
            server.wait(30)


def main() -> None:
    """Print everything."""
    for what, micros in events().items():
        out.print(f"{what:<45} {micros:6.2f} µs")
    for vfms, figures in publishing_in_triton().items():
        out.print(f"\n{vfms} vFMs: ms by the clock, of the host's CPU, of tritonserver's CPU")
        for what, seconds in figures["seconds"].items():
            out.print(f"  {what:<35} " + " ".join(f"{value * 1e3:9.1f}" for value in seconds))
        out.print(
            "  resident KB, host and tritonserver: " + " ".join(f"{size / 1024:.0f}" for size in figures["bytes"])
        )


if __name__ == "__main__":
    main()
