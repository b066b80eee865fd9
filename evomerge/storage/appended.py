"""What was appended to a file of lines since the last look."""

from __future__ import annotations

from pathlib import Path


def appended_lines(path: Path, end: int) -> tuple[bytes, int]:
    """Return the whole lines behind byte `end`, and where they start.

    An unfinished last line is left for the next look. They start at 0 when the file has become
    shorter than `end`; a file that does not exist is empty.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size if path.exists() else 0
    start = end if size >= end else 0
    if size == start:
        return b"", start
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    return data[: data.rfind(b"\n") + 1], start
