"""The evomerge command line in forks of a process that has already imported what it needs.

Importing torch and transformers takes seconds, a search of tiny models milliseconds. A fork runs
`evomerge.cli.main.run` with its own arguments in a process group of its own, exactly as
`python -m evomerge` would from there on.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.core.candidate import Candidate
from evomerge.runtime.watched import RunExecutor
from evomerge.search.ports import Outcome


def preload() -> None:
    """Import what a search imports; starts no thread, so that forks are safe."""
    import torch

    for name in ("transformers.models.vit.modeling_vit", "evomerge.cli.search"):
        importlib.import_module(name)
    torch.set_num_threads(1)


@dataclass
class Fork:
    """One child.

    Attributes:
        pid: Of the child, which leads its process group.
        code: Exit code, negative for a signal; None while it runs.
    """

    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while the child runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 600.0) -> int:
        """Return the exit code when the child has ended; TimeoutError after `seconds`."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                raise TimeoutError(f"process {self.pid} did not end in {seconds:g} s")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """Kill -9 the child and its process group."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def start(arguments: Sequence[str], log: Path, *, shuffle: int | None = None) -> Fork:
    """Run the command line in a fork; its output is appended to `log`.

    Args:
        arguments: Of the command line.
        log: File for stdout and stderr.
        shuffle: Seed; candidates are then scored out of order, as by several workers.
    """

    def child() -> None:
        from evomerge.cli import main

        if shuffle is not None:
            _score_out_of_order(shuffle)
        sys.argv = ["evomerge", *arguments]
        main.run()

    return fork(child, log)


def fork(call: Callable[[], None], log: Path) -> Fork:
    """Call a function in a fork that ends with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        _lead_a_group(pid)
        return Fork(pid)
    code = 1
    try:
        _lead_a_group(0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        call()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _lead_a_group(pid: int) -> None:
    """Put a process into a group of its own; called on both sides, whoever comes first."""
    try:
        os.setpgid(pid, 0)
    except (PermissionError, ProcessLookupError):  # it has done so itself, or is gone already
        return


class OutOfOrder:
    """Hands one of the next few candidates to an executor that scores them one by one."""

    SLOTS = 4

    def __init__(self, inner: RunExecutor, seed: int) -> None:
        self._inner = inner
        self._rng = random.Random(seed)
        self._queue: list[Candidate] = []

    def submit(self, candidate: Candidate) -> None:
        """Queue one candidate."""
        self._queue.append(candidate)

    def wait(self, timeout: float) -> list[Outcome]:
        """Score any of the first `SLOTS` candidates."""
        if not self._queue:
            return []
        index = self._rng.randrange(min(self.SLOTS, len(self._queue)))
        self._inner.submit(self._queue.pop(index))
        return self._inner.wait(timeout)

    def withdraw(self) -> list[int]:
        """Take back what is queued."""
        ids = [candidate.id for candidate in self._queue]
        self._queue.clear()
        return ids

    def last_look(self) -> None:
        """Have the executor behind look."""
        self._inner.last_look()

    def close(self) -> None:
        """Close the executor behind."""
        self._inner.close()


def _score_out_of_order(seed: int) -> None:
    """Make the sessions of this (forked) process score candidates out of order."""
    from evomerge.config.session import Session

    in_order = Session.executor
    Session.executor = lambda self: OutOfOrder(in_order(self), seed)  # type: ignore[method-assign]
