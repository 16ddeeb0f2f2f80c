"""All tasks on one backbone, its adapter swapped before each request: ``set_adapter``, as PEFT users do."""

from __future__ import annotations

from fmplex_tools.bench.compare.baselines.edge import Baseline
from fmplex_tools.bench.compare.baselines.interface import Model, Settings


class TritonPythonModel(Baseline):
    """See `fmplex_tools.bench.compare.baselines.models.Swapped`."""

    @staticmethod
    def make(settings: Settings) -> Model:
        """Load it."""
        from fmplex_tools.bench.compare.baselines.models import Swapped

        return Swapped(settings)
