"""RunStore: one folder under ``populations/`` that holds everything a search knows.

==================  ===========================================================
``config.yaml``     the resolved config: every default spelled out, absolute paths
``sources.json``    paths and content digests of the models
``derived.npz``     Gram matrices the search and the merges were computed with
``manifest.json``   which tensor takes which path through the merge
``journal.jsonl``   every proposal and result; the only state (see `journal`)
``scores.f32``      per-example scores, one row per successful result
``front.json``      the Pareto front, rewritten as it changes
``surrogate.json``  what `evomerge ask` answers from, of algorithms that fit one
``events.log``      times, workers, failures with tracebacks, for people
``arrived/``        results that finished before their turn
``exports/``        default place for exported models
``lock lease.json`` single-writer lease
==================  ===========================================================
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import (
    Candidate,
    Evaluation,
    known_margins,
    scored_examples,
    split_scores,
)
from evomerge.core.recipe import Recipe
from evomerge.errors import JournalError, RunError
from evomerge.storage.atomic import sync_folder, write_atomically
from evomerge.storage.journal import JournalWriter, read_journal
from evomerge.storage.journal_events import check_events
from evomerge.storage.lease import Lease
from evomerge.storage.lease_probe import is_driven
from evomerge.storage.mirror import Mirror
from evomerge.storage.parked import parked_file, parked_result
from evomerge.storage.remote_run import RemoteRun
from evomerge.storage.score_log import ScoreLog

FRONT_SECONDS = 1.0
_OWN_NAMES = (
    "config.yaml", "sources.json", "derived.npz", "manifest.json", "journal.jsonl",
    "journal.jsonl.cut", "scores.f32", "front.json", "surrogate.json", "warm_start.json",
    "validation.json", "test.json", "events.log", "arrived", "exports", "lock", "lease.json",
)  # fmt: skip


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, read-only folder) into a RunError that names the file."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror or error}. Nothing that was told is "
            "lost; mend the disk and resume the run."
        ) from error


class RunFolder:
    """Names and read-only access; any number of readers may look while a driver writes."""

    def __init__(self, path: Path, remote: RemoteRun | None = None) -> None:
        """Name a run; nothing is looked up.

        Args:
            path: The run folder; need not exist yet.
            remote: The run in an object store whose working folder that is.
        """
        self.path = path
        self.remote = remote
        self.config = path / "config.yaml"
        self.sources = path / "sources.json"
        self.derived = path / "derived.npz"
        self.manifest = path / "manifest.json"
        self.journal = path / "journal.jsonl"
        self.scores = path / "scores.f32"
        self.front = path / "front.json"
        self.surrogate = path / "surrogate.json"
        self.events = path / "events.log"
        self.arrived = path / "arrived"
        self.exports = path / "exports"

    @property
    def where(self) -> str:
        """What a user calls the run by: its URL in an object store, or its folder."""
        return str(self.path) if self.remote is None else self.remote.url

    @property
    def place(self) -> Path | str:
        """Where a worker in another working directory or on another machine finds the run."""
        return self.path.resolve() if self.remote is None else self.remote.url

    def refresh(self) -> None:
        """Bring the folder of a run in an object store up to date.

        Raises:
            RunError: The store cannot be reached, or an object is damaged.
        """
        if self.remote is not None:
            self.remote.pull()

    def is_driven(self) -> bool:
        """Return whether a driver, on this machine or another, is writing the run; only reads."""
        return is_driven(self.path) if self.remote is None else self.remote.is_driven()

    def take_lease(self) -> Lease | Mirror:
        """Return the right to write the run.

        Raises:
            RunLockedError: Another driver has it.
        """
        return Lease(self.path) if self.remote is None else Mirror(self.remote)

    def published(self, path: Path) -> None:
        """Put a file of the folder, written without the lease, where the run is kept."""
        if self.remote is not None:
            self.remote.put_file(path.name)

    def exists(self) -> bool:
        """Return whether there is a run here."""
        return self.config.is_file() and self.sources.is_file()

    def refuse_links(self) -> None:
        """Raise RunError if a file of the run is a link: it would lead out of the folder.

        A run may come from somebody else, and a resume appends, truncates and deletes.
        """
        for name in _OWN_NAMES:
            path = self.path / name
            if path.is_symlink():
                raise RunError(
                    f"{path}: is a link to {os.readlink(path)}; the files of a run lie in its own "
                    "folder. Put the file itself there if you trust it"
                )

    def require(self) -> None:
        """Raise RunError unless there is a run here, and all of it lies here."""
        if not self.path.is_dir():
            raise RunError(f"{self.path}: there is no such run folder")
        if not self.exists():
            raise RunError(
                f"{self.path}: not a run folder (config.yaml and sources.json are missing)"
            )
        self.refuse_links()

    def create(self, files: Mapping[str, bytes]) -> None:
        """Create the folder with its first files, all or nothing.

        Raises:
            RunError: Something is already there, or the folder cannot be written.
        """
        if self.remote is not None:
            self.remote.create(files)
            return
        is_vacant = not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))
        if not is_vacant or not self.path.name:  # "." cannot be put in place in one step
            raise RunError(f"{self.path}: exists and is not an evomerge run; choose another folder")
        nursery = self.path.with_name(f".{self.path.name}.creating-{os.getpid()}")
        shutil.rmtree(nursery, ignore_errors=True)  # left by a process of this number
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            nursery.mkdir()
            for name in ("arrived", "exports"):
                (nursery / name).mkdir()
            for name, data in files.items():
                write_atomically(nursery / name, data)
            nursery.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            shutil.rmtree(nursery, ignore_errors=True)
            raise RunError(f"{self.path}: cannot be created: {error.strerror}") from None

    def read_events(self) -> list[dict[str, Any]]:
        """Return the journal's events, header first; [] before the first one.

        Raises:
            JournalError: The journal is damaged, or not one that evomerge wrote.
        """
        if not self.journal.exists():
            return []
        events = read_journal(self.journal)[0]
        check_events(events, self.journal)
        return events

    def header(self) -> dict[str, Any]:
        """Return the header event.

        Raises:
            RunError: The run was created but never started.
        """
        events = self.read_events()
        if not events:
            raise RunError(f"{self.path}: nothing was evaluated yet; start it with evomerge resume")
        return check_header(events[0], self.journal)


def check_header(event: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a journal's first event if it is a header this version can read."""
    if event.get("kind") != "header" or event.get("format") not in (1, 2):
        raise JournalError(f"{path}: does not begin with a header of format 1 or 2")
    return dict(event)


