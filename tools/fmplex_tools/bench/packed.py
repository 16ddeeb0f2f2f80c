"""What packed weights save: ``python -m fmplex_tools.bench.packed [SECONDS]``.

The demo's backbone with and without them (`fmplex_backend.backbones.packed_linear`), forward passes of small batches by
turns; shown are the medians of paired ratios.
"""

from __future__ import annotations

import sys
import time

from fmplex_tools.bench.engine.command import FM, REPOSITORY, compute_as_an_engine
from fmplex_tools.bench.engine.rounds import Contender, interleave, ratio

SHAPES = ((1, 8), (1, 16), (1, 32), (4, 16), (1, 128), (4, 32), (8, 32), (2, 128), (16, 32))
"""Rows and tokens; the last is too large for packed weights to be used."""


def main(seconds: float) -> None:
    """Measure for so long, and print."""
    compute_as_an_engine("cpu", 0)
    import torch

    from fmplex_backend.backbones.base import Backbone
    from fmplex_backend.backbones.packed_linear import pack_linears
    from fmplex_backend.backbones.registry import load_backbone
    from fmplex_backend.repository.config import fm_settings
    from fmplex_tools.bench.engine.adapters import collated, random_rows

    spec = fm_settings(REPOSITORY / FM).backbone
    plain, packed = load_backbone(spec, "fp32", "cpu"), load_backbone(spec, "fp32", "cpu")
    if why := pack_linears(packed.model):
        sys.exit(why)

    def passes(backbone: Backbone, rows: int, tokens: int) -> Contender:
        inputs = collated(backbone, random_rows(backbone.model, rows, tokens, 0))

        def run() -> float:
            begun = time.perf_counter()
            with torch.inference_mode():
                backbone.forward(inputs)
            return time.perf_counter() - begun

        return run

    contenders = {
        (name, *shape): passes(backbone, *shape)
        for shape in SHAPES
        for name, backbone in (("plain", plain), ("packed", packed))
    }
    times = interleave({str(key): run for key, run in contenders.items()}, seconds)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("rows  tokens  plain ms  packed / plain")
    for rows, tokens in SHAPES:
        ours, theirs = (times[str((name, rows, tokens))] for name in ("packed", "plain"))
        print(f"{rows:4}  {tokens:6}  {1e3 * min(theirs):8.2f}  {ratio(ours, theirs).median:.3f}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
