"""Fuzz one target with atheris; see the package. Ends with 0 where nothing was found in the time.

The last line of libFuzzer's before that has the edges of our code that were covered (``cov``) and the executions.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
FINDINGS = ROOT / "results/fuzz"
TARGETS = ("config", "artifact", "request", "engine")
LONGEST_BYTES = 64 << 10
SLOWEST_SECONDS, MOST_MB = 10, 2048
"""For one input and for the process; what takes more is a finding."""


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("finding", nargs="?", type=Path, help="show what this input does, once")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="inputs to begin with and to add to")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools"), str(ROOT)]
    with atheris.instrument_imports(include=["fmplex_backend"], enable_loader_override=False):
        target = importlib.import_module(f"fuzz.{options.target}")
    work, corpus = FINDINGS / options.target / "work", options.corpus or FINDINGS / options.target / "corpus"
    for folder in (work, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    if options.finding is not None:
        target.check(options.finding.read_bytes(), work)
        return
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    arguments = {
        "max_total_time": options.seconds,
        "seed": options.seed,
        "max_len": LONGEST_BYTES,
        "timeout": SLOWEST_SECONDS,
        "rss_limit_mb": MOST_MB,
        "artifact_prefix": f"{FINDINGS}/{options.target}-",
        "print_final_stats": 1,
    }
    flags = [f"-{name}={value}" for name, value in arguments.items()]

    def damage(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if options.target == "engine" or chance.random() < 0.7:
            damaged: bytes = target.damage(data, chance)
            return damaged[:longest]
        return bytes(atheris.Mutate(data, longest))

    atheris.Setup([sys.argv[0], *flags, str(corpus)], lambda data: target.check(data, work), custom_mutator=damage)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
