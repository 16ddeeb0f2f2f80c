"""Zero-shot classification: labels are texts, told by the cosine of an image to what the backbone makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fmplex_backend.backbones.facts import ImageTextInput
from fmplex_backend.errors import InvalidInput
from fmplex_backend.repository.artifact import Artifact
from fmplex_backend.repository.modalities import ImageSpec, ImageTextSpec, TextSpec
from fmplex_tools.tasks.artifact_writer import now
from fmplex_tools.tasks.backbone import Backbone
from fmplex_tools.tasks.heads import TEMPERATURE_OF_COSINES, PrototypeHead
from fmplex_tools.tasks.making import NewTask, TaskResult

TEMPLATE = "a photo of a {}."
POOLING = "cls"


def create_zero_shot(
    repository: Path,
    name: str,
    labels: Sequence[str],
    *,
    fm: str,
    templates: Sequence[str] = (TEMPLATE,),
    encoder: ImageSpec | None = None,
    parameters: Mapping[str, str] | None = None,
    backbone: Backbone | None = None,
    sample: Sequence[bytes] = (),
    sign_with: Ed25519PrivateKey | None = None,
) -> TaskResult:
    """Put a vFM into ``repository`` that tells which of ``labels`` an image is, on a backbone that reads texts too.

    Each label is put into every one of ``templates``, and each of these texts stands for it. ``sample``: image files
    for its golden rows. Raises `FMplexError`.
    """
    if any("{}" not in template for template in templates) or not templates:
        raise InvalidInput(f"templates {list(templates)}: each has {{}} where the label goes, e.g. {TEMPLATE!r}")
    made = NewTask.begin(repository, name, fm, parameters, backbone, sign_with)
    backbone = made.backbone
    own = backbone.facts.input
    if not isinstance(own, ImageTextInput) or own.both:
        raise InvalidInput(f"physical FM {fm!r}: its backbone {backbone.facts.spec!r} does not compare images to texts")
    artifact = Artifact(
        kind="classification",
        backbone=backbone.ref,
        pooling=POOLING,
        head="prototypes",
        labels=tuple(labels),
        encoder=ImageTextSpec(image=encoder or ImageSpec(), text=None),
        created=now(),
        source=f"zero-shot: {' / '.join(templates)}",
    )
    texts = [template.format(label) for label in labels for template in templates]
    vectors = backbone.features(backbone.encode(texts, None, ImageTextSpec(image=None, text=TextSpec())), POOLING)
    owners = np.repeat(np.arange(len(labels)), len(templates))
    scale = getattr(backbone.model, "logit_scale", None)
    temperature = TEMPERATURE_OF_COSINES if scale is None else float(scale.exp())
    head = PrototypeHead(vectors, owners, temperature)
    return made.publish(artifact, head, list(sample))
