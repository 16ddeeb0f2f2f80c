"""`fmplex bench families` on small backbones: several physical FMs at once, and what each and each vFM gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.progress import Progress
from support.small import make_patchtst, make_vision, make_whisper
from support.tiny import make_tiny_bert

from fmplex_tools.bench.families.measure import families, measure

pytestmark = pytest.mark.live
MODALITIES = {"reading": "text", "vision": "image", "hearing": "audio", "foresight": "series"}


def test_families_share_a_machine(tmp_path: Path) -> None:
    fms = {
        "reading": make_tiny_bert(tmp_path / "bert"),
        "vision": make_vision(tmp_path / "dinov2", "dinov2"),
        "hearing": make_whisper(tmp_path / "whisper"),
        "foresight": make_patchtst(tmp_path / "patchtst"),
    }
    specs = {fm: str(folder) for fm, folder in fms.items()}
    with families(specs, MODALITIES, 0) as made, Progress(disable=True) as progress:
        outcome = measure(made, 3.0, 0, progress)
    parts = [figure.scenario for figure in outcome.figures]
    assert list(dict.fromkeys(parts)) == [f"{fm} ({modality})" for fm, modality in MODALITIES.items()]
    for figure in outcome.figures:
        if figure.name.startswith(("rows/s", "… with")):
            assert figure.value > 0, figure
    together = outcome.details["together"]
    for fm in fms:
        assert set(together[fm]["charged"]) == {f"{fm}_{port}" for port in range(3)}
        assert all(seconds > 0 for seconds in together[fm]["charged"].values())
        assert together[fm]["cpu_seconds"] > 0
