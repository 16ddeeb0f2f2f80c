"""What docs/operations.md and docs/metrics.md promise, against the code: errors, metrics, parameters and limits."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fmplex_backend import errors
from fmplex_backend.encoders.audio import LOUDEST
from fmplex_backend.encoders.image import MOST_UNEVEN
from fmplex_backend.encoders.series import MOST_CHANNELS
from fmplex_backend.host.counts import FM_SERIES, VFM_SERIES
from fmplex_backend.host.lane import HANG_FACTOR
from fmplex_backend.host.log import MOST_LINES, QUIET_SECONDS
from fmplex_backend.host.suspects import GUILTY, SUSPECT
from fmplex_backend.repository import golden
from fmplex_backend.repository.config import FMSettings, Policy
from fmplex_backend.repository.modalities import ImageSpec, TextSpec
from fmplex_backend.repository.safe_files import MAX_JSON_BYTES, MAX_TENSOR_BYTES
from fmplex_backend.transport import BLOCKS_LIMIT
from fmplex_client.aio_transport import CONNECTIONS
from fmplex_client.errors import error_from
from fmplex_tools.server.process import ServerOptions

DOCS = Path(__file__).parents[2] / "docs"
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
METRICS = (DOCS / "metrics.md").read_text(encoding="utf-8")
OF_SERIES = re.compile(r"_(sum|count|bucket|max)$")
PACKAGES = {"fmplex_tools", "fmplex_backend", "fmplex_client"}


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under ``heading`` of operations.md."""
    section = OPERATIONS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    _, _, *lines = section[section.index("\n|") + 1 :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_metric_is_documented_and_none_is_that_there_is_not() -> None:
    exported = {OF_SERIES.sub("", series.name) for series in (*FM_SERIES, *VFM_SERIES)}
    told = {OF_SERIES.sub("", name) for name in re.findall(r"\bfmplex_[a-z_]+[a-z]", METRICS)} - PACKAGES
    assert told == exported
    elsewhere = {OF_SERIES.sub("", name) for name in re.findall(r"\bfmplex_[a-z_]+[a-z]", OPERATIONS)} - PACKAGES
    assert elsewhere <= exported


def test_every_error_is_documented_with_its_code() -> None:
    table = {cells[0]: cells for cells in rows("What errors mean for the client")}
    public = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.FMplexError)]
    for kind in set(public) - {errors.FMplexError}:
        assert f"`{kind.__name__}`" in table[kind.code][3].partition("client:")[0], kind
    assert table.keys() == {kind.code for kind in public}


def test_the_client_raises_what_is_documented() -> None:
    for code, http, grpc, names, *_ in rows("What errors mean for the client"):
        raised = {type(error_from(status, "the deadline" if code == "CANCELLED" else "no")).__name__
                  for status in (http, f"StatusCode.{grpc}")}  # fmt: skip
        assert names.partition("client: ")[2] == f"`{raised.pop()}`"
        assert not raised, f"{code} over HTTP and over gRPC"


@pytest.mark.parametrize(("heading", "model"), [("A vFM's policy", Policy), ("A physical FM's parameters", FMSettings)])
def test_every_parameter_is_documented_with_its_default(heading: str, model: type[BaseModel]) -> None:
    table = {cells[0].strip("`"): cells[1] for cells in rows(heading)}
    assert table.keys() == model.model_fields.keys()
    for name, field in model.model_fields.items():
        if isinstance(field.default, bool):
            assert table[name] == str(field.default).lower()
        elif isinstance(field.default, (int, float)):
            assert table[name].partition(":")[0] == f"{field.default:g}", name


SETTINGS = FMSettings(backbone="x")
BOUNDS: dict[str, tuple[Any, ...]] = {
    "bytes of a text in UTF-8": (TextSpec().max_bytes, 1 << 20),
    "bytes of an image's file": (ImageSpec().max_bytes, 1 << 28),
    "pixels of an image": (ImageSpec().max_pixels, 1 << 28),
    "an image's longer side": (MOST_UNEVEN,),
    "loudness of a sample": (LOUDEST,),
    "channels of a series": (MOST_CHANNELS,),
    "rows of a vFM that wait": (Policy().max_queue_size,),
    "rows of all vFMs that wait": (SETTINGS.max_waiting_rows,),
    "rows in one": (SETTINGS.max_batch_rows,),
    "adapters in one": (SETTINGS.adapter_slots,),
    "seconds for one": (SETTINGS.hang_seconds, HANG_FACTOR),
    "engines that die under a row": (SUSPECT, GUILTY),
    "vFMs of a physical FM": (SETTINGS.ports, 16384),
    "rank of an adapter": (SETTINGS.max_adapter_rank,),
    "MB of adapters in an engine's host memory": (SETTINGS.adapter_memory_mb,),
    "bytes of `vfm.json`, `adapter_config.json`": (MAX_JSON_BYTES,),
    "bytes of a `.safetensors` file": (MAX_TENSOR_BYTES,),
    "rows, bytes of `golden.json`": (golden.MAX_ROWS, golden.MAX_BYTES),
    "bytes of shared memory, host to engine and back": (BLOCKS_LIMIT,),
    "seconds of draining at a stop": (ServerOptions.drain_seconds,),
    "lines of the log about requests": (MOST_LINES, QUIET_SECONDS),
    "HTTP connections of one `AsyncClient`": (CONNECTIONS,),
}
"""Row of the table → the numbers in its limit, and in who sets it."""


@pytest.mark.parametrize("what", BOUNDS)
def test_limits_are_those_of_the_code(what: str) -> None:
    (cells,) = (cells for cells in rows("Limits") if cells[0] == what)
    assert tuple(float(number) for number in re.findall(r"\d+", f"{cells[1]} {cells[2]}")) == BOUNDS[what]
