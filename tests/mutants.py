"""Mutants of the fair queue: each breaks one rule, and the tests of the queue must notice every one of them.

    python tests/mutants.py                 # all; about 20 s each, two at a time
    python tests/mutants.py --only hoard    # those whose name contains "hoard"

Each mutant is a copy of the package with one passage replaced; the unit tests of the scheduler run against it. Exits
with 1 where a mutant lives, or where its passage is not in the source any more.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("tests/unit/test_fair_traces.py", "tests/unit/test_fair_queue.py", "tests/unit/test_queue_contract.py")
TRACES = "300"


@dataclass(frozen=True)
class Mutant:
    """Replace ``old`` by ``new`` in ``module`` of fmplex_backend/scheduling."""

    name: str
    module: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "credit is hoarded",
        "fair",
        "state.tag = max(state.tag, self.virtual_time)",
        "pass",
    ),
    Mutant(
        "debt is forgiven on wake-up",
        "fair",
        "state.tag = max(state.tag, self.virtual_time)",
        "state.tag = self.virtual_time",
    ),
    Mutant(
        "V runs ahead to the last tag",
        "fair",
        "reached = self._last_tag if top is None else min(self._last_tag, top.tag)",
        "reached = self._last_tag",
    ),
    Mutant(
        "V stands still",
        "fair",
        "self.virtual_time = max(self.virtual_time, reached)",
        "pass",
    ),
    Mutant(
        "V is not monotone",
        "fair",
        "self.virtual_time = max(self.virtual_time, reached)",
        "self.virtual_time = reached",
    ),
    Mutant(
        "idle does not catch up",
        "fair",
        "self.virtual_time = max([self.virtual_time, *(state.tag for state in self._charged)])",
        "pass",
    ),
    Mutant(
        "weights are ignored while rows are taken",
        "fair",
        "state.tag += charge / state.policy.weight",
        "state.tag += charge",
    ),
    Mutant(
        "weights are ignored when the price is settled",
        "fair",
        "state.tag += seconds / (weight or state.policy.weight)",
        "state.tag += seconds",
    ),
    Mutant(
        "the batch is never priced",
        "base",
        "self._settle(state, batch.predicted * batch.shares[state.name].fraction - part.tentative)",
        "pass",
    ),
    Mutant(
        "what was measured is never charged",
        "base",
        "self._settle(state, (bill - batch.predicted) * share.fraction, share.weight)",
        "pass",
    ),
    Mutant(
        "hiccups are charged in full",
        "base",
        "bill = min(measured, CLIP * batch.predicted)",
        "bill = measured",
    ),
    Mutant(
        "whoever has one row pays the whole launch",
        "cost",
        "return self.alpha * rows / batch_rows + work + self.gamma",
        "return self.alpha + work + self.gamma",
    ),
    Mutant(
        "the launch is divided by vFM and not by row",
        "fair",
        "charge = self.k * (draft.launch + work + (self.cost.gamma if part.rows == 1 else 0.0))",
        "charge = self.k * ((draft.launch if part.rows == 1 else 0.0) + work + self.cost.gamma)",
    ),
    Mutant(
        "urgent rows need not be near the least v",
        "fair",
        "if top is None or state not in self._least or state.tag > top.tag + self.tolerance:",
        "if top is None or state not in self._least:",
    ),
    Mutant(
        "late rows stay urgent",
        "fair",
        'if row.state != "waiting" or row.due < now + self.alone(row):',
        'if row.state != "waiting":',
    ),
    Mutant(
        "urgent rows are not urgent",
        "fair",
        "horizon = now + URGENT_BATCHES * self.average",
        "horizon = -math.inf",
    ),
    Mutant(
        "who does not fit holds nobody",
        "fair",
        "held = min(held, state.tag + self.tolerance)",
        "pass",
    ),
    Mutant(
        "who does not fit ends the batch",
        "fair",
        "held = min(held, state.tag + self.tolerance)",
        "break",
    ),
    Mutant(
        "padding is free",
        "fair",
        "if padded - draft.total - work > self.tuning.padding * cost.alpha:",
        "if False:",
    ),
    Mutant(
        "padding is counted for the new row alone",
        "fair",
        "if padded - draft.total - work > self.tuning.padding * cost.alpha:",
        "if max(draft.longest, work) - work > self.tuning.padding * cost.alpha:",
    ),
    Mutant(
        "cost is not capped",
        "fair",
        "return seconds <= draft.cap and now + seconds",
        "return now + seconds",
    ),
    Mutant(
        "members may be made late",
        "fair",
        "return seconds <= draft.cap and now + seconds <= min(draft.latest, self._latest(row, now))",
        "return seconds <= draft.cap",
    ),
    Mutant(
        "objectives have no floor",
        "fair",
        "return cap if objective is None else min(cap, max(CAP_FLOOR * launch, OBJECTIVE_PART * objective))",
        "return cap if objective is None else min(cap, OBJECTIVE_PART * objective)",
    ),
    Mutant(
        "objectives of the idle bound batches for ever",
        "fair",
        "if state.waiting or now - state.asked_at <= ACTIVE_SECONDS:",
        "if True:",
    ),
    Mutant(
        "rows are passed over without end",
        "fair",
        "return len(state.passes) == self.tuning.max_bypass and row.number < state.passes[0]",
        "return False",
    ),
    Mutant(
        "lengths within a vFM do not matter",
        "fair",
        "if len(heads) == 1 or self._is_overdue(state, oldest):",
        "if True:",
    ),
    Mutant(
        "the first pass is left out",
        "fair",
        "draft.slack = self.tuning.snug * self.tuning.padding * self.cost.alpha",
        "draft.slack = math.inf",
    ),
    Mutant(
        "the last pass is left out",
        "fair",
        "        draft.slack = math.inf\n        self._fill(draft, now, expired)\n",
        "",
    ),
    Mutant(
        "batches stay long while vFMs come and go",
        "fair",
        "cap = (self.tuning.c_cap_lively if lively else self.tuning.c_cap) * launch",
        "cap = self.tuning.c_cap * launch",
    ),
    Mutant(
        "one adapter too many in a batch",
        "fair",
        "len(draft.adapters) >= self.slots",
        "len(draft.adapters) > self.slots",
    ),
    Mutant(
        "twins come along whatever their vFM has had",
        "fair",
        "eligible = not late and self._is_eligible(state, other) and state.tag <= draft.held",
        "eligible = not late and state in self._least",
    ),
    Mutant(
        "twins forget who is held",
        "fair",
        " and state.tag <= draft.held",
        "",
    ),
    Mutant(
        "twins pay in full",
        "base",
        "part = 1.0 if row.twin is None else 1.0 / seen[row.twin]",
        "part = 1.0",
    ),
    Mutant(
        "twins are rows of their own to the cost model",
        "base",
        "n = len(seen)",
        "n = len(rows)",
    ),
    Mutant(
        "any number of twins",
        "fair",
        "if len(draft.rows) >= MOST_TWINS * self.max_batch_rows:",
        "if False:",
    ),
    Mutant(
        "twins that wait no more are kept",
        "fair",
        "if self._twin_entries > 2 * self._waiting + 64:",
        "if False:",
    ),
    Mutant(
        "residents overtake for ever",
        "fair",
        "                draft.held = min(draft.held, state.tag + self.tolerance)\n",
        "",
    ),
    Mutant(
        "residents have no precedence",
        "fair",
        "draft.warm_only = self._resident is not None",
        "pass",
    ),
    Mutant(
        "cancelled rows keep a vFM backlogged",
        "fair",
        "        if not state.waiting:\n            self._refresh(state)",
        "        pass",
    ),
    Mutant(
        "the heap of virtual times only grows",
        "ranking",
        "if len(self._heap) > 2 * len(self._newest) + 64:",
        "if False:",
    ),
    Mutant(
        "room to run again is not noticed",
        "fair",
        "    def _room_again(self, state: FairState) -> None:\n        if state not in self._least:",
        "    def _room_again(self, state: FairState) -> None:\n        if False:",
    ),
    Mutant(
        "hopeless rows are run",
        "base",
        "return trusted and now + self.alone(row) > row.deadline",
        "return False",
    ),
    Mutant(
        "predictions are trusted for ever",
        "base",
        "trusted = now - self._measured_at <= TRUST_SECONDS",
        "trusted = True",
    ),
    Mutant(
        "k does not follow the device",
        "base",
        "self.k = min(1e6, max(1e-6, self.k * ratio**K_GAIN))",
        "pass",
    ),
    Mutant(
        "a lost batch is paid for",
        "base",
        "self._settle(state, -batch.predicted * share.fraction, share.weight)",
        "pass",
    ),
)


def killed(mutant: Mutant) -> bool:
    """Whether a test fails on ``mutant``. Raises ValueError where its passage is not in the source."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fmplex_backend"
        shutil.copytree(ROOT / "fmplex_backend", copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "scheduling" / f"{mutant.module}.py"
        source = path.read_text(encoding="utf-8")
        if source.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: its passage is {source.count(mutant.old)} times in {path.name}")
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        tests = [str(ROOT / test) for test in TESTS]
        options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        env = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "FMPLEX_TRACES": TRACES}
        ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        # "python -m" puts its folder first in the path: the copy is what is imported, not the project.
        if ran.returncode not in (0, 1):
            raise ValueError(f"{mutant.name}: the tests did not run: {ran.stdout[-500:]}{ran.stderr[-500:]}")
        return ran.returncode == 1


def main() -> int:
    """Run the mutants and print who lives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a mutant's name")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if chosen.only in mutant.name]
    if killed(Mutant("none", "fair", "class BatchFairQueue(", "class BatchFairQueue(")):
        print("the tests fail without any mutant")
        return 1
    alive = []
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for mutant, dead in zip(mutants, pool.map(killed, mutants), strict=True):
            print(f"{'killed' if dead else 'LIVES '}  {mutant.name}", flush=True)
            alive += [] if dead else [mutant]
    print(f"{len(mutants) - len(alive)} of {len(mutants)} killed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
