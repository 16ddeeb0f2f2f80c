"""A baseline's edge to Triton: the one module of them that knows its Python API."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from typing import Any

import triton_python_backend_utils as pb_utils

from fmplex_backend.errors import FMplexError
from fmplex_tools.bench.compare.baselines.interface import PROBABILITIES, SELECTOR, TEXT, Answer, Model, Rows, Settings
from fmplex_tools.bench.compare.fence import join, may_join_late


class Baseline(ABC):
    """One model as Triton sees it. Nothing is imported with it that takes time: Triton starts a process beside the
    model's own just to ask whether there is more to its configuration."""

    @staticmethod
    @abstractmethod
    def make(settings: Settings) -> Model:
        """Load the model; import what it needs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load, and join the fence: before that where it must stand first, as soon as it is loaded where it may."""
        parameters = json.loads(args["model_config"])["parameters"]
        settings = Settings.parse({key: value["string_value"] for key, value in parameters.items()})
        late = may_join_late(settings.fence)
        if not late:
            join(settings.fence)
        import torch  # inside the fence, like all that it starts

        torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
        self._model = self.make(settings)
        if late:
            join(settings.fence)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a dynamic batch: as many responses as requests."""
        batch = [Rows(_column(request, TEXT), _column(request, SELECTOR)) for request in requests]
        return [_response(answer) for answer in self._model.answer(batch)]


def _column(request: Any, name: str) -> list[bytes]:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return [] if tensor is None else list(tensor.as_numpy().reshape(-1))


def _response(answer: Answer) -> Any:
    if isinstance(answer, FMplexError):
        code = getattr(pb_utils.TritonError, answer.code)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), code))
    return pb_utils.InferenceResponse([pb_utils.Tensor(PROBABILITIES, answer)])
