"""Finding: one thing a check says about a config, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["✓", "!", "✗"]


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        mark: ✓ fine; ! can be run and had better be looked at; ✗ makes the search worthless.
        topic: What it is about, one or two words.
        text: What was found.
        remedy: What to do; "" for ✓.
    """

    mark: Mark
    topic: str
    text: str
    remedy: str = ""


def good(topic: str, text: str) -> Finding:
    """Return a ✓."""
    return Finding("✓", topic, text)


def warn(topic: str, text: str, remedy: str) -> Finding:
    """Return a !."""
    return Finding("!", topic, text, remedy)


def bad(topic: str, text: str, remedy: str) -> Finding:
    """Return a ✗."""
    return Finding("✗", topic, text, remedy)


def quoted(names: list[str]) -> str:
    """Return "'a', 'b'", at most five of them."""
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
