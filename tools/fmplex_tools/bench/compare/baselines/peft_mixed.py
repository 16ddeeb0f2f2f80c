"""All tasks on one backbone, a whole dynamic batch in one pass: PEFT's ``adapter_names``."""

from __future__ import annotations

from fmplex_tools.bench.compare.baselines.edge import Baseline
from fmplex_tools.bench.compare.baselines.interface import Model, Settings


class TritonPythonModel(Baseline):
    """See `fmplex_tools.bench.compare.baselines.models.PeftMixed`."""

    @staticmethod
    def make(settings: Settings) -> Model:
        """Load it."""
        from fmplex_tools.bench.compare.baselines.models import PeftMixed

        return PeftMixed(settings)
