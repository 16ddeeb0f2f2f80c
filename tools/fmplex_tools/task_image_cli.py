"""``fmplex task segment``: vFMs that label the patches of pictures. A thin layer over `fmplex_tools.tasks`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.modalities import ImageSpec
from fmplex_tools.console import DEFAULT_REPOSITORY, out
from fmplex_tools.task_arguments import Fm, Name, Repository, SignWith, Weight, before_torch, key_in, names, policy
from fmplex_tools.tasks import Columns, read_examples
from fmplex_tools.tasks.options import LoraOptions, TaskOptions
from fmplex_tools.tasks.rows import read_rows
from fmplex_tools.tasks.show import result_table

app = typer.Typer()


@app.command("segment")
def segment(
    name: Name,
    data: Annotated[Path, typer.Option("--data", "-d", help="csv, tsv, jsonl or parquet file; a row is a picture.")],
    labels: Annotated[str, typer.Option("--labels", help="Of the masks' values 0, 1, 2 …; comma-separated.")],
    image: Annotated[str, typer.Option("--image", help="Column with the pictures' paths, from the data file on.")],
    mask: Annotated[str, typer.Option("--mask", help="Column with the masks' paths: grey, or with a palette.")],
    fm: Fm = "dinov2",
    repository: Repository = DEFAULT_REPOSITORY,
    size: Annotated[
        int | None, typer.Option(min=8, help="Height and width that the backbone sees; more is finer.")
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train an adapter too.")] = False,
    seed: Annotated[int, typer.Option(help="Of what is held out, and of training.")] = 0,
    weight: Weight = None,
    sign_with: SignWith = None,
) -> None:
    """Put a vFM into the repository that labels every patch of a picture, learnt from pictures and masks.

    Examples:

      fmplex task segment road -d streets.csv --image photo --mask mask --labels other,road,car

      fmplex task segment leaf -d leaves.csv --image file --mask outline --labels ground,leaf --size 336
    """
    before_torch()
    examples = read_examples(data, Columns(image, mask, modality="image", label_option="mask"))
    masks = read_rows(data, mask, examples.labels or (), "image")
    chosen = names(labels)
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise InvalidInput(f"--labels {labels!r}: give at least two different ones, comma-separated")
    options = TaskOptions(encoder=ImageSpec(size=size, crop=False), lora=LoraOptions() if lora else None, seed=seed)
    key = key_in(sign_with)
    with out.status("loading PyTorch and the backbone"):
        from fmplex_tools.tasks.segmenting import create_segmentation
    from fmplex_tools.tasks.progress import Reporter, progress_bars

    with progress_bars(out) as progress:
        result = create_segmentation(
            repository, name, replace(examples, labels=masks), chosen, options, fm=fm, parameters=policy(weight),
            reporter=Reporter(progress, name), sign_with=key,
        )  # fmt: skip
    out.print(result_table(result))
