"""The bare backbone in a process of its own, with an engine's threads and environment: what serving is compared to.

``python -m fmplex_tools.bench.engine.bare ORDER``, driven by `Bare`. It prints what it computes on as a line of JSON,
then answers lines of JSON (a shape, how often) with the seconds of each forward pass, until the end of input. A pass
has no collating, no adapters and no heads in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fmplex_backend.errors import EngineFailure
from fmplex_backend.host.engine_environment import engine_environment
from fmplex_backend.repository.config import fm_settings

WARM_UP = 2
"""Passes of a new shape that do not count."""


class Bare:
    """The process, from this side. A context manager; raises `EngineFailure` where the process does not answer."""

    def __init__(self, physical: Path, dtype: str, device: str, threads: int) -> None:
        """``physical`` is the folder of the physical FM whose backbone is taken; 0 threads are every core."""
        spec = fm_settings(physical).backbone
        self._order = json.dumps({"spec": spec, "dtype": dtype, "device": device, "threads": threads})
        self._process: subprocess.Popen[str] | None = None
        self.machine: dict[str, Any] = {}
        """As `fmplex_tools.bench.engine.command.machine`, once it has started."""

    def __enter__(self) -> Bare:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fmplex_tools.bench.engine.bare", self._order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=engine_environment(),
            start_new_session=True,  # Ctrl-C is ours to handle
        )
        try:
            self.machine = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def run(self, rows: int, tokens: int, *, count: int = 1, seconds: float = 0.0) -> list[float]:
        """Forward passes of such a batch, one after the other, at least ``count`` and for ``seconds``: each one's."""
        assert self._process is not None
        assert self._process.stdin is not None
        order = {"rows": rows, "tokens": tokens, "count": count, "seconds": seconds}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        times: list[float] = self._answer()
        return times

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise EngineFailure(f"the process of the bare backbone ended with code {self._process.wait()}")
        return json.loads(line)


def _main() -> None:
    order = json.loads(sys.argv[1])
    from fmplex_tools.bench.engine.command import compute_as_an_engine, machine

    compute_as_an_engine(order["device"], order["threads"])
    import torch

    from fmplex_backend.backbones.registry import load_backbone
    from fmplex_tools.bench.engine.adapters import collated, random_rows

    backbone = load_backbone(order["spec"], order["dtype"], order["device"])
    shapes: dict[tuple[int, int], Any] = {}

    def run(inputs: Any) -> float:
        begun = time.perf_counter()
        backbone.forward(inputs)
        if order["device"] != "cpu":
            torch.cuda.synchronize(order["device"])
        return time.perf_counter() - begun

    print(json.dumps(machine(order["device"])), flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            asked = json.loads(line)
            shape = asked["rows"], asked["tokens"]
            if shape not in shapes:
                shapes[shape] = collated(backbone, random_rows(backbone.model, *shape))
                for _ in range(WARM_UP):
                    run(shapes[shape])
            begun = time.perf_counter()
            times: list[float] = []
            while len(times) < asked["count"] or time.perf_counter() - begun < asked["seconds"]:
                times.append(run(shapes[shape]))
            print(json.dumps(times), flush=True)


if __name__ == "__main__":
    _main()
