"""Changes to inputs of parsers: bytes anywhere, or one node of the JSON or YAML they hold.

A change of bytes is mostly refused by the first parser; a change of a node reaches what is behind
it. Everything random comes from the generator that is given.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from evomerge.storage.journal import GENESIS, encode_line

Mutation = Callable[[bytes, random.Random], bytes]

# Numbers at the edges of what parsers and arrays take, and texts that mean something to a parser.
NUMBERS = (
    0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**40, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64,
    -(2**63), 10**30, 0.0, -0.0, 0.5, 1e-300, 1e300, -1.5,
)  # fmt: skip
TEXTS = (
    "", " ", "a", ".", "..", "../../etc/passwd", "/etc/passwd", "~", "a/b", "\0", "\n", "é",
    "\ud800", "None", "null", "nan", "inf", "1e999", "true", "0", "-1", "%s", "{}", "${HOME}",
    "a" * 300, "F32", "BF16", "I64", "BOOL", "weights", "name", "__class__", "global", "layer",
    "segments",
)  # fmt: skip
TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"NaN", b"Infinity", b"-", b"1e999",
    b"\\u0000", b"\\ud800", b"\n", b"  ", b"\t", b"&a", b"*a", b"!!python/object", b"!!binary",
    b"!!timestamp", b"<<: ", b"? ", b"| ", b"--- ", b"%YAML 9.9\n", b"2001-01-01", b"0x", b"1:30",
    b"\xff", b"\xef\xbb\xbf",
)  # fmt: skip
MAX_BYTES = 8192


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with one to three changes of bytes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.choices(range(len(result) + 1), k=2))
        end = min(end, at + 64)
        kind = rng.randrange(6)
        if kind == 0 and result:
            at = min(at, len(result) - 1)
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del result[at:end]
        elif kind == 2:
            result[at:at] = result[at:end]
        elif kind == 3:
            result[at:at] = rng.randbytes(rng.randint(1, 8))
        elif kind == 4:
            result[at:at] = rng.choice(TOKENS)
        else:
            result[at:end] = rng.choice(TOKENS)
    return bytes(result[:MAX_BYTES])


def odd_value(rng: random.Random) -> Any:
    """Return a value that a parser may not have been written for."""
    kind = rng.randrange(7)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind <= 2:
        return rng.choice(NUMBERS)
    if kind == 3:
        return rng.choice((None, True, False))
    if kind == 4:
        return [odd_value(rng) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {str(odd_value(rng)): odd_value(rng) for _ in range(rng.randrange(3))}
    nested: Any = rng.choice(NUMBERS)
    for _ in range(rng.choice((2, 9, 60))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def mutated_tree(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one to three of its nodes changed."""
    result = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(result))
        if not places:
            return odd_value(rng)
        holder, key = rng.choice(places)
        _change(holder, key, rng)
    return result


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (dict or list, key or index) of every node below `value`."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict | list):
            for key in part if isinstance(part, dict) else range(len(part)):
                yield part, key
                pending.append(part[key])


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    kind, old = rng.randrange(8), holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):  # another name, the same value
        holder[rng.choice((*TEXTS, str(key)[:-1], str(key) + "s"))] = holder.pop(key)
    elif kind == 1:
        holder.insert(key, copy.deepcopy(old))
    elif kind == 2:
        holder[key] = [old]
    elif kind == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = old + rng.choice((-1, 1, 0.5, 2**32)) if rng.random() < 0.5 else -old
    elif kind == 4 and isinstance(old, str):
        holder[key] = old + rng.choice(TEXTS) if rng.random() < 0.5 else old[: len(old) // 2]
    elif kind == 5 and isinstance(old, list):
        holder[key] = old * rng.choice((0, 2, 3))
    else:
        holder[key] = odd_value(rng)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON text with nodes changed, or sometimes bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return mutated_bytes(data, rng)
    if rng.random() < 0.2:
        return mutated_bytes(data, rng)
    return json.dumps(mutated_tree(value, rng)).encode()[:MAX_BYTES]


def mutated_yaml(data: bytes, rng: random.Random) -> bytes:
    """Return a YAML text with nodes changed, or bytes."""
    if rng.random() < 0.5:
        return mutated_bytes(data, rng)
    try:
        value = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    # PyYAML raises the two in the middle, too, where a value is not what its tag says.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        return mutated_bytes(data, rng)
    # JSON is YAML, but for a few escapes; keys that it cannot write (dates) are left out.
    text = json.dumps(mutated_tree(value, rng), default=str, indent=1, skipkeys=True)
    return text.encode()[:MAX_BYTES]


def mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Return a .safetensors file with its header changed and the length put right, or bytes."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    if rng.random() < 0.2 or len(header) != length:
        return mutated_bytes(data, rng)
    header = mutated_json(header, rng)
    rest = data[8 + length :]
    if rng.random() < 0.1:
        rest = mutated_bytes(rest, rng)
    return len(header).to_bytes(8, "little") + header + rest


def mutated_journal(data: bytes, rng: random.Random) -> bytes:
    """Return a journal with events changed and its hash chain made anew, or with bytes changed.

    The chain is no secret: whoever writes a journal can make it valid.
    """
    if rng.random() < 0.3:
        return mutated_bytes(data, rng)
    try:
        events = [json.loads(line)["event"] for line in data.splitlines()]
        return chained(mutated_tree(events, rng))
    except (ValueError, KeyError, TypeError, RecursionError):  # not JSON, or holds NaN
        return mutated_bytes(data, rng)


def chained(events: Sequence[Any]) -> bytes:
    """Return the journal of these events."""
    chain, lines = GENESIS, []
    for event in events:
        chain, line = encode_line(chain, event)
        lines.append(line)
    return b"".join(lines)
