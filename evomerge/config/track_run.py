"""Trackers at work: on a run that is over, or beside a search that goes on.

A tracker reads the journal and never sees the search. Each has a thread of its own, so that a slow
server delays nothing; what it has not taken yet waits in the journal. It fails alone, once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from evomerge.config.run_steps import RunSteps
from evomerge.config.trackers import build_tracker
from evomerge.errors import EvomergeError, RunError, first_line, without_secrets
from evomerge.storage.run_store import RunFolder
from evomerge.trackers.places import of_another_run
from evomerge.trackers.sole_sender import sole_sender
from evomerge.trackers.tracker import Sent, Step, Tracker, trackers

POLL_SECONDS = 1.0
FINISH_SECONDS = 30.0  # how long the end of a search waits for its trackers, all together
BATCH = 100  # steps in one call of a tracker
_SHARE = 0.1  # of one processor's time, at most, while a search needs it


def track(folder: RunFolder, tracker: Tracker, *, is_running: bool = False) -> tuple[int, int]:
    """Send a tracker what it does not have yet of a run.

    Args:
        folder: The run; nothing in it is changed but what the tracker keeps under ``trackers/``.
        tracker: Where to.
        is_running: Somebody is searching: more will come, and the tracker is not told of an end.

    Returns:
        How many results were sent now, and how many the tracker has in all.

    Raises:
        RunError: The tracker cannot be used or holds another run, or another process sends there.
    """
    name = trackers.name_of(type(tracker))
    try:
        with sole_sender(folder.path, tracker), closing(tracker):  # which may send the rest
            steps = RunSteps(folder)
            sender = _Sender(tracker, steps)
            sender.start()
            n_sent = sender.send()
            if not is_running:
                tracker.finish(steps.ending())
    except EvomergeError:
        raise
    except Exception as error:  # a library and its network can raise anything
        raise RunError(f"tracker {name!r}: {_described(error)}") from error
    return n_sent, steps.told


@contextmanager
def followed(
    folder: RunFolder, bodies: Sequence[Mapping[str, Any]], on_trouble: Callable[[str], None]
) -> Iterator[None]:
    """Have trackers follow a run while the body runs; no tracker ends or delays it.

    Args:
        folder: The run.
        bodies: Trackers as resolved configs have them.
        on_trouble: Called, from any thread, with a line for each tracker that gives up.
    """
    threads = [_Follower(folder, body, on_trouble) for body in bodies]
    for thread in threads:
        thread.start()
    deadline = 0.0
    try:
        yield
        deadline = time.monotonic() + FINISH_SECONDS
    finally:  # after an error or a second Ctrl-C nobody waits
        for thread in threads:
            thread.over.set()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread.name for thread in threads if thread.is_alive() and deadline]
        for name in late:
            on_trouble(
                f"{name} did not take all results within {FINISH_SECONDS:.0f} s; the rest: "
                f"evomerge track {folder.where}"
            )


class _Sender:
    """Sends a tracker what is new."""

    def __init__(self, tracker: Tracker, steps: RunSteps) -> None:
        self._tracker = tracker
        self._steps = steps
        self._had = Sent()

    def start(self) -> None:
        """Start the tracker."""
        self._had = self._tracker.start(self._steps.facts())

    def send(self, pause: Callable[[], None] = lambda: None) -> int:
        """Send all results there are now, with a pause after each batch; returns how many."""
        n_sent = 0
        batch: list[Step] = []
        # The last that the tracker has is read again, and its mark compared.
        for step in self._steps.poll(after=max(self._had.number - 1, 0)):
            if step.number <= self._had.number:
                if step.mark != self._had.mark:
                    raise of_another_run(self._tracker.where())
                continue
            batch.append(step)
            if len(batch) == BATCH:
                self._tracker.log(batch)
                n_sent, batch = n_sent + len(batch), []
                pause()
        if batch:
            self._tracker.log(batch)
        return n_sent + len(batch)


class _Follower(threading.Thread):
    """Follows a run with one tracker until `over` is set, then finishes."""

    def __init__(
        self, folder: RunFolder, body: Mapping[str, Any], on_trouble: Callable[[str], None]
    ) -> None:
        # A daemon: a hanging connection must not keep the process alive.
        super().__init__(name=f"tracker {body.get('name')!r}", daemon=True)
        self._folder = folder
        self._body = body
        self._on_trouble = on_trouble
        self.over = threading.Event()
        self._rested = 0.0  # processor seconds of this thread at its last rest

    def run(self) -> None:
        """Work; every failure becomes one line."""
        try:
            tracker, _ = build_tracker(self._body, "trackers", Path())
            # `evomerge track` beside a search ends soon.
            with sole_sender(self._folder.path, tracker, self._wait), closing(tracker):
                self._follow(tracker)
        except BaseException as error:  # a library's SystemExit, too
            self._on_trouble(
                f"{self.name} stopped, the search goes on: {_described(error)}. When mended: "
                f"evomerge track {self._folder.where}"
            )

    def _wait(self) -> bool:
        time.sleep(POLL_SECONDS / 5)
        return True  # how long the end of a search waits is not decided here

    def _follow(self, tracker: Tracker) -> None:
        steps = RunSteps(self._folder)
        sender = _Sender(tracker, steps)
        sender.start()
        while True:
            is_last = self.over.is_set()  # before the look that is to see everything
            sender.send(self._give_way)
            if is_last:
                break
            self._give_way()
            self.over.wait(POLL_SECONDS)
        tracker.finish(steps.ending())

    def _give_way(self) -> None:
        """Rest until the work since the last rest was its share of the time; not at the end."""
        worked = time.thread_time() - self._rested
        self.over.wait(worked * (1.0 / _SHARE - 1.0))
        self._rested = time.thread_time()


def _described(error: BaseException) -> str:
    kind = "" if isinstance(error, EvomergeError) else f"{type(error).__name__}: "
    return without_secrets(f"{kind}{first_line(error)}").rstrip(".")
