"""Read a journal while it grows: every look parses only what is new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.core.recipe import canonical_json
from evomerge.errors import JournalError
from evomerge.storage.appended import appended_lines
from evomerge.storage.journal import GENESIS, chain_hash


class JournalFollower:
    """The events of a journal so far, verified; never writes and takes no lease."""

    def __init__(self, path: Path) -> None:
        """Start before the first event; the file need not exist yet."""
        self.path = path
        self.events: list[dict[str, Any]] = []
        self._chain = GENESIS
        self._end = 0  # bytes that `events` came from

    @property
    def chain(self) -> str:
        """The last link of the hash chain: differs whenever the events do."""
        return self._chain

    def poll(self) -> bool:
        """Take in what was appended since the last look; return whether there was anything.

        An unfinished last line is left for the next look. When the file became shorter (a driver
        cut off what a power cut had damaged) it is read from its beginning.

        Raises:
            JournalError: The file cannot be read or was altered. The next look begins anew.
        """
        try:
            whole, start = appended_lines(self.path, self._end)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be read: {error.strerror}") from None
        if start < self._end:
            self._forget()
        before = len(self.events)
        for line in whole.splitlines(keepends=True):
            self._take(line)
        return len(self.events) > before

    def _take(self, line: bytes) -> None:
        start = self._end
        try:
            record = json.loads(line)
            event, link = record["event"], record["chain"]
            is_sound = link == chain_hash(self._chain, canonical_json(event))
        except (ValueError, KeyError, TypeError):
            is_sound = False
        if not is_sound:
            self._forget()
            raise JournalError(
                f"{self.path}: the line at byte {start} does not continue the journal; the file "
                "was altered or its disk is damaged. Restore it from a backup."
            )
        self.events.append(event)
        self._chain, self._end = link, start + len(line)

    def _forget(self) -> None:
        self.events, self._chain, self._end = [], GENESIS, 0
