"""From the backbone's features to the answers of a batch: heads of one kind run together, and fail together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fmplex_backend.backbones.base import Features
from fmplex_backend.engine.device_errors import is_device_fault
from fmplex_backend.engine.generation import Generation
from fmplex_backend.heads.kinds import Part, answers
from fmplex_backend.heads.linear_bank import LinearBank, Section
from fmplex_backend.heads.projections import Linear
from fmplex_backend.messages import GroupAnswer


class Answering:
    """The heads of the live generations. Not thread-safe."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._bank = LinearBank()

    def put(self, generation: Generation) -> None:
        """Take the head of a generation, which `answer` will name."""
        head = generation.projection
        if isinstance(head, Linear) and self._bank.section(head):
            self._bank.put(generation.stamp.generation, head)

    def drop(self, number: int) -> None:
        """Forget a generation's head; nothing happens where there is none."""
        self._bank.drop(number)

    def answer(
        self, members: Mapping[int, tuple[Generation, list[int]]], place: Mapping[int, int], features: Features
    ) -> list[GroupAnswer]:
        """One answer for each of ``members``: generation → the rows of the batch that are its own.

        ``place``: row of the batch → row of ``features``.
        """
        lengths, channels = features.lengths(), features.channels()
        sections: dict[object, list[Generation]] = {}
        for generation, _ in members.values():
            sections.setdefault(self._section(generation), []).append(generation)
        groups: list[GroupAnswer] = []
        for generations in sections.values():
            rows = [members[g.stamp.generation][1] for g in generations]
            physical = [place[row] for own in rows for row in own]
            try:
                artifact = generations[0].artifact
                extents = [count // artifact.sequences for count in channels] if artifact.by_channel else lengths
                groups += self._run(generations, rows, physical, features, [extents[p] for p in physical])
            except Exception as error:  # heads that fail take their own rows with them, not their neighbours'
                if is_device_fault(error):
                    raise
                for g, own in zip(generations, rows, strict=True):
                    reason = f"vFM {g.stamp.vfm!r}: its head failed: {type(error).__name__}: {error}"
                    groups.append(GroupAnswer(g.stamp.generation, own, {}, dict.fromkeys(own, reason)))
        return groups

    def _section(self, generation: Generation) -> object:
        """Generations with the same section are answered together."""
        head = generation.projection
        if isinstance(head, Linear) and not (generation.virtual_tokens and head.pooling == "none"):
            if head.weight is None:
                return generation.artifact.kind, head.pooling
            if section := self._bank.section(head):
                return generation.artifact.kind, section
        return generation.stamp.generation

    def _run(
        self,
        generations: Sequence[Generation],
        rows: Sequence[list[int]],
        physical: list[int],
        features: Features,
        lengths: list[int],
    ) -> list[GroupAnswer]:
        first = generations[0]
        index = torch.tensor(physical, device=self._device)
        section = self._section(first)
        if isinstance(section, tuple) and isinstance(section[1], Section):
            numbers = [g.stamp.generation for g, own in zip(generations, rows, strict=True) for _ in own]
            raw = self._bank(section[1], features, index, numbers)
        else:
            raw = first.projection(features, index)
        raw = raw.float().cpu()
        if first.virtual_tokens and raw.ndim == 3:  # it answers for its tokens, not for its prompt
            raw, lengths = raw[:, first.virtual_tokens :], [n - first.virtual_tokens for n in lengths]
        parts: list[Part] = []
        for g, own in zip(generations, rows, strict=True):
            start = parts[-1].stop if parts else 0
            parts.append(Part(g.artifact, start, start + len(own), g.width))
        groups = []
        answered = answers(first.artifact.kind, raw, lengths, parts)
        for g, own, (columns, finite) in zip(generations, rows, answered, strict=True):
            reason = f"vFM {g.stamp.vfm!r}: its answer is not finite"
            errors = {row: reason for row, good in zip(own, finite, strict=True) if not good}
            groups.append(GroupAnswer(g.stamp.generation, own, columns, errors))
        return groups
