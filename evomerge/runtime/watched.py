"""An executor that takes no result from models or examples that were changed while it ran.

Workers read their sources through memory maps for as long as they live. A file that is written to
changes what they merge, and one that is replaced is what the next worker, a resume or an export
would read. Example files that change are read again. So the files are looked at whenever results
arrive, before anything learns of them: a result that is taken was scored from the files that the
run began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from evomerge.core.candidate import Candidate
from evomerge.errors import SourceError
from evomerge.search.ports import Executor, Outcome

Signature = tuple[int, int, int]  # inode, bytes, mtime in nanoseconds


class WatchedFiles:
    """Files that must stay as they are."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Remember the files as they are now.

        Raises:
            SourceError: One is missing.
        """
        self._then = {path: _signature(path) for path in paths}

    def check(self) -> None:
        """Raise SourceError, which names the file, when one was changed, replaced or removed."""
        for path, then in self._then.items():
            if _signature(path) != then:
                raise SourceError(
                    f"{path}: was changed or replaced while the search ran. Results that came "
                    "after that were not taken, the others are safe. Put the file back and resume "
                    "the run, or search anew with the files as they are"
                )


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read any more: {error.strerror}. Nothing that was told is lost; "
            "put the file back and resume the run"
        ) from None
    return status.st_ino, status.st_size, status.st_mtime_ns


class RunExecutor(Executor, Protocol):
    """What runs the candidates of a session."""

    def last_look(self) -> None:
        """Have every worker that waits look at its known models once more, if it has any.

        Raises:
            UnavailableError: They say something else than at the start; see `runtime.canary`.
        """
        ...


class WatchedExecutor:
    """Hands everything to another executor; looks at the files when results come."""

    def __init__(self, inner: RunExecutor, files: WatchedFiles) -> None:
        """Args: files: what the workers of `inner` read."""
        self._inner = inner
        self._files = files

    def submit(self, candidate: Candidate) -> None:
        """Queue one candidate."""
        self._inner.submit(candidate)

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what finished.

        Raises:
            SourceError: A file has changed; what finished is dropped.
        """
        outcomes = self._inner.wait(timeout)
        if outcomes:
            self._files.check()
        return outcomes

    def withdraw(self) -> list[int]:
        """Take back every queued candidate."""
        return self._inner.withdraw()

    def last_look(self) -> None:
        """Have every worker look at its known models once more."""
        self._inner.last_look()

    def close(self) -> None:
        """Stop the workers."""
        self._inner.close()
