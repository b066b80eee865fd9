"""Where trackers keep things, and what must not get there: other people's links, passwords."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from evomerge.errors import ConfigError, RunError
from evomerge.trackers.tracker import RunFacts, Sent

FOLDER = "trackers"  # in the run folder, for trackers that are given no place


def own_place(run: RunFacts, name: str) -> Path:
    """Return ``RUN/trackers/NAME``, whose folder then exists.

    Raises:
        RunError: One of them is a link: the run folder may come from somebody else.
    """
    folder = tracker_folder(run.folder)
    _refuse_link(folder / name)
    folder.mkdir(exist_ok=True)
    return folder / name


def tracker_folder(run: Path) -> Path:
    """Return ``RUN/trackers``, which need not exist.

    Raises:
        RunError: It is a link.
    """
    _refuse_link(run / FOLDER)
    return run / FOLDER


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise RunError(f"{path}: is a link; remove it, or give the tracker another place")


def address(text: str, key: str) -> str:
    """Return a URL or file of a config; "$NAME" stands for an environment variable.

    Raises:
        ConfigError: The variable is not set, or the config itself holds a password.
    """
    if text.startswith("$"):
        value = os.environ.get(text[1:], "")
        if not value:
            raise ConfigError(f"{key}: the environment variable {text[1:]!r} is not set")
        return value
    if "://" in text and urlsplit(text).password:
        raise ConfigError(
            f"{key}: holds a password, which would be kept in the run folder; put the address into "
            f"an environment variable and write {key}: $NAME"
        )
    return text


class SentFile:
    """Remembers how far a tracker got, beside files that cannot be asked for it."""

    def __init__(self, path: Path, run: RunFacts) -> None:
        """Read what an earlier session left, if anything.

        Attributes set here: `sent`.

        Raises:
            RunError: It cannot be read, or is of another run.
        """
        self._path, self._identity = path, run.identity
        self.sent = Sent()
        if not path.exists():
            return
        try:
            body = json.loads(path.read_bytes())
            owner = str(body["run"])
            self.sent = Sent(int(body["sent"]), str(body["mark"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: cannot be read: {error}; delete {path.parent}") from None
        if owner != run.identity:
            raise of_another_run(str(path.parent))

    def keep(self, sent: Sent) -> None:
        """Remember the last step that was taken."""
        body = {"run": self._identity, "sent": sent.number, "mark": sent.mark}
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.unlink(missing_ok=True)  # a link in somebody else's run would be written through
        with temporary.open("x", encoding="utf-8") as file:
            file.write(json.dumps(body))
        temporary.replace(self._path)
        self.sent = sent


def of_another_run(what: str) -> RunError:
    """Return the error for a place that another run's results are in."""
    return RunError(
        f"{what}: holds the results of another run; choose another place or name, or delete it"
    )
