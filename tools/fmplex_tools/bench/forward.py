"""What makes a small model's pass quicker on a CPU: ``python -m fmplex_tools.bench.forward [SECONDS [THREADS]]``.

The demo's backbone as transformers computes it, with packed weights (`fmplex_backend.backbones.packed_linear`), and
also without what transformers does around the products (`fmplex_backend.backbones.lean_bert`), as engines have it.
Passes of small batches by turns; shown are the medians of paired ratios.
"""

from __future__ import annotations

import sys
import time

from fmplex_tools.bench.engine.command import FM, REPOSITORY, compute_as_an_engine
from fmplex_tools.bench.engine.rounds import Contender, interleave, ratio

SHAPES = ((1, 8), (1, 16), (1, 32), (4, 16), (1, 128), (4, 32), (8, 32), (2, 128), (16, 32))
"""Rows and tokens; the last is too large for packed weights to be used."""
PLAIN, PACKED, LEAN = "transformers", "packed", "packed and lean"


def main(seconds: float, threads: int) -> None:
    """Measure for so long with so many threads (0: a core each), and print."""
    compute_as_an_engine("cpu", threads)
    import torch

    from fmplex_backend.backbones.packed_linear import pack_linears
    from fmplex_backend.backbones.registry import load_backbone
    from fmplex_backend.repository.config import fm_settings
    from fmplex_tools.bench.engine.adapters import collated, random_rows

    spec = fm_settings(REPOSITORY / FM).backbone
    plain, packed = load_backbone(spec, "fp32", "cpu"), load_backbone(spec, "fp32", "cpu")
    if why := pack_linears(packed.model):
        sys.exit(why)
    ways = {
        PLAIN: lambda inputs: plain.model(**inputs),
        PACKED: lambda inputs: packed.model(**inputs),
        LEAN: packed.forward,
    }

    def passes(name: str, rows: int, tokens: int) -> Contender:
        inputs = collated(plain, random_rows(plain.model, rows, tokens, 0))

        def run() -> float:
            begun = time.perf_counter()
            with torch.inference_mode():
                ways[name](inputs)
            return time.perf_counter() - begun

        return run

    contenders = {str((name, *shape)): passes(name, *shape) for shape in SHAPES for name in ways}
    times = interleave(contenders, seconds)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"rows  tokens  {PLAIN} ms  {PACKED} ×  {LEAN} ×")
    for shape in SHAPES:
        theirs = times[str((PLAIN, *shape))]
        ratios = [ratio(times[str((name, *shape))], theirs).median for name in (PACKED, LEAN)]
        print(f"{shape[0]:4}  {shape[1]:6}  {1e3 * min(theirs):15.2f}  {ratios[0]:8.3f}  {ratios[1]:17.3f}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(float(given[0]) if given else 30.0, int(given[1]) if given[1:] else 0)
