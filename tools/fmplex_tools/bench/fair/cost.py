"""What deciding costs, against the batches that are decided."""

from __future__ import annotations

from fmplex_tools.bench.fair.bench import Bench, Figure, Outcome, Phase
from fmplex_tools.bench.fair.meters import BATCH_SECONDS, BATCHES, DECIDING, SUBMITTING
from fmplex_tools.bench.fair.shares import weights

GOAL = 0.02


def cost(bench: Bench) -> Outcome:
    """Seconds that deciding and submitting took, as the server counts them, under saturation."""
    if "saturated" not in bench.found:
        weights(bench)
    phase: Phase = bench.found["saturated"]
    batches = phase.gained(BATCHES)
    batch, decision, submit = (phase.gained(name) / batches for name in (BATCH_SECONDS, DECIDING, SUBMITTING))
    part = (decision + submit) / batch
    figures = [
        Figure("cost", "decision, per batch", 1e6 * decision, "µs"),
        Figure("cost", "submit, per batch", 1e6 * submit, "µs"),
        Figure("cost", "batch", 1e6 * batch, "µs"),
        Figure("cost", "both, of the batch", 100 * part, "%", f"≤ {100 * GOAL:g} %", part <= GOAL),
    ]
    return Outcome(figures)
