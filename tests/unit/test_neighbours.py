"""No row's values reach another row's answer: with neighbours whose weights are huge, infinite or no numbers, every
other row of the batch is answered to the bit as it is beside harmless ones of the same shapes; and the bad fail alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support.facts import backbone_of
from support.recipes import RECIPES, write_version

from fmplex_backend.adapters.bank import Stamp
from fmplex_backend.backbones.base import Backbone
from fmplex_backend.backbones.packed_linear import pack_linears
from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.encoders.text import TextEncoder
from fmplex_backend.engine.worker import Worker
from fmplex_backend.messages import BatchDone, LoadGeneration, RunBatch, Tokens
from fmplex_backend.repository.modalities import TextSpec
from fmplex_backend.repository.packed import pack, read_version

EVIL = {
    "huge": (1e30, -1e30),
    "no number": (np.nan,),
    "all of them": (np.nan, 3e38, np.inf, 0.0, -1e30),
}
TEXTS = ("good film", "a very good book, not a bad film", "no", "it was not very good, was it?")
LONG = "a very good book, not a bad film, it was " * 12
NOT_FINITE = "its answer is not finite"
ON_MINILM = ("embed_tokens", "lora_all_16", "dora_qv_8", "ia3", "prompt")


@dataclass(frozen=True)
class Company:
    """vFMs 1 to n, each beside a neighbour, numbered n higher: the same vFM once more, or an evil one of its shapes."""

    backbone: Backbone
    folder: Path
    names: tuple[str, ...]
    """Recipes."""
    answered: dict[tuple[str, bool], tuple[dict[int, Any], dict[int, str]]]
    """What `answer` has found."""
    orders: set[tuple[Stamp | None, ...]]
    """Those in which the rows lay in the batches that were run; another one would change the last bits."""

    @property
    def victims(self) -> range:
        return range(1, len(self.names) + 1)

    @property
    def neighbours(self) -> range:
        return range(len(self.names) + 1, 2 * len(self.names) + 1)

    def write(self, backbone: Path) -> None:
        """Pack all of them, and the evil forms of each."""
        for name in self.names:
            write_version(self.folder / name / "1", RECIPES[name], backbone)
            content = read_version(self.folder / name / "1", self.folder / name, self.backbone.facts, 64)
            pack(content, self.path(name))
            for evil, values in EVIL.items():
                _spoil(self.path(name), self.path(name, evil), values)

    def name(self, number: int) -> str:
        """The recipe of a generation."""
        return self.names[(number - 1) % len(self.names)]

    def path(self, name: str, evil: str = "") -> Path:
        return self.folder / f"{name}{evil}.safetensors"

    def load(self, worker: Worker, number: int, evil: str) -> None:
        path = self.path(self.name(number), evil if number in self.neighbours else "")
        assert worker.load(LoadGeneration(number, f"v{number}", 1, str(path))).error is None

    def tokens(self, number: int, text: str) -> Tokens:
        recipe = RECIPES[self.name(number)]
        spec = TextSpec.model_validate({"max_length": 48, **recipe.encoder, "truncation": True})
        (row,) = TextEncoder(self.backbone.facts).encode_texts(spec, [text], ["bad"] if spec.pair else None)
        return row.tokens

    def batch(self, *, other_texts: bool = False) -> RunBatch:
        """A row of each, in disorder; bare ones share a text, so that victims and neighbours are twins."""
        numbers = np.random.default_rng(1).permutation([*self.victims, *self.neighbours]).tolist()
        rows = []
        for number in numbers:
            if RECIPES[self.name(number)].adapter is None:
                row = self.tokens(number, TEXTS[0])
            elif number in self.neighbours:
                row = self.tokens(number, LONG if number % 2 else TEXTS[1])
                if other_texts:
                    row = row | {"input_ids": row["input_ids"][::-1].copy()}
            else:
                row = self.tokens(number, TEXTS[number % len(TEXTS)])
            rows.append(row)
        return RunBatch(1, numbers, rows)

    def answer(self, evil: str = "", *, other_texts: bool = False) -> tuple[dict[int, Any], dict[int, str]]:
        """`batch`, run: generation → its answer by socket, and generation → why it has none."""
        if (evil, other_texts) not in self.answered:
            worker = Worker(self.backbone, "cpu", 64)
            for number in (*self.victims, *self.neighbours):
                self.load(worker, number, evil)
            message = self.batch(other_texts=other_texts)
            prepared = worker.prepare(message)
            self.orders.add(tuple(prepared.stamps))
            self.answered[evil, other_texts] = answers_of(message, worker.run_prepared(prepared))
            worker.close()
        return self.answered[evil, other_texts]


def answers_of(message: RunBatch, done: BatchDone) -> tuple[dict[int, Any], dict[int, str]]:
    answers: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for group in done.groups:
        for index, place in enumerate(group.rows):
            if place in group.errors:
                errors[message.generations[place]] = group.errors[place]
            else:
                answers[message.generations[place]] = {name: column[index] for name, column in group.columns.items()}
    return answers, errors


def bits(answer: Mapping[str, Any]) -> dict[str, object]:
    """What must not change: every number to the bit, every label."""
    return {name: v.tobytes() if isinstance(v, np.ndarray) else v for name, v in answer.items()}


def _spoil(source: Path, target: Path, values: tuple[float, ...]) -> None:
    with safe_open(source, "np") as file:
        tensors = {key: np.resize(np.float32(values), file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        save_file(tensors, target, file.metadata())


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Company:
    """Every recipe, on a random backbone."""
    made = Company(backbone_of(tiny_backbone), tmp_path_factory.mktemp("company"), tuple(RECIPES), {}, set())
    made.write(tiny_backbone)
    return made


@pytest.mark.parametrize("evil", EVIL)
def test_evil_neighbours_change_no_bit_and_fail_alone(company: Company, evil: str) -> None:
    _check(company, evil)


def test_on_a_real_backbone_with_packed_weights(minilm_backbone: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(minilm_backbone), "fp32", "cpu")
    assert pack_linears(backbone.model) is None
    company = Company(backbone, tmp_path, ON_MINILM, {}, set())
    company.write(minilm_backbone)
    _check(company, "no number")


def _check(company: Company, evil: str) -> None:
    harmless, none = company.answer()
    assert not none
    answers, errors = company.answer(evil)
    assert len(company.orders) == 1
    for number in company.victims:
        assert bits(answers[number]) == bits(harmless[number]), company.name(number)
    assert errors.keys() <= set(company.neighbours)
    assert all(error == f"vFM 'v{number}': {NOT_FINITE}" for number, error in errors.items())
    if evil == "no number":  # the others may be brought back by a normalization
        weightless = {n for n in company.neighbours if company.name(n) in ("embed", "embed_tokens")}
        assert errors.keys() == set(company.neighbours) - weightless


def test_what_neighbours_ask_changes_no_bit(company: Company) -> None:
    first, second = company.answer()[0], company.answer(other_texts=True)[0]
    for number in company.victims:
        assert bits(first[number]) == bits(second[number]), company.name(number)
    assert any(bits(first[number]) != bits(second[number]) for number in company.neighbours)


def test_in_evil_company_as_alone(company: Company) -> None:
    """Another batch shape: no longer to the bit, but as near as the plain model's own batches are."""
    answers, _ = company.answer("all of them")
    message = company.batch()
    worker = Worker(company.backbone, "cpu", 64)
    for number, row in zip(message.generations, message.rows, strict=True):
        if number in company.neighbours:
            continue
        company.load(worker, number, "")
        alone, _ = answers_of(RunBatch(1, [number], [row]), worker.run(RunBatch(1, [number], [row])))
        socket = "matrix" if "matrix" in answers[number] else "vector"
        np.testing.assert_allclose(
            answers[number][socket], alone[number][socket], atol=1e-5, rtol=1e-5, err_msg=company.name(number)
        )
    worker.close()


def test_nothing_is_left_in_a_slot_or_a_heads_place(company: Company) -> None:
    """One slot for all: after each evil neighbour, a vFM of another recipe takes its slot and its head's place."""

    def one_after_the_other(evil: str) -> list[dict[str, object]]:
        worker, found = Worker(company.backbone, "cpu", 1), []
        for neighbour, victim in zip(company.neighbours[::3], company.victims[::-3], strict=True):
            company.load(worker, neighbour, evil)
            row = company.tokens(neighbour, TEXTS[1])
            worker.run(RunBatch(1, [neighbour, neighbour], [row, row]))
            worker.drop(neighbour)
            company.load(worker, victim, "")
            message = RunBatch(2, [victim], [company.tokens(victim, TEXTS[3])])
            answers, errors = answers_of(message, worker.run(message))
            assert not errors
            found.append(bits(answers[victim]))
            worker.drop(victim)
        worker.close()
        return found

    assert one_after_the_other("no number") == one_after_the_other("")
