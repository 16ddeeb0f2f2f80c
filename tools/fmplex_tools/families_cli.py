"""``fmplex bench families``: physical FMs of several modalities on one machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.progress import Progress

from fmplex_backend.processor import processor_name
from fmplex_tools.bench.engine.command import JsonFile, Seed, carry_out, choices
from fmplex_tools.bench.fair.bench import Outcome
from fmplex_tools.console import err


def families(
    fms: Annotated[
        str, typer.Option(help="Physical FMs of the catalogue, comma-separated.")
    ] = "minilm,dinov2,whisper,fracast",
    seconds: Annotated[float, typer.Option(min=3, max=600, help="Of each phase: one for each FM, one for all.")] = 20.0,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """Load physical FMs of several modalities, each alone and then all at once on the same cores.

    Serves three vFMs with weights 1:2:4 on each, with random heads, on a server of its own; backbones that are not
    there are fetched and built. Tells how good each cost model is, what each FM gets of the processor beside the
    others, and whether its vFMs keep their shares. Exits with 1 where a goal is missed.

    Examples:

      fmplex bench families

      fmplex bench families --fms minilm,bge,mpnet,dinov2,whisper,whisper_base,fracast --seconds 30
    """
    from fmplex_tools.catalogue.specs import FMS, MODALITIES

    def measure(progress: Progress, noted: dict[str, Any]) -> Outcome:
        chosen = {fm: FMS[fm] for fm in choices(fms, "--fms", list(FMS))}
        noted |= {"machine": processor_name(), "seconds": seconds, "seed": seed}
        from fmplex_tools.bench.families import measure as bench
        from fmplex_tools.fetching import fetch_backbone

        for backbone in chosen.values():
            fetch_backbone(backbone, err)
        line = progress.add_task("starting the server", total=None)
        with bench.families(chosen, MODALITIES, seed) as made:
            progress.remove_task(line)
            return bench.measure(made, seconds, seed, progress)

    carry_out("families", measure, {}, json_file, None)
