"""`max(math) s.t. general>=0.70, code>0.5`: the best of those that keep some limits."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import BoolArray, FloatArray
from evomerge.errors import ConfigError, nearest

EXAMPLE = "max(a) s.t. b>=0.7"
_MAXIMUM = re.compile(r"max\s*\(\s*(?P<name>[^()]+?)\s*\)\s*(?:s\.t\.\s*(?P<limits>.*))?", re.S)
_LIMIT = re.compile(r"(?P<name>.+?)\s*(?P<sign>>=|<=|>|<)\s*(?P<number>[^\s<>=]+)", re.S)
_SIGNS = {">=": np.greater_equal, "<=": np.less_equal, ">": np.greater, "<": np.less}


@dataclass(frozen=True)
class Limit:
    """One limit on an objective.

    Attributes:
        index: Which objective.
        sign: One of >=, <=, > and <.
        number: The limit.
    """

    index: int
    sign: str
    number: float

    def keeps(self, objectives: FloatArray) -> BoolArray:
        """Return (F,) whether each row of (F, M) objectives keeps the limit."""
        kept: BoolArray = _SIGNS[self.sign](objectives[:, self.index], self.number)
        return kept


@dataclass(frozen=True)
class Wish:
    """What is to be largest, and the limits to keep."""

    index: int
    limits: tuple[Limit, ...]

    def keeps(self, objectives: FloatArray) -> BoolArray:
        """Return (F,) whether each row of (F, M) objectives keeps all limits."""
        kept = np.ones(len(objectives), dtype=np.bool_)
        for limit in self.limits:
            kept &= limit.keeps(objectives)
        return kept


def parse_wish(text: str, names: Sequence[str]) -> Wish:
    """Return what `max(NAME) s.t. NAME>=NUMBER, …` asks for; limits are joined by commas or "and".

    Raises:
        ConfigError: It is not of that form, an objective is unknown, or a limit is no number.
    """
    found = _MAXIMUM.fullmatch(text.strip())
    if not found:
        raise ConfigError(f"pick {text!r}: expected a text such as {EXAMPLE!r}")
    index = _index(found["name"], names, text)
    if found["limits"] is None:
        return Wish(index, ())
    parts = re.split(r",|\band\b", found["limits"])
    return Wish(index, tuple(_limit(part.strip(), names, text) for part in parts))


def _limit(part: str, names: Sequence[str], text: str) -> Limit:
    found = _LIMIT.fullmatch(part)
    if not found:
        raise ConfigError(
            f"pick {text!r}: {part!r} is no limit; expected an objective, one of >= <= > < and a "
            "number"
        )
    try:
        number = float(found["number"])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"pick {text!r}: {found['number']!r} is not a number")
    return Limit(_index(found["name"], names, text), found["sign"], number)


def _index(name: str, names: Sequence[str], text: str) -> int:
    if name not in names:
        raise ConfigError(
            f"pick {text!r}: {name!r} is not an objective.{nearest(name, names)} "
            f"Objectives: {', '.join(names)}."
        )
    return list(names).index(name)
