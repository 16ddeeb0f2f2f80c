"""Backbone facts without an engine, for tests of what the host does."""

from __future__ import annotations

import functools
from pathlib import Path

from fmplex_backend.backbones.base import Backbone
from fmplex_backend.backbones.facts import BackboneFacts
from fmplex_backend.backbones.registry import load_backbone


@functools.lru_cache
def backbone_of(folder: Path) -> Backbone:
    """The backbone in ``folder``, loaded once. Whoever hooks it drops its hooks' work again."""
    return load_backbone(str(folder), "fp32", "cpu")


def facts_of(folder: Path) -> BackboneFacts:
    """What the engine would tell of it."""
    return backbone_of(folder).facts