# Stands for the candidate in evaluations read back; replay puts the one it re-asked there.
STAND_IN = Candidate(-1, Recipe("linear", ("none",), {"weights": np.ones((1, 1))}))


def stored_evaluations(
    events: list[dict[str, Any]], scores: ScoreLog, tasks: Mapping[str, int]
) -> Iterator[tuple[dict[str, Any], Evaluation | None]]:
    """Yield each event after the header with the evaluation it tells of, if any.

    Args:
        events: The journal after its header.
        scores: The run's per-example scores.
        tasks: Task -> number of examples.
    """
    for event in events:
        if event["kind"] != "told":
            yield event, None
        elif "error" in event:
            yield event, Evaluation(STAND_IN, error=str(event["error"]))
        else:
            row, margins = scores.read_both(int(event["row"]), str(event["scores"]))
            yield (
                event,
                Evaluation(
                    STAND_IN,
                    split_scores(row, tasks),
                    None,
                    str(event["weights"]),
                    scored_examples(row),
                    known_margins(margins, tasks),
                ),
            )


def sweep_temporary(folder: RunFolder) -> None:
    """Delete temporary files that a killed driver left; only the lease's holder may."""
    for place in (folder.path, folder.arrived):
        for path in place.glob(".*.tmp"):
            path.unlink(missing_ok=True)


