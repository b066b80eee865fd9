"""The answer in a text: a regular expression, then filters."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from evomerge.errors import ConfigError, nearest

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _last_number(text: str) -> str | None:
    """Return the last number, without thousands separators and a fraction of zeros."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    number: str = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


FILTERS: Mapping[str, Callable[[str], str | None]] = MappingProxyType(
    {
        "first_line": lambda text: text.strip().split("\n")[0],
        "last_number": _last_number,
        "lowercase": str.lower,
        "no_punctuation": lambda text: text.translate(_NO_PUNCTUATION),
        "no_spaces": lambda text: "".join(text.split()),
    }
)


@dataclass(frozen=True)
class Extraction:
    """Finds the answer in what a model wrote, and in the reference.

    Attributes:
        pattern: Regular expression; None: the whole text.
        group: Group of the pattern that is the answer, by number or name; None: the first
            one, or all of the match where it has none.
        match: Which match counts, "last" or "first".
        filters: Names in `FILTERS`, applied in this order to what was found.

    Raises:
        ConfigError: The pattern, its group or a filter is not one.
    """

    pattern: str | None = None
    group: int | str | None = None
    match: str = "last"
    filters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the settings."""
        try:
            compiled = re.compile(self.pattern or "")
        except re.error as error:
            raise ConfigError(
                f"pattern {self.pattern!r} is not a regular expression ({error})."
            ) from error
        known = {*range(compiled.groups + 1), *compiled.groupindex}
        if self.group is not None and self.group not in known:
            raise ConfigError(
                f"group is {self.group!r}, but the pattern has "
                f"{', '.join(map(str, sorted(known, key=str)))}."
            )
        if self.match not in ("last", "first"):
            raise ConfigError(f"match is {self.match!r}; known: last, first.")
        for name in self.filters:
            if name not in FILTERS:
                raise ConfigError(
                    f"{name!r} is not a filter.{nearest(name, FILTERS)} Known: "
                    f"{', '.join(FILTERS)}."
                )

    def is_right(self, generated: str, reference: str) -> bool:
        """Return whether both hold the same answer, white space around it aside.

        The reference counts as it is where the pattern or a filter finds nothing in it; an
        answer in which they find nothing is wrong.
        """
        return self.is_reference(self.find(generated), reference)

    def is_reference(self, found: str | None, reference: str) -> bool:
        """Return whether an answer that `find` gave is that of the reference; see `is_right`."""
        wanted = self.find(reference)
        return found is not None and found == (reference.strip() if wanted is None else wanted)

    def find(self, text: str) -> str | None:
        """Return the answer in `text`, white space around it removed; None when there is none."""
        answer: str | None = text
        if self.pattern is not None:
            matches = list(re.finditer(self.pattern, text))
            if not matches:
                return None
            chosen = matches[-1 if self.match == "last" else 0]
            group = (1 if chosen.re.groups else 0) if self.group is None else self.group
            answer = chosen.group(group) or ""
        for name in self.filters:
            if answer is None:
                return None
            answer = FILTERS[name](answer)
        return None if answer is None else answer.strip()
