"""One task with a backbone of its own, the LoRA merged into its weights."""

from __future__ import annotations

from fmplex_tools.bench.compare.baselines.edge import Baseline
from fmplex_tools.bench.compare.baselines.interface import Model, Settings


class TritonPythonModel(Baseline):
    """See `fmplex_tools.bench.compare.baselines.models.Private`."""

    @staticmethod
    def make(settings: Settings) -> Model:
        """Load it."""
        from fmplex_tools.bench.compare.baselines.models import Private

        return Private(settings)
