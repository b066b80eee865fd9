"""Per-example scores that runs share: one SQLite file, safe with several runs at a time.

A score is keyed by what was scored (the digest of the merged weights, so that recipes that build
the same model meet), how (a digest of the evaluator's settings and of where it runs) and on what
(the digest of the example's content).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from evomerge.core.arrays import ScoreArray
from evomerge.errors import UnavailableError

FILE = "scores.sqlite"
_WAIT_SECONDS = 60.0  # for another run's write, which takes milliseconds
_TABLE = """
CREATE TABLE IF NOT EXISTS scores (
    subject BLOB NOT NULL, example BLOB NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (subject, example)
) WITHOUT ROWID
"""


class SharedLedger:
    """Scores of (weights, settings) on examples; a connection is opened for each call."""

    def __init__(self, folder: Path) -> None:
        """Create the file where there is none.

        Raises:
            UnavailableError: It cannot be created or opened.
        """
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"{folder}: cannot hold the shared ledger: {error.strerror or error}. Name another "
                "folder under `runtime.ledger`"
            ) from None
        with self._opened() as file:
            file.execute("PRAGMA journal_mode = WAL")
            file.execute(_TABLE)

    def read(self, weights: str, settings: str, examples: Sequence[str]) -> ScoreArray:
        """Return (N,) float32 scores, NaN where there is none.

        Args:
            weights: Digest of the merged tensors.
            settings: Digest of how they are scored.
            examples: (N,) content digests, hex.

        Raises:
            UnavailableError: The file cannot be read.
        """
        with self._opened() as file:
            rows = file.execute(
                "SELECT example, score FROM scores WHERE subject = ?",
                (_subject(weights, settings),),
            )
            known = {bytes(example).hex(): float(score) for example, score in rows}
        return np.array([known.get(example, np.nan) for example in examples], dtype=np.float32)

    def write(
        self, weights: str, settings: str, examples: Sequence[str], scores: ScoreArray
    ) -> None:
        """Keep (N,) scores; what is NaN is left out, what is there stays as it is.

        Raises:
            UnavailableError: The file cannot be written.
        """
        subject = _subject(weights, settings)
        rows = [
            (subject, bytes.fromhex(example), float(score))
            for example, score in zip(examples, scores, strict=True)
            if not np.isnan(score)
        ]
        with self._opened() as file:
            file.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?)", rows)

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as file, file:
                yield file
        except sqlite3.Error as error:
            raise UnavailableError(
                f"{self.path}: the shared ledger cannot be used: {error}. It may be removed at any "
                "time; or run without `runtime.ledger`"
            ) from None


def _subject(weights: str, settings: str) -> bytes:
    return hashlib.blake2b(f"{weights}:{settings}".encode(), digest_size=16).digest()
