"""The process that drives a run: who it is, and asking it to drain or to stop."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import RunError
from evomerge.storage.lease_probe import Holder, is_driven, lease_holder

_PROCESSES = Path("/proc")
_TAKEN_SECONDS = 1.0


@dataclass(frozen=True)
class Driver:
    """A process that holds the lease of a run.

    Attributes:
        folder: Of the run.
        holder: Process and host.
    """

    folder: Path
    holder: Holder

    def __str__(self) -> str:
        """Return such as "process 123" or "process 123 on node-4"."""
        return f"process {self.holder.pid}" + (
            "" if self.holder.is_here else f" on {self.holder.host}"
        )

    @property
    def can_drain(self) -> bool:
        """Whether it finishes what is running when asked to stop, as far as can be known.

        The command line handles SIGTERM; a program that calls `evomerge.search` does not, and is
        interrupted.
        """
        return _handles(self.holder.pid, signal.SIGTERM) is not False

    def drain(self) -> None:
        """Ask it to finish what is running and then to stop: what Ctrl-C does.

        Raises:
            RunError: It cannot be asked from here.
        """
        self._send(signal.SIGINT)

    def stop(self, *, is_draining: bool) -> None:
        """Ask it to stop at once: what a second Ctrl-C does; nothing finished is lost.

        Args:
            is_draining: It was asked to drain before.

        Raises:
            RunError: It cannot be asked from here.
        """
        self._send(signal.SIGINT)
        # The first signal only drains. Two of a kind may be taken for one, so another one
        # follows, where it is known to be handled: else it would kill without a clean end.
        if not is_draining and _handles(self.holder.pid, signal.SIGTERM):
            _until_taken(self.holder.pid, signal.SIGINT)
            with suppress(ProcessLookupError):
                if self._drives():  # else the first was enough
                    os.kill(self.holder.pid, signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        if not self.holder.is_here:
            raise RunError(
                f"{self.folder}: {self} drives it; stop it there, or a submitted search with "
                f"`evomerge stop {self.folder.name} --address URL`"
            )
        if not self._drives():
            raise RunError(f"{self.folder}: {self} does not drive it any more")
        try:
            os.kill(self.holder.pid, number)
        except OSError as error:
            raise RunError(f"{self.folder}: {self} cannot be told: {error.strerror}") from None

    def _drives(self) -> bool:
        # A lease that was left behind may name any process by now.
        return find_driver(self.folder) == self and _has_open(self.holder.pid, self.folder / "lock")


def find_driver(folder: Path) -> Driver | None:
    """Return who drives a run now, None if nobody does or it cannot be told who."""
    if not is_driven(folder):
        return None
    holder = lease_holder(folder)
    return None if holder is None else Driver(folder, holder)


def _has_open(pid: int, path: Path) -> bool:
    """Return whether a process has a file open; True where the system does not tell."""
    if not _PROCESSES.joinpath("self/fd").exists():
        return True
    try:
        wanted = path.stat()
        handles = list(_PROCESSES.joinpath(str(pid), "fd").iterdir())
    except PermissionError:  # somebody else's: the kernel will refuse the signal, and say why
        return True
    except OSError:
        return False
    return any(_is_same(handle, wanted) for handle in handles)


def _is_same(handle: Path, wanted: os.stat_result) -> bool:
    try:
        found = handle.stat()
    except OSError:  # closed since
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _until_taken(pid: int, number: signal.Signals) -> None:
    """Wait until a process has taken a signal, a second at most.

    While one waits for the main thread to get a core, the kernel may give the next one to any
    other thread. CPython 3.11 then forgets to look at either before the main thread next takes
    the interpreter's lock: a long call of a library ends first.
    """
    deadline = time.monotonic() + _TAKEN_SECONDS
    while _is_in(pid, "ShdPnd", number) and time.monotonic() < deadline:
        time.sleep(0.001)


def _handles(pid: int, number: signal.Signals) -> bool | None:
    """Return whether a process catches a signal; None where the system does not tell."""
    return _is_in(pid, "SigCgt", number)


def _is_in(pid: int, mask: str, number: signal.Signals) -> bool | None:
    """Return whether a process has a signal in one of its masks; None where it is not told."""
    try:
        text = _PROCESSES.joinpath(str(pid), "status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{mask}:\s*([0-9a-f]+)$", text, flags=re.MULTILINE)
    return None if found is None else bool(int(found[1], 16) >> (number - 1) & 1)
