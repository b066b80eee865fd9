"""Check the events of a journal that somebody else may have written.

The hash chain finds damage, not malice: whoever writes a journal can make its chain valid. After
this check keys and types are as `search.events` writes them, and no number is large enough to
fill the memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import JournalError

MAX_FOUNDERS = 2**20
_MAX_COUNT = 2**40
_EXAMPLES = re.compile(r"[0-9]{1,12}:[0-9a-f]{16}")


def check_events(events: Sequence[Any], path: Path) -> None:
    """Raise unless every event is one that `search.events` could have written.

    Args:
        events: A journal's events, header first.
        path: The journal, for the message.

    Raises:
        JournalError: A key is missing or of the wrong type; names the line.
    """
    for number, event in enumerate(events, start=1):
        what = event_fault(event)
        if not what and number == 1 and event["kind"] != "header":
            what = "the first event is no header"
        if what:
            raise JournalError(
                f"{path}: line {number}: {what}; evomerge did not write this journal. "
                "Ask for it again where it came from."
            )


def event_fault(event: Any) -> str:
    """Return what is wrong with one event taken by itself, "" for nothing."""
    kind = event.get("kind") if isinstance(event, dict) else None
    if not isinstance(kind, str):
        return "it is no event with a `kind`"
    if kind == "header":
        return _header_fault(event)
    if kind not in ("asked", "told"):
        return ""
    if not _is_count(event.get("id")):
        return "`id` must be a number"
    return _asked_fault(event) if kind == "asked" else _told_fault(event)


def _header_fault(event: Mapping[str, Any]) -> str:
    tasks = event.get("tasks", {})
    if not isinstance(tasks, dict) or not all(_is_count(n) and n for n in tasks.values()):
        return "`tasks` must map tasks to numbers of examples"
    if not isinstance(event.get("margins", False), bool):
        return "`margins` must be true or false"
    for key in ("founders", "warm"):
        if not _is_count(event.get(key, 0)) or event.get(key, 0) > MAX_FOUNDERS:
            return f"`{key}` must be a number of at most {MAX_FOUNDERS}"
    for key in ("config", "sources", "data", "donor", "versions"):
        if not isinstance(event.get(key, {}), dict):
            return f"`{key}` must be a mapping"
    return ""


def _asked_fault(event: Mapping[str, Any]) -> str:
    if not all(isinstance(event.get(key), str) for key in ("digest", "origin")):
        return "`digest` and `origin` must be texts"
    parents = event.get("parents")
    if not isinstance(parents, list) or not all(type(parent) is int for parent in parents):
        return "`parents` must be a list of numbers"
    if not isinstance(event.get("recipe"), dict):
        return "`recipe` must be a mapping"
    examples = event.get("examples")
    if examples is not None and not (isinstance(examples, str) and _EXAMPLES.fullmatch(examples)):
        return "`examples` must be a number and a digest"
    return ""


def _told_fault(event: Mapping[str, Any]) -> str:
    if "error" in event:
        return "" if isinstance(event["error"], str) else "`error` must be a text"
    if not _is_count(event.get("row")):
        return "`row` must be a number"
    if not all(isinstance(event.get(key), str) for key in ("scores", "weights")):
        return "`scores` and `weights` must be texts"
    if "objectives" not in event and not _is_count(event.get("examples")):
        return "neither `objectives` nor a number of `examples`"
    for key in ("objectives", "measured"):
        if not _is_numbers(event.get(key, [])):
            return f"`{key}` must be a list of finite numbers"
    return ""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _is_numbers(value: Any) -> bool:
    # A JSON integer may be too large for a float.
    return isinstance(value, list) and all(
        (type(item) is float and math.isfinite(item)) or (type(item) is int and abs(item) < 2**53)
        for item in value
    )
