"""The baselines' models: private, swapped, PEFT's mixed batch. Torch, transformers and peft; no Triton."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from fmplex_backend.arrays import Array
from fmplex_backend.errors import InvalidInput
from fmplex_tools.bench.compare.baselines.common import Task, load_backbone, mean_vectors
from fmplex_tools.bench.compare.baselines.interface import FILL, Answer, Rows, Settings


class Private:
    """One task; PEFT merges its LoRA into the weights, so that it costs nothing."""

    def __init__(self, settings: Settings) -> None:
        (version,) = settings.versions
        self._task = Task.load(version, settings.device)
        backbone, self._inputs = load_backbone(settings.backbone, settings.device)
        self._model = PeftModel.from_pretrained(backbone, self._task.adapter).merge_and_unload().eval()

    @torch.inference_mode()
    def answer(self, batch: Sequence[Rows]) -> list[Answer]:
        """All good rows of ``batch`` in one pass."""
        found, good = _checked(batch)
        if good:
            inputs = self._inputs([text for texts, _ in good.values() for text in texts])
            vectors = mean_vectors(self._model(**inputs).last_hidden_state, inputs)
            answers = self._task.probabilities(vectors).cpu().numpy()
            _distribute(found, good, answers)
        return [found[request] for request in range(len(batch))]


class _Shared:
    """All tasks on one backbone, each with its adapter in PEFT's model."""

    def __init__(self, settings: Settings) -> None:
        tasks = [Task.load(version, settings.device) for version in settings.versions]
        self._tasks = {task.name: task for task in tasks}
        self._width = max(task.head.out_features for task in tasks)
        backbone, self._inputs = load_backbone(settings.backbone, settings.device)
        self._model: Any = PeftModel.from_pretrained(backbone, tasks[0].adapter, adapter_name=tasks[0].name)
        for task in tasks[1:]:
            self._model.load_adapter(task.adapter, adapter_name=task.name)
        self._model.eval().requires_grad_(False)

    def _heads(self, vectors: Tensor, tasks: Sequence[str]) -> Array:
        """[rows, hidden] → [rows, widest number of labels], `FILL` behind a task's own labels."""
        whole = np.full((len(tasks), self._width), FILL, np.float32)
        for name, rows in _by_task(tasks).items():
            answers = self._tasks[name].probabilities(vectors[rows])
            whole[rows, : answers.shape[1]] = answers.cpu().numpy()
        return whole


class Swapped(_Shared):
    """One request at a time, with `set_adapter` where its task is not that of the one before."""

    @torch.inference_mode()
    def answer(self, batch: Sequence[Rows]) -> list[Answer]:
        """A pass for each request, or for each task in one."""
        found, good = _checked(batch, self._tasks)
        for request, (texts, tasks) in good.items():
            answer = np.empty((len(texts), self._width), np.float32)
            for name, rows in _by_task(tasks).items():
                answer[rows] = self._run([texts[row] for row in rows], name)
            found[request] = answer
        return [found[request] for request in range(len(batch))]

    def _run(self, texts: Sequence[str], name: str) -> Array:
        if self._model.active_adapter != name:
            self._model.set_adapter(name, inference_mode=True)
        inputs = self._inputs(texts)
        vectors = mean_vectors(self._model(**inputs).last_hidden_state, inputs)
        return self._heads(vectors, [name] * len(texts))


class PeftMixed(_Shared):
    """One pass for a whole dynamic batch, whatever tasks its rows are of."""

    @torch.inference_mode()
    def answer(self, batch: Sequence[Rows]) -> list[Answer]:
        """All good rows of ``batch`` in one pass."""
        found, good = _checked(batch, self._tasks)
        if good:
            names = [name for _, tasks in good.values() for name in tasks]
            inputs = self._inputs([text for texts, _ in good.values() for text in texts])
            hidden = self._model(**inputs, adapter_names=names).last_hidden_state
            _distribute(found, good, self._heads(mean_vectors(hidden, inputs), names))
        return [found[request] for request in range(len(batch))]


_Good = dict[int, tuple[list[str], list[str]]]


def _checked(batch: Sequence[Rows], known: Mapping[str, Task] = {}) -> tuple[dict[int, Answer], _Good]:
    """Of those requests that are wrong, by number, why; of the others the texts, and the tasks where any are known."""
    wrong: dict[int, Answer] = {}
    good: _Good = {}
    for number, rows in enumerate(batch):
        try:
            texts, tasks = ([raw.decode("utf-8") for raw in column] for column in (rows.texts, rows.tasks))
        except UnicodeDecodeError as error:
            wrong[number] = InvalidInput(f"not valid UTF-8: {error.reason} at byte {error.start}")
            continue
        unknown = set(tasks) - known.keys() if known else set()
        if unknown:
            wrong[number] = InvalidInput(f"no task {min(unknown)!r}; there are {min(known)!r} to {max(known)!r}")
        elif not all(text.strip() for text in texts):
            wrong[number] = InvalidInput("text is empty")
        else:
            good[number] = (texts, tasks)
    return wrong, good


def _distribute(found: dict[int, Answer], good: _Good, answers: Array) -> None:
    """``answers`` [rows of all good requests, labels], each request's to itself."""
    start = 0
    for number, (texts, _) in good.items():
        found[number] = answers[start : start + len(texts)]
        start += len(texts)


def _by_task(tasks: Iterable[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(tasks):
        rows[name].append(row)
    return rows
