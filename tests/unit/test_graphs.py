"""Graphs by shape bucket, with a recording that repeats the forward pass on its static inputs as a CUDA graph would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.facts import backbone_of
from torch import Tensor

from fmplex_backend.adapters.adapter import make_adapter
from fmplex_backend.adapters.bank import AdapterBank, Stamp
from fmplex_backend.backbones.base import Backbone, Features
from fmplex_backend.backbones.registry import load_backbone
from fmplex_backend.engine.generation import TABLES, Tables
from fmplex_backend.engine.graphs import LENGTHS, ROWS, Graphs, Recording, bucket_of


class Repeat:
    """Records by keeping the function: what it reads and writes stays where it was, as in a graph."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0
        self.spoil = 0.0

    def __call__(self, run: Callable[[], Features]) -> tuple[Recording, Features]:
        self.captured += 1
        features = run()
        outer = self

        class Again:
            def replay(self) -> None:
                outer.replayed += 1
                features.hidden.copy_(run().hidden + outer.spoil)

        return Again(), features


def tables(layers: dict[str, tuple[int, int]], rank: int, seed: int, prompt: int = 0) -> Tables:
    generator = torch.Generator().manual_seed(seed)
    made: Tables = {kind: {} for kind in TABLES}
    for name, (n_out, n_in) in layers.items():
        made["lora_A"][name] = torch.randn(rank, n_in, generator=generator) * 0.3
        made["lora_B"][name] = torch.randn(n_out, rank, generator=generator) * 0.3
        if seed % 2:
            made["magnitude"][name] = torch.rand(n_out, generator=generator) + 0.5
    if seed == 3:
        (name, (n_out, n_in)), *_ = layers.items()
        made["out_scale"][name], made["in_scale"][name] = torch.rand(n_out) + 0.5, torch.rand(n_in) + 0.5
    if prompt:
        made["prompt"]["embeddings"] = torch.randn(prompt, 32, generator=generator)
    return made


@pytest.fixture
def backbone(tiny_backbone: Path) -> Backbone:
    return backbone_of(tiny_backbone)


def put(bank: AdapterBank, backbone: Backbone, number: int, rank: int, prompt: int = 0) -> None:
    layers = {n: s for n, s in backbone.facts.layers.items() if n.endswith(("query", "value")[: 1 + number % 2])}
    adapter = make_adapter(tables(layers, rank, number, prompt), backbone.model, torch.float32)
    bank.put(Stamp(number, f"v{number}", 1), adapter)


