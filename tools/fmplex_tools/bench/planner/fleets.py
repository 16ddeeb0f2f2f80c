"""Fleets to plan, drawn at random; the same for the same seed."""

from __future__ import annotations

import random
from typing import Any

from fmplex_tools.planner.fleet_file import Fleet

MB, GB = 10**6, 10**9
FMS = 12
"""Physical FMs of a large fleet."""


def random_fleet(seed: int, *, devices: int = 6, kinds: int = 1, apart: bool = True) -> Fleet:
    """A small one with all there may be in a fleet file: two FMs, replicas, bursts, vFMs that are kept apart."""
    rng = random.Random(seed)
    names = ["small", "large"][: rng.randint(1, 2)]
    made = {
        f"kind{k}": {"count": devices, "memory": rng.choice([1, 2, 3]) * GB, "price": rng.choice([1, 1, 3])}
        for k in range(kinds)
    }
    fms = {
        name: {
            "memory": rng.randint(100, 600) * MB,
            "slots": rng.choice([4, 16, 64]),
            "cost": {
                kind: {"alpha": rng.uniform(0.002, 0.03), "beta": rng.uniform(2e-5, 3e-4), "gamma": 1e-4}
                for kind in made
            },
        }
        for name in names
    }
    vfms = {
        f"v{number}": {
            "fm": rng.choice(names),
            "count": rng.choice([1, 1, 3, 8]),
            "memory": rng.choice([1, 20, 150]) * MB,
            "adapter": rng.random() < 0.8,
            "rate": rng.choice([0.1, 1, 4, 12]),
            "burst": rng.choice([1, 1, 4]),
            "lengths": {rng.choice([8, 16, 64]): 1, rng.choice([32, 128]): rng.random() + 0.1},
            "p99_ms": rng.choice([250, 400, 1000]),
            "replicas": rng.choice([1, 1, 1, 2]),
        }
        for number in range(rng.randint(2, 7))
    }
    single = [name for name, vfm in vfms.items() if vfm["count"] == 1]
    groups = [rng.sample(single, 2)] if apart and len(single) > 1 and rng.random() < 0.5 else []
    return Fleet.model_validate({"devices": made, "fms": fms, "vfms": vfms, "apart": groups})


def large_fleet(vfms: int, devices: int, seed: int) -> dict[str, Any]:
    """A large one, as a fleet file holds it: GPUs of 80 GB, FMs of 1 to 14 GB, rates by Pareto's law."""
    rng = random.Random(seed)
    fms = {f"fm{number}": _fm(rng) for number in range(FMS)}
    return {
        "devices": {"gpu": {"count": devices, "memory": "80 GB"}},
        "fms": fms,
        "vfms": {f"t{number}": _vfm(rng) for number in range(vfms)},
    }


def exchanged(fleet: dict[str, Any], part: float, seed: int) -> dict[str, Any]:
    """Another, in which this part of the vFMs is new and as many are gone."""
    rng = random.Random(seed)
    vfms = dict(fleet["vfms"])
    gone = rng.sample(sorted(vfms), round(len(vfms) * part))
    for number, name in enumerate(gone):
        del vfms[name]
        vfms[f"new{number}"] = _vfm(rng)
    return {**fleet, "vfms": vfms}


def _fm(rng: random.Random) -> dict[str, Any]:
    cost = {"alpha": 0.005 * rng.uniform(0.5, 2), "beta": 2e-6 * rng.uniform(0.5, 4), "gamma": 2e-5}
    return {"memory": f"{rng.choice([1, 2, 6, 14])} GB", "slots": 512, "max_batch_rows": 64, "cost": {"gpu": cost}}


def _vfm(rng: random.Random) -> dict[str, Any]:
    return {
        "fm": f"fm{rng.randrange(FMS)}",
        "memory": f"{rng.choice([2, 8, 20])} MB",
        "rate": round(rng.paretovariate(1.2) * 0.3, 2),
        "lengths": {rng.choice([16, 32, 64]): 1, rng.choice([64, 128]): 1},
        "p99_ms": rng.choice([200, 500, 1000]),
    }
