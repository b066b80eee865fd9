"""Scores on examples that the search never saw, beside those it optimised.

Read from ``validation.json`` of a run, where there is one: ``{"n": {objective: examples},
"candidates": {id: {objective: mean score}}}`` and, where they are known, in the same form
``"shrunken"`` (see `core.finalists`), ``"intervals"`` and ``"gains"``: ``over`` a parent, ``gain``,
``interval``, ``p``. Written by `config.finalists`.
"""

from __future__ import annotations

import json
from typing import Any

from evomerge.errors import RunError
from evomerge.report.numbers import short, shorts
from evomerge.report.scored import Scored
from evomerge.storage.run_store import RunFolder

FILE = "validation.json"


def validation(scored: Scored) -> dict[str, Any] | None:
    """Return search, validation and shrunken values of each objective; None without figures.

    Beside them 95 % intervals of the validation values, and gains on the best parent: difference,
    its paired interval, p-value and that parent.

    Raises:
        RunError: The file is damaged.
    """
    path = scored.results.folder.path / FILE
    if not path.is_file():
        return None
    searched = {int(i): row for i, row in zip(scored.ids, scored.objectives, strict=True)}
    names = scored.results.objectives.names
    try:
        body = json.loads(path.read_bytes())
        sizes = [int(body["n"].get(name, 0)) for name in names]
        measured = {int(i): values for i, values in body["candidates"].items()}
        drawn, ranges, gains = (
            {int(i): values for i, values in body.get(key, {}).items()}
            for key in ("shrunken", "intervals", "gains")
        )
        ids = sorted(set(measured) & set(searched))
        return {
            "n": sizes,
            "id": ids,
            "search": [[short(float(searched[i][m])) for i in ids] for m in range(len(names))],
            "validation": [[short(_number(measured[i].get(name))) for i in ids] for name in names],
            "shrunken": [
                [short(_number(drawn.get(i, {}).get(name))) for i in ids] for name in names
            ],
            "intervals": [[_range(ranges.get(i, {}).get(name)) for i in ids] for name in names],
            "gains": [[_gain(gains.get(i, {}).get(name)) for i in ids] for name in names],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def validation_stamp(folder: RunFolder) -> int:
    """Return a number that changes when the figures do; 0 without any."""
    path = folder.path / FILE
    return path.stat().st_mtime_ns if path.is_file() else 0


def _range(values: Any) -> list[float | None] | None:
    return None if values is None else shorts(values)


def _gain(found: Any) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "over": int(found["over"]),
        "gain": short(float(found["gain"])),
        "interval": shorts(found["interval"]),
        "p": short(float(found["p"])),
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
