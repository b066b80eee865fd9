"""Per-example scores of every candidate: one row of little-endian float32 per result.

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
    """The file ``scores.f32``: (rows, N) float32."""

    def __init__(self, path: Path, n_examples: int) -> None:
        """Args: path: the file; n_examples: N, the length of every row."""
        self.path = path
        self.n_examples = n_examples
        self._rows = 0
        self._file = -1

    def open_for_append(self, rows: int) -> None:
        """Open for writing after the first `rows` rows; later bytes are cut off.

        Raises:
            JournalError: The file is missing, or shorter than the journal says.
        """
        wanted = rows * self.n_examples * 4
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
        return (int(event["row"]) + 1) * self.n_examples * 4 <= size

    def append(self, scores: ScoreArray) -> tuple[int, str]:
        """Append one (N,) row; return its number and digest."""
        if scores.shape != (self.n_examples,):
            raise JournalError(f"{self.path}: a row has {scores.shape}, expected {self.n_examples}")
        row = scores.astype("<f4").tobytes()
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
        """Return one (N,) row, checked against its digest.

        Raises:
            JournalError: The row is missing or altered.
        """
        width = self.n_examples * 4
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
        return np.frombuffer(data, dtype="<f4").astype(np.float32)
