"""Damage to what was good: bytes, and JSON as a tree. The same random numbers do the same damage."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP = 2_000
LONG = 5_000
NUMBERS = (0, 1, -1, 255, 65_536, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 0.5, -0.0, 1e-320, 1e308)
TEXTS = ("", "\0", " ", "\ud800", "\uffff", "é", "🙂" * 3, "../..", "nan", "1e999", "x" * LONG, "[" * DEEP, "٣")
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, float("nan"), float("inf"), *TEXTS, [], {}, [[]], {"": None})
"""What is put in the place of a value in a tree."""
PIECES = (b"", b"\0", b"\xff", b"\xed\xa0\x80", b"\r\n\r\n", b'"', b"{", b"[" * DEEP, b"-1", b"9" * LONG, b"\xff" * 8)
"""What is put into bytes."""


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """``data`` with one to four changes: bits turned, a piece put in, taken out, doubled or moved, the end cut off."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randint(0, len(data))
        end = min(len(data), start + chance.choice((1, 2, 4, 8, 64)))
        piece = data[start:end]
        change = chance.randrange(6)
        if change == 0:
            data = data[:start] + bytes(byte ^ 1 << chance.randrange(8) for byte in piece) + data[end:]
        elif change == 1:
            data = data[:start] + chance.choice(PIECES) + data[start:]
        elif change == 2:
            data = data[:start] + data[end:]
        elif change == 3:
            data = data[:end] + piece * chance.randint(1, 3) + data[end:]
        elif change == 4:
            to = chance.randint(0, len(data))
            data = data[:to] + piece + data[to + len(piece) :]
        else:
            data = data[:start]
    return data


def damage_tree(tree: Any, chance: random.Random) -> Any:
    """A copy of ``tree`` with one to three of its values changed, taken out, doubled, moved, renamed or buried."""
    tree = [copy.deepcopy(tree)]
    for _ in range(chance.randint(1, 3)):
        places = list(_places(tree))
        parent, key = chance.choice(places)
        change = chance.randrange(8)
        if change <= 2:
            parent[key] = copy.deepcopy(chance.choice(VALUES))
        elif change == 3 and parent is not tree:
            del parent[key]
        elif change == 4 and isinstance(parent, dict):
            parent[chance.choice(TEXTS) + key[: chance.randint(0, len(key))]] = parent[key]
        elif change == 5:
            other, its = chance.choice(places)
            parent[key] = copy.deepcopy(other[its])
        elif change == 6:
            parent[key] = [copy.deepcopy(parent[key]) for _ in range(chance.choice((0, 1, 2, 100)))]
        else:
            parent[key] = _nudged(parent[key], chance)
    return tree[0]


def _nudged(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return chance.choice((value + 1, -value, value * 2, str(value))) if abs(value) < 2**70 else 1
    if isinstance(value, str):
        return damage_bytes(value.encode("utf-8", "surrogatepass"), chance).decode("utf-8", "replace")
    return [value]


def _places(tree: Any) -> Any:
    """Every (parent, key) in ``tree``, which is a list or an object itself."""
    waiting = [tree]
    while waiting:
        parent = waiting.pop()
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        for key in keys:
            yield parent, key
            if isinstance(parent[key], (dict, list)):
                waiting.append(parent[key])


def damage_json(text: bytes, chance: random.Random) -> bytes:
    """``text`` damaged as a tree or, one time in four and where it is no JSON any more, as bytes."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return damage_bytes(text, chance)
    if chance.random() < 0.25:
        return damage_bytes(text, chance)
    return json.dumps(damage_tree(tree, chance), ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
