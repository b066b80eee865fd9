"""A config as a YAML text with comments."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.config.yaml_file import dump_yaml

_WIDTH = 98


def config_text(
    body: Mapping[str, Any], head: Sequence[str], notes: Mapping[str, Sequence[str]]
) -> str:
    """Return a YAML text, one section after the other.

    Args:
        body: The config.
        head: Paragraphs of the comment at the top.
        notes: Key of `body` -> paragraphs of the comment above it.
    """
    parts = ["".join(_comment(paragraph) for paragraph in head)]
    for key, value in body.items():
        above = "".join(_comment(paragraph) for paragraph in notes.get(key, ()))
        parts.append(above + dump_yaml({key: value}))
    short = [isinstance(value, str | int) and key not in notes for key, value in body.items()]
    text = parts[0]
    for index, part in enumerate(parts[1:]):
        joined = index > 0 and short[index] and short[index - 1]
        text += part if joined else "\n" + part
    return text


def _comment(paragraph: str) -> str:
    lines = textwrap.wrap(
        paragraph,
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "".join(f"{line}\n" for line in lines or ["#"])
