"""Per-example scores of every candidate: one row of little-endian float32 per result.

A row holds N scores, and in a run that keeps margins (`Evaluation.margins`) N of those after them.
Rows are written before the journal event that points at them, so a row without an event is
the trace of a crash and is cut off when the run is opened again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.core.arrays import ScoreArray
from evomerge.errors import JournalError


def row_digest(row: bytes) -> str:
    """Return the 16-hex-digit digest of one row."""
    return hashlib.blake2b(row, digest_size=8).hexdigest()


class ScoreLog:
    """The file ``scores.f32``: (rows, N) float32, or (rows, 2 N) with margins."""

    def __init__(self, path: Path, n_examples: int, *, has_margins: bool = False) -> None:
        """Args: path: the file; n_examples: N; has_margins: what the run's header says of it."""
        self.path = path
        self.n_examples = n_examples
        self.has_margins = has_margins
        self._rows = 0
        self._file = -1

    @classmethod
    def of(cls, path: Path, header: Mapping[str, Any]) -> ScoreLog:
        """Return the log of a run with this header."""
        n_examples = sum(int(size) for size in header["tasks"].values())
        return cls(path, n_examples, has_margins=bool(header.get("margins")))

    @property
    def row_bytes(self) -> int:
        """Length of a row in the file."""
        return self.n_examples * (8 if self.has_margins else 4)

    def open_for_append(self, rows: int) -> None:
        """Open for writing after the first `rows` rows; later bytes are cut off.

        Raises:
            JournalError: The file is missing, or shorter than the journal says.
        """
        wanted = rows * self.row_bytes
        if wanted and not self.path.exists():
            raise JournalError(f"{self.path}: is missing, the journal needs {wanted} bytes")
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._file).st_size
        if size < wanted:
            raise JournalError(f"{self.path}: has {size} bytes, the journal needs {wanted}")
        os.ftruncate(self._file, wanted)
        os.lseek(self._file, wanted, os.SEEK_SET)
        self._rows = rows

    def backs(self, event: Mapping[str, Any]) -> bool:
        """Return whether the row that a journal event points at is in the file."""
        if event.get("kind") != "told" or "error" in event:
            return True
        size = self.path.stat().st_size if self.path.exists() else 0
        return (int(event["row"]) + 1) * self.row_bytes <= size

    def append(self, scores: ScoreArray, margins: ScoreArray | None = None) -> tuple[int, str]:
        """Append one row, (N,) scores and margins; return its number and digest.

        Margins are left out where the run keeps none, and NaN where it does and there are none.
        """
        parts = [scores]
        if self.has_margins:
            parts.append(np.full_like(scores, np.nan) if margins is None else margins)
        if any(part.shape != (self.n_examples,) for part in parts):
            raise JournalError(f"{self.path}: a row has {scores.shape}, expected {self.n_examples}")
        row = np.concatenate(parts).astype("<f4").tobytes()
        try:
            written = os.write(self._file, row)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot append: {error.strerror}") from None
        if written != len(row):
            # The rest of the row would be misread as the next; a resume cuts it off.
            raise JournalError(f"{self.path}: short write, the disk is probably full")
        self._rows += 1
        return self._rows - 1, row_digest(row)

    def sync(self) -> None:
        """Force the rows to the disk, if the file is open for writing."""
        if self._file >= 0:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file if it was opened for writing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self, row: int, digest: str) -> ScoreArray:
        """Return the (N,) scores of a row, checked against its digest.

        Raises:
            JournalError: The row is missing or altered.
        """
        return self.read_both(row, digest)[0]

    def read_both(self, row: int, digest: str) -> tuple[ScoreArray, ScoreArray]:
        """Return the (N,) scores and margins of a row; margins are NaN in a log without them.

        Raises:
            JournalError: The row is missing or altered.
        """
        width = self.row_bytes
        try:
            with self.path.open("rb") as file:
                # A stranger's journal may name any size: nothing is set aside for it unseen.
                is_there = row >= 0 and (row + 1) * width <= os.fstat(file.fileno()).st_size
                file.seek(row * width if is_there else 0)
                data = file.read(width) if is_there else b""
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be read: {error.strerror}") from None
        if row_digest(data) != digest:
            raise JournalError(
                f"{self.path}: row {row} is missing or was altered; save what is whole: "
                f"evomerge repair {self.path.parent} --out NEW"
            )
        values = np.frombuffer(data, dtype="<f4").astype(np.float32)
        scores, margins = values[: self.n_examples], values[self.n_examples :]
        return scores, margins if self.has_margins else np.full_like(scores, np.nan)
