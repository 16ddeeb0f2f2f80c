"""Tasks on backbones of which no package carries weights: random ones, of which a head makes what it can.

They are there for the families: that such a backbone is served beside the others, and how fast. What they reach says
nothing about the family.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial

from fmplex_backend.repository.modalities import EncoderSpec, ImageSpec, ImageTextSpec, SeriesSpec, TextSpec
from fmplex_tools.catalogue import series, vision
from fmplex_tools.catalogue.entry import Entry
from fmplex_tools.demo import datasets
from fmplex_tools.sources import Source
from fmplex_tools.tasks.data import Examples
from fmplex_tools.tasks.options import TaskOptions
from fmplex_tools.tasks.rows import Row

VIT, DINOV2, CLIP_VISION = "untrained_vit_small", "untrained_dinov2_registers_small", "untrained_clip_vision_base"
PATCHTST, MOMENT = "untrained_patchtst_small", "untrained_moment_small"
MODERNBERT, DEBERTA = "untrained_modernbert_small", "untrained_deberta_small"
QWEN2, LLAMA = "untrained_qwen2_small", "untrained_llama_small"
CLIP, LLAVA = "untrained_clip_small", "untrained_llava_small"
MODALITIES = {
    **dict.fromkeys((VIT, DINOV2, CLIP_VISION), "image"),
    **dict.fromkeys((PATCHTST, MOMENT), "series"),
    **dict.fromkeys((MODERNBERT, DEBERTA, QWEN2, LLAMA), "text"),
    **dict.fromkeys((CLIP, LLAVA), "image_text"),
}
"""Physical FM → its modality."""
NOTE = "random weights"
ROWS, TEST_ROWS = 600, 200


def named_emoji(column: str) -> Examples:
    """Emoji as Twitter draws them, each with its name."""
    base = vision.EMOJI.folder() / "package"
    told = [one for one in json.loads((base / "emoji.json").read_text("utf-8")) if one.get("has_img_twitter")]
    rows: list[Row] = []
    labels: list[str] = []
    for one in told:
        path = base / "img" / "twitter" / "64" / one["image"]
        if path.is_file() and one.get("name"):
            rows.append((path.read_bytes(), str(one["name"]).lower()))
            labels.append(str(one[column]))
    return Examples(rows=tuple(rows), labels=tuple(labels), source=vision.EMOJI.cite("emoji"), label_name=column)


def entries() -> Iterable[Entry]:
    """All of them."""
    aeon = "aeon/datasets/data"
    images = ImageSpec(size=112, crop=False)
    texts = TextSpec(max_length=64, collapse_whitespace=True)
    both = ImageTextSpec(image=ImageSpec(crop=False), text=TextSpec(max_length=24))

    def entry(
        name: str, what: str, fm: str, source: Source, load: Callable[[], Examples], encoder: EncoderSpec, pooling: str
    ) -> Entry:
        options = TaskOptions(
            kind="classification", pooling=pooling, encoder=encoder, max_rows=ROWS, max_test_rows=TEST_ROWS,
            min_label_rows=4,
        )  # fmt: skip
        return Entry(name, what, fm, (source,), load, options, note=NOTE)

    reuters = partial(datasets.reuters, 8)
    newswire, digit = "newswire → 8 topics", "handwritten digit, 8 x 8 → which"
    yield entry("random_vit_digit", digit, VIT, vision.SKLEARN, vision.digits, images, "mean+std")
    yield entry("random_dinov2_digit", digit, DINOV2, vision.SKLEARN, vision.digits, images, "mean+std")
    yield entry("random_clip_face", "patch of a photograph → face or none", CLIP_VISION, vision.SKIMAGE, vision.faces,
                ImageSpec(size=96, crop=False), "mean+std")  # fmt: skip
    for name, fm in (("patchtst", PATCHTST), ("moment", MOMENT)):
        yield entry(f"random_{name}_motion", "motion of a wrist → which of 4", fm, series.AEON,
                    series.archive(series.AEON, aeon, "BasicMotions"), SeriesSpec(channels=6, observed=True),
                    "each:mean+std+levels")  # fmt: skip
    for name, fm in (("modernbert", MODERNBERT), ("deberta", DEBERTA), ("qwen2", QWEN2), ("llama", LLAMA)):
        yield entry(f"random_{name}_news", newswire, fm, datasets.ORANGE, reuters, texts, "mean+max")
    for name, fm, pooling in (("clip", CLIP, "cls+last"), ("llava", LLAVA, "mean+max")):
        yield entry(f"random_{name}_emoji", "emoji and its name → which of 9 groups", fm, vision.EMOJI,
                    partial(named_emoji, "category"), both, pooling)  # fmt: skip