def batch(backbone: Backbone, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [
        {"input_ids": torch.randint(5, 30, (max(2, length - i % 3),), generator=generator, dtype=torch.int32).numpy()}
        for i in range(rows)
    ]
    return backbone.collate(tokens)


def plainly(backbone: Backbone, bank: AdapterBank, inputs: dict[str, Tensor], who: list[int | None]) -> Tensor:
    with bank.batch(who):
        return backbone.forward(inputs).hidden


@torch.inference_mode()
def test_one_graph_serves_every_mix(backbone: Backbone) -> None:
    bank, repeat, said = AdapterBank(backbone.model, torch.float32, "cpu", 4), Repeat(), list[str]()
    graphs = Graphs(backbone, bank, "cpu", said.append, repeat)
    for number, rank in ((1, 4), (2, 4), (3, 8)):
        put(bank, backbone, number, rank)
    mixes: list[list[int | None]] = [[1, None, 3], [2, 2, 2, 1], [None, 3], [3], [None] * 3, [None]]
    for seed in range(3):
        for who in mixes:
            inputs = batch(backbone, len(who), 9 + seed, seed)
            features = graphs.forward(inputs, who)
            if features is None:
                continue
            assert features.hidden.shape == (len(who), 9 + seed, 32)
            assert torch.equal(features.mask, inputs["attention_mask"])
            keep = inputs["attention_mask"].unsqueeze(-1)
            wanted = plainly(backbone, bank, inputs, who)
            torch.testing.assert_close(features.hidden * keep, wanted * keep, atol=1e-5, rtol=1e-5)
    assert not said
    assert repeat.captured == 5, "four rows and two and one with adapters, four and one without"
    bank.drop(2)
    put(bank, backbone, 6, 4)
    inputs = batch(backbone, 4, 9)
    features = graphs.forward(inputs, [6, 1, 3, None])
    assert features is not None
    assert repeat.captured == 5, "another adapter in the same slot needs no other graph"
    keep = inputs["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(
        features.hidden * keep, plainly(backbone, bank, inputs, [6, 1, 3, None]) * keep, atol=1e-5, rtol=1e-5
    )
    bank.close()


@torch.inference_mode()
def test_a_stack_that_moved_ends_the_graphs(backbone: Backbone) -> None:
    bank, repeat = AdapterBank(backbone.model, torch.float32, "cpu", 8), Repeat()
    graphs = Graphs(backbone, bank, "cpu", print, repeat)
    put(bank, backbone, 2, 4)
    inputs = batch(backbone, 2, 8)
    assert [graphs.forward(inputs, [2, None]) is None for _ in range(2)] == [True, False]
    put(bank, backbone, 4, 4)
    assert graphs.forward(inputs, [2, 4]) is not None
    assert repeat.captured == 2
    put(bank, backbone, 5, 32)
    assert graphs.forward(inputs, [5, 4]) is not None
    assert repeat.captured == 3, "a rank class that was not there"
    bank.close()


@torch.inference_mode()
def test_a_graph_that_answers_otherwise_is_not_used(backbone: Backbone) -> None:
    bank, repeat, said = AdapterBank(backbone.model, torch.float32, "cpu", 8), Repeat(), list[str]()
    graphs = Graphs(backbone, bank, "cpu", said.append, repeat)
    repeat.spoil = 1.0
    inputs = batch(backbone, 2, 8)
    assert [graphs.forward(inputs, [None, None]) for _ in range(4)] == [None] * 4
    assert len(said) == 1
    assert "is off by" in said[0]
    bank.close()


def spoil(bank: AdapterBank, number: int, value: float) -> None:
    """Fill the adapter's slot with ``value``."""
    slot = bank.slot(number)
    for stack in bank._stacks.values():
        for tensor in stack.tensors:
            tensor[int(stack.table[slot])] = value


@torch.inference_mode()
def test_a_neighbour_that_is_no_number_costs_nobody_the_graph(backbone: Backbone) -> None:
    bank, repeat, said = AdapterBank(backbone.model, torch.float32, "cpu", 8), Repeat(), list[str]()
    graphs = Graphs(backbone, bank, "cpu", said.append, repeat)
    put(bank, backbone, 2, 4)
    put(bank, backbone, 4, 4)
    spoil(bank, 4, float("nan"))
    inputs = batch(backbone, 2, 8)
    assert [graphs.forward(inputs, [4, 4]) for _ in range(3)] == [None] * 3, "nothing to compare it by"
    assert graphs.forward(inputs, [2, 4]) is not None
    assert not said
    bank.close()


@torch.inference_mode()
def test_a_huge_neighbour_hides_no_difference(backbone: Backbone) -> None:
    bank, repeat, said = AdapterBank(backbone.model, torch.float32, "cpu", 8), Repeat(), list[str]()
    graphs = Graphs(backbone, bank, "cpu", said.append, repeat)
    put(bank, backbone, 2, 4)
    huge: Tables = {kind: {} for kind in TABLES}
    huge["bias_delta"]["encoder.layer.1.output.LayerNorm"] = torch.full((32,), 1e9)
    bank.put(Stamp(3, "huge", 1), make_adapter(huge, backbone.model, torch.float32))
    repeat.spoil = 1.0
    inputs = batch(backbone, 2, 8)
    assert [graphs.forward(inputs, [3, 2]) for _ in range(3)] == [None] * 3
    assert ["is off by" in line for line in said] == [True]
    bank.close()


@torch.inference_mode()
def test_prompts_and_shapes_beyond_the_buckets_are_run_plainly(backbone: Backbone) -> None:
    bank, repeat = AdapterBank(backbone.model, torch.float32, "cpu", 8), Repeat()
    graphs = Graphs(backbone, bank, "cpu", print, repeat)
    put(bank, backbone, 2, 4, prompt=3)
    inputs = batch(backbone, 2, 8)
    assert [graphs.forward(inputs, [2, None]) for _ in range(3)] == [None] * 3
    wide = batch(backbone, ROWS[-1] + 1, 8)
    assert [graphs.forward(wide, [None] * (ROWS[-1] + 1)) for _ in range(3)] == [None] * 3
    bank.close()


def test_buckets() -> None:
    for rows in (1, 3, 33, ROWS[-1]):
        for length in (1, 17, LENGTHS[-1]):
            bucket = bucket_of(rows, length, adapted=True)
            assert bucket is not None
            assert bucket.rows >= rows
            assert bucket.length >= length
    assert bucket_of(1, LENGTHS[-1] + 1, adapted=False) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_a_real_graph(tiny_backbone: Path) -> None:
    from fmplex_backend.engine.graphs import cuda_capture

    backbone = load_backbone(str(tiny_backbone), "fp32", "cuda:0")
    bank, said = AdapterBank(backbone.model, torch.float32, "cuda:0", 4), list[str]()
    graphs = Graphs(backbone, bank, "cuda:0", said.append, cuda_capture)
    put(bank, backbone, 2, 4)
    put(bank, backbone, 3, 8)
    for who in ([2, None, 3], [3, 2, 2], [None, None, 2]):
        inputs = batch(backbone, 3, 9)
        features = graphs.forward(inputs, who)
        if features is not None:
            keep = features.mask.unsqueeze(-1)
            on_device = {name: tensor.cuda() for name, tensor in inputs.items()}
            torch.testing.assert_close(
                features.hidden * keep, plainly(backbone, bank, on_device, who) * keep, atol=1e-3, rtol=1e-3
            )
    assert not said
    bank.close()