class RunStore:
    """The single writer of a run folder."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        header: Mapping[str, Any],
        tasks: Mapping[str, int],
    ) -> None:
        """Take the lease and open the journal, writing `header` if it is empty.

        Raises:
            RunLockedError: Another driver owns the run.
            JournalError: The journal or the scores are damaged.
        """
        self.folder = folder
        self._last_publish = 0.0
        folder.refuse_links()
        with explained(folder.path), ExitStack() as opened:
            self.lease = folder.take_lease()
            opened.callback(self.lease.release)
            # Parked by an earlier process or a warm start.
            self._parked = {
                int(path.stem) for path in folder.arrived.glob("*.json") if path.stem.isdigit()
            }
            self._log = opened.enter_context(folder.events.open("a", encoding="utf-8"))
            self.scores = ScoreLog.of(folder.scores, {**header, "tasks": tasks})
            opened.callback(self.scores.close)
            sweep_temporary(folder)
            self._refuse_lost_journal()
            self.journal = JournalWriter(
                folder.journal,
                check=self._check_events,
                sync_first=self.scores.sync,
                is_backed=self.scores.backs,
            )
            opened.callback(self.journal.close)
            if self.journal.sealed:
                self.note(f"cut {self.journal.sealed} bytes of a torn end of the journal")
            rows = sum(e["kind"] == "told" and "error" not in e for e in self.journal.events)
            self.scores.open_for_append(rows)
            if not self.journal.events:
                self.append(header)
                self.journal.sync()  # rows of scores must never be durable without a header
                sync_folder(folder.path)
            self.header = check_header((self.journal.events or [dict(header)])[0], folder.journal)
            self._opened = opened.pop_all()

    def _check_events(self, events: list[dict[str, Any]], path: Path) -> None:
        """Check a journal that is there; what its header says of the scores is what counts."""
        check_events(events, path)
        if events:
            self.scores.has_margins = bool(events[0].get("margins"))

    def _refuse_lost_journal(self) -> None:
        """Raise rather than begin anew over the results of a run whose journal is gone."""
        folder = self.folder
        has_journal = folder.journal.exists() and folder.journal.stat().st_size > 0
        has_results = folder.scores.exists() and folder.scores.stat().st_size > 0
        if has_results and not has_journal:
            raise JournalError(
                f"{folder.journal}: is missing or empty, but {folder.scores.name} holds results. "
                "Restore the journal from a backup; nothing was changed."
            )

    def append(self, event: Mapping[str, Any]) -> None:
        """Append one journal event, if this driver still owns the run."""
        self.lease.check()
        self.journal.append(event)

    def append_scores(
        self, scores: ScoreArray, margins: ScoreArray | None = None
    ) -> tuple[int, str]:
        """Append one row of per-example scores and margins, if this driver still owns the run."""
        self.lease.check()
        return self.scores.append(scores, margins)

    def read_scores(self, row: int, digest: str) -> tuple[ScoreArray, ScoreArray]:
        """Return the (N,) scores and margins of a row, checked against its digest."""
        return self.scores.read_both(row, digest)

    def park(self, evaluation: Evaluation) -> None:
        """Keep a result that arrived before its turn in ``arrived/<id>.json``."""
        self.lease.check()
        name, data = parked_file(evaluation)
        with explained(self.folder.path / name):
            write_atomically(self.folder.path / name, data, durable=False)

    def parked(self, candidate: Candidate) -> Evaluation | None:
        """Return the parked evaluation of a candidate, None if there is none or it is torn."""
        if candidate.id not in self._parked:
            return None
        try:
            data = self._parking(candidate.id).read_bytes()
        except OSError:
            return None  # scored again: costs one evaluation, never a wrong score
        return parked_result(data, candidate)

    def unpark(self, candidate_id: int) -> None:
        """Delete a parked result whose event is in the journal."""
        self.lease.check()
        self._parking(candidate_id).unlink(missing_ok=True)

    def _parking(self, candidate_id: int) -> Path:
        return self.folder.arrived / f"{candidate_id:08d}.json"

    def rewrite_config(self, data: bytes) -> None:
        """Replace config.yaml, if this driver still owns the run."""
        self.lease.check()
        with explained(self.folder.config):
            write_atomically(self.folder.config, data)

    def note(self, text: str) -> None:
        """Write a time-stamped line to events.log."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with explained(self.folder.events):
            self._log.write(f"{stamp} {text}\n")
            self._log.flush()

    def publish(self, front: Callable[[], list[dict[str, Any]]], *, force: bool = False) -> None:
        """Rewrite front.json, at most once a second unless forced."""
        now = time.monotonic()
        if not force and now - self._last_publish < FRONT_SECONDS:
            return
        self._last_publish = now
        self.lease.check()
        text = json.dumps(front(), indent=1)
        with explained(self.folder.front):
            write_atomically(self.folder.front, text.encode() + b"\n", durable=force)

    def close(self) -> None:
        """Sync everything and give the lease back."""
        self._opened.close()
