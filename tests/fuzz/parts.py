"""Several files in one string of bytes, which is what a fuzzer has; and damage to one of them, by its kind."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Mapping

from fmplex_tools.bench.faults.mutations import damage_bytes, damage_json

_MARK = re.compile(rb"^=== ([a-z_./]{1,64})\n", re.MULTILINE)


def join(parts: Mapping[str, bytes]) -> bytes:
    """Name → content as one string."""
    return b"".join(b"=== %s\n%s\n" % (name.encode(), content) for name, content in parts.items())


def split(data: bytes) -> dict[str, bytes]:
    """What `join` joined; of any other bytes whatever looks like it."""
    _, *pieces = _MARK.split(data)
    return {name.decode(): content[:-1] for name, content in zip(pieces[::2], pieces[1::2], strict=True)}


def damage(data: bytes, chance: random.Random) -> bytes:
    """``data`` with one of its parts damaged, or now and then all of it."""
    parts = split(data)
    if not parts or chance.random() < 0.1:
        return damage_bytes(data, chance)
    name = chance.choice(sorted(parts))
    parts[name] = _damage_part(name, parts[name], chance)
    return join(parts)


def _damage_part(name: str, content: bytes, chance: random.Random) -> bytes:
    if name.endswith(".json"):
        return damage_json(content, chance)
    if name.endswith(".safetensors") and len(content) > 8 and chance.random() < 0.6:
        (size,) = struct.unpack_from("<Q", content)
        header = damage_json(content[8 : 8 + size], chance)
        return struct.pack("<Q", len(header)) + header + content[8 + size :]
    return damage_bytes(content, chance)
