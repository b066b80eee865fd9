"""Which licence each parent states, and what follows for a merge of them.

Read from model cards and licence files; what they mean is for the reader to judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from evomerge.errors import SourceError
from evomerge.export.licence_table import (
    HEADINGS,
    KINDS,
    PERMISSIVE_ORDER,
    SHARED_UNDER,
    UNVERSIONED,
)
from evomerge.storage.untrusted_files import contained_file

_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_MAX_BYTES = 1_000_000
_HEAD = 4000  # characters of a licence text that its heading is looked for in
_ID = re.compile(r"[A-Za-z0-9.+_-]{1,64}")
_UNSTATED = (None, "other", "unknown")
_DISCLAIMER = "Read from model cards, which may be wrong; no legal advice."

Verdict = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class MergedLicence:
    """What the parents' licences come to.

    Attributes:
        stated: Parent -> licence id, or None where none is stated.
        id: The merge's licence: the most restrictive of the parents', None where no single known
            one covers all.
        names: The licences that all apply, where it takes more than one.
        verdict: "ok"; "warn": something to look at; "bad": terms that seem to exclude each other
            or a merge.
        text: Why, to follow "licence: ".
    """

    stated: Mapping[str, str | None]
    id: str | None
    names: tuple[str, ...]
    verdict: Verdict
    text: str

    def front(self) -> dict[str, Any]:
        """Return the entries of a model card's front matter; {} where nothing can be stated."""
        if self.id is not None:
            return {"license": self.id}
        if self.names and self.verdict != "bad":
            name = "-and-".join(self.names)
            return {"license": "other", "license_name": name, "license_link": "README.md"}
        return {}

    def sentence(self) -> str:
        """Return what the card says."""
        return f"Licence: {self.text} {_DISCLAIMER}"


def merged_licence(stated: Mapping[str, str | None]) -> MergedLicence:
    """Return what parents' licences come to: the most restrictive one where that is known.

    Args:
        stated: Parent -> licence id from `stated_licence`.
    """
    listed = "; ".join(f"{_line(name)}: {text or 'not stated'}" for name, text in stated.items())
    found = {text for text in stated.values() if text not in _UNSTATED}
    kinds = {text: KINDS.get(str(text)) for text in found}
    bound = sorted(str(t) for t, kind in kinds.items() if kind != "permissive")
    forbidden = [name for name in bound if KINDS.get(name) == "no-derivatives"]

    def result(
        id: str | None, verdict: Verdict, text: str, names: tuple[str, ...] = ()
    ) -> MergedLicence:
        return MergedLicence(dict(stated), id, names, verdict, text)

    if forbidden:
        why = f"{' and '.join(forbidden)} allows no derivatives to be shared, which a merge is"
        return result(None, "bad", f"none: {why} ({listed}).")
    if not found:
        return result(None, "warn", f"none can be stated, for no parent states one ({listed}).")
    vague = any(text in _UNSTATED for text in stated.values())
    unknown = [name for name in bound if kinds[name] is None]
    if (vague or unknown) and not (len(found) == 1 and not vague):
        what = "not every parent's licence is known"
        return result(None, "warn", f"none can be stated, for {what} ({listed}).")
    if not bound:
        id = max(map(str, found), key=PERMISSIVE_ORDER.__getitem__)
        text = f"`{id}`" + ("." if len(found) == 1 else f", the strictest of ({listed}).")
        return result(id, "ok", text)
    if len(bound) > 1:
        return result(*_several(bound, listed))
    (id,) = bound
    others = "" if len(found) == 1 else f", the most restrictive of ({listed})"
    text = f"`{id}`{others}."
    if kinds[id] is None:
        return result(id, "warn", f"{text} Its terms are not known here.")
    if _is_limited(bound):
        return result(id, "warn", f"{text} It allows no commercial use.")
    if kinds[id] == "conditional":
        return result(id, "ok", f"{text} Its conditions on use, names and notices go with it.")
    return result(id, "ok", f"{text} What is made of it has to stay under it.")


def _several(bound: list[str], listed: str) -> tuple[str | None, Verdict, str, tuple[str, ...]]:
    """Return id, verdict, text and names for different licences none of which is permissive."""
    names = " and ".join(bound)
    share_alike = [name for name in bound if KINDS[name] == "copyleft" or "-sa-" in name]
    if not share_alike:
        limit = " and no commercial use is allowed" if _is_limited(bound) else ""
        return None, "warn", f"the terms of {names} apply together{limit} ({listed}).", tuple(bound)
    if share_alike == bound:
        for id in bound:
            others = [name for name in bound if name != id]
            if all(id in SHARED_UNDER.get(name, ()) for name in others):
                text = f"`{id}`, under which {' and '.join(others)} may be shared ({listed})."
                limit = " It allows no commercial use." if _is_limited(bound) else ""
                return id, "warn" if limit else "ok", text + limit, ()
        vague = sorted(UNVERSIONED & {*bound})
        if vague:
            text = f"none can be stated: {vague[0]} of which version? It has to fit {names}"
            return None, "warn", f"{text} ({listed}).", ()
    pairs = ((a, b) for a in share_alike for b in bound if a != b)
    first, other = next(
        p for p in pairs if not any(y in SHARED_UNDER.get(x, ()) for x, y in (p, p[::-1]))
    )
    why = f"what is made of {first} has to stay under it, which {other} does not allow"
    return None, "bad", f"none: {why} ({listed}).", ()


def stated_licence(folder: Path | None) -> str | None:
    """Return the licence id that a model's README front matter or licence file states.

    None when there is neither, or one that cannot be read: that states no licence. With
    `license: other` the card's `license_name` is returned where it is an id.
    """
    if folder is None or not folder.is_dir():
        return None
    front = _front_matter(folder)
    value = front.get("license")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and value.lower() == "other":
        name = front.get("license_name")
        value = name if isinstance(name, str) else value
    if isinstance(value, str) and _ID.fullmatch(value):
        return value.lower()
    return _from_text(folder)


def _is_limited(names: list[str]) -> bool:
    return any(KINDS.get(name) == "non-commercial" for name in names)


def _front_matter(folder: Path) -> Mapping[str, Any]:
    found = re.match(r"---\r?\n(.*?)\r?\n---", _read(folder, "README.md"), re.DOTALL)
    try:
        front = yaml.safe_load(found.group(1)) if found else None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError):
        return {}  # PyYAML lets a few of its own through for a value that is not as tagged
    return front if isinstance(front, dict) else {}


def _from_text(folder: Path) -> str | None:
    for name in _FILES:
        head = " ".join(_read(folder, name)[:_HEAD].lower().split())
        for pattern, id in HEADINGS:
            found = re.search(pattern, head)
            if found:
                return found.expand(id)
    return None


def _read(folder: Path, name: str) -> str:
    """Return a small text file of a folder somebody else wrote; "" when it cannot be read."""
    if not (folder / name).is_file():
        return ""
    try:
        with contained_file(folder, name).open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", errors="replace")
    except (OSError, SourceError):
        return ""


def _line(text: str) -> str:
    return " ".join(text.split())
