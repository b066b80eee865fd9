"""What can be saved from a run folder whose journal or scores were damaged; only reads it.

The journal is kept up to its first damage. A result further on is kept too when its line continues
the hash chain of the line before it and its scores have the digest that the line gives: it becomes
a result that waits for its turn (``arrived/``), which the search takes up instead of scoring again
when it proposes the same recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.core.candidate import Candidate, Evaluation, known_margins, split_scores
from evomerge.core.recipe import Recipe, canonical_json
from evomerge.errors import ConfigError, JournalError, RunError
from evomerge.storage.journal import GENESIS, chain_hash
from evomerge.storage.journal_events import event_fault
from evomerge.storage.parked import parked_file
from evomerge.storage.run_store import RunFolder
from evomerge.storage.score_log import ScoreLog

# Made anew by the next driver, or of one driver only.
_NOT_COPIED = (
    "journal.jsonl",
    "journal.jsonl.cut",
    "scores.f32",
    "front.json",
    "surrogate.json",
    "lock",
    "lease.json",
)


@dataclass(frozen=True)
class Line:
    """One line of a damaged journal.

    Attributes:
        number: From 1.
        data: Its bytes.
        event: What it holds; None when it cannot be read.
        is_sound: Whether it continues the chain of the line before it, as that line gives it.
    """

    number: int
    data: bytes
    event: Mapping[str, Any] | None
    is_sound: bool


@dataclass(frozen=True)
class Salvage:
    """The files of a repaired copy, and what was found.

    Attributes:
        files: Name in the new folder -> content.
        damage: Where the first damage is and of what kind, "" when there is none.
        kept: Results that stay in the journal.
        waiting: Results behind the damage that wait for their turn.
        lost: Results behind the damage that have to be scored again.
    """

    files: Mapping[str, bytes]
    damage: str
    kept: int
    waiting: int
    lost: int


def salvage(folder: RunFolder) -> Salvage:
    """Return a repaired copy of a run.

    Raises:
        RunError: A file that cannot be made anew is missing, or the journal's header is damaged.
    """
    folder.require()
    lines = _read_lines(folder.journal)
    tasks = _tasks(lines, folder.journal)
    scores = ScoreLog.of(folder.scores, lines[0].event or {})
    n_kept, damage = _sound_part(lines, scores, folder.journal)
    kept, later = lines[:n_kept], lines[n_kept:]
    rows = sum(_is_scored(line.event) for line in kept)
    files = _other_files(folder)
    files["journal.jsonl"] = b"".join(line.data for line in kept)
    files["scores.f32"] = _head(folder.scores, rows * scores.row_bytes)
    done = {line.event["id"] for line in kept if line.event and line.event["kind"] == "told"}
    saved = _waiting(later, _recipes(lines), scores, tasks)
    files |= _parked_before(folder, done) | saved
    n_lost = sum(b'"kind":"told"' in line.data for line in later) - len(saved)
    return Salvage(files, damage, len(done), len(saved), n_lost)


def _read_lines(path: Path) -> list[Line]:
    try:
        parts = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    lines: list[Line] = []
    before: str | None = GENESIS  # the chain's last link, None where it cannot be read
    for number, data in enumerate(parts, start=1):
        try:
            record = json.loads(data)
            event, link = dict(record["event"]), str(record["chain"])
            is_sound = before is not None and link == chain_hash(before, canonical_json(event))
        except (ValueError, KeyError, TypeError):
            lines.append(Line(number, data, None, False))
            before = None
            continue
        is_sound = is_sound and data.endswith(b"\n") and not event_fault(event)
        lines.append(Line(number, data, event, is_sound))
        before = link
    return lines


def _tasks(lines: Sequence[Line], path: Path) -> dict[str, int]:
    """Return task -> number of examples: how the scores are to be read, so nothing is guessed."""
    header = lines[0].event if lines and lines[0].is_sound else None
    if header is None or header.get("kind") != "header" or "tasks" not in header:
        raise RunError(
            f"{path}: line 1, the header, is missing or damaged; without it nothing can be "
            "salvaged. Restore it from a backup, or search anew"
        )
    return {str(task): int(size) for task, size in header["tasks"].items()}


def _sound_part(lines: Sequence[Line], scores: ScoreLog, path: Path) -> tuple[int, str]:
    """Return how many lines are whole from the beginning on, and what is wrong with the next."""
    row = 0
    for index, line in enumerate(lines):
        if line.event is None:
            return index, f"{path}: line {line.number} is not a journal record"
        if not line.is_sound:
            return index, f"{path}: line {line.number} does not continue the hash chain"
        if not _is_scored(line.event):
            continue
        try:
            if line.event["row"] != row:
                return index, f"{path}: line {line.number} names row {line.event['row']}, not {row}"
            scores.read(row, str(line.event["scores"]))
        except JournalError as error:
            return index, str(error).partition(";")[0]  # without the advice to repair
        row += 1
    return len(lines), ""


def _is_scored(event: Mapping[str, Any] | None) -> bool:
    return event is not None and event.get("kind") == "told" and "error" not in event


def _other_files(folder: RunFolder) -> dict[str, bytes]:
    files = {}
    for path in sorted(folder.path.iterdir()):
        is_temporary = path.name.startswith(".") and path.name.endswith(".tmp")
        if path.is_symlink():
            continue  # somebody's way to have another file copied
        if path.is_file() and path.name not in _NOT_COPIED and not is_temporary:
            try:
                files[path.name] = path.read_bytes()
            except OSError as error:
                raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    return files


def _head(path: Path, n_bytes: int) -> bytes:
    if not n_bytes:
        return b""
    with path.open("rb") as file:
        return file.read(n_bytes)


def _parked_before(folder: RunFolder, done: set[int]) -> dict[str, bytes]:
    """Return results that waited already; each carries a digest that its reader checks."""
    return {
        f"arrived/{path.name}": path.read_bytes()
        for path in sorted(folder.arrived.glob("*.json"))
        if path.stem.isdigit() and not path.is_symlink() and int(path.stem) not in done
    }


def _recipes(lines: Sequence[Line]) -> dict[int, Recipe]:
    """Return candidate id -> recipe of every asked event whose recipe has its own digest."""
    recipes: dict[int, Recipe] = {}
    for line in lines:
        event = line.event
        if event is None or event.get("kind") != "asked":
            continue
        try:
            # Its digest is what matters, and ancestors are no part of that.
            recipe = Recipe.from_json(event["recipe"], where=f"line {line.number}", shallow=True)
            if recipe.digest() == event["digest"]:
                recipes[int(event["id"])] = recipe
        except (KeyError, TypeError, ValueError, ConfigError):
            continue  # of a damaged line: its result has to be scored again
    return recipes


def _waiting(
    lines: Sequence[Line], recipes: Mapping[int, Recipe], scores: ScoreLog, tasks: Mapping[str, int]
) -> dict[str, bytes]:
    """Return the results behind the damage whose line and scores are sound, as parked files."""
    files: dict[str, bytes] = {}
    for line in lines:
        event = line.event
        if not line.is_sound or event is None or not _is_scored(event):
            continue
        recipe = recipes.get(int(event["id"]))
        if recipe is None:
            continue
        try:
            row, margins = scores.read_both(int(event["row"]), str(event["scores"]))
        except JournalError:
            continue  # its scores are gone
        candidate = Candidate(int(event["id"]), recipe)
        found = Evaluation(
            candidate,
            split_scores(row, tasks),
            None,
            str(event["weights"]),
            margins=known_margins(margins, tasks),
        )
        name, data = parked_file(found)
        files[name] = data
    return files
