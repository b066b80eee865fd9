"""Every error evomerge raises on purpose.

::

    EvomergeError                 exit code of the CLI
    ├── ConfigError               2   a config, recipe or argument is wrong
    │   └── UnknownNameError      2   no such merge method, algorithm, evaluator
    ├── PreflightError            3   the config is fine, the world is not
    │   ├── SourceError           3   a model file is missing, broken or hostile
    │   ├── ModelSpaceError       3   the models cannot be merged with each other
    │   └── DataError             3   a calibration set is empty or malformed
    ├── RunError                  3   the run folder cannot be used
    │   ├── RunLockedError        3   another driver owns the run
    │   ├── JournalError          3   the journal is corrupt
    │   └── ReplayError           3   the journal cannot be replayed exactly
    ├── EvaluationError           3   one candidate could not be scored
    └── ExecutorError             3   the workers cannot be started or reached
        └── UnavailableError      3   what candidates are scored with cannot be used

A message says what is wrong, where (file, key, tensor), and what to do.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable


class EvomergeError(Exception):
    """Base of every error whose message is meant for the user."""

    exit_code = 3


class ConfigError(EvomergeError):
    """A config file, recipe or command-line argument is wrong."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A merge method, algorithm, evaluator or key does not exist."""


class PreflightError(EvomergeError):
    """The config is well-formed but cannot be run here."""


class SourceError(PreflightError):
    """A model folder or file is missing, broken, unsupported or unsafe."""


class ModelSpaceError(PreflightError):
    """The models cannot be merged with each other."""


class DataError(PreflightError):
    """A calibration set is missing, empty or malformed."""


class RunError(EvomergeError):
    """A run folder cannot be used as asked."""


class RunLockedError(RunError):
    """Another driver owns the run, or took it over from this one."""


class JournalError(RunError):
    """The journal is corrupt somewhere other than its last line."""


class ReplayError(RunError):
    """Replaying the journal does not give the proposals it records."""


class EvaluationError(EvomergeError):
    """One candidate could not be scored."""


class ExecutorError(EvomergeError):
    """The workers could not be started or reached."""


class UnavailableError(ExecutorError):
    """A server or sandbox that candidates are scored with cannot be used; no candidate's fault."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type when it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|PASSWORD|PASSWD|SECRET)S?$")
_SHORTEST_SECRET = 6  # shorter values are words that messages have anyway
_USER_IN_URL = re.compile(r"(?<=://)[^/\s]+@")  # a password may hold an @


def without_secrets(text: str) -> str:
    """Return a text of another library without what must not be logged.

    That is users and passwords in URLs, and the values of environment variables whose names end
    in KEY, TOKEN, PASSWORD or SECRET.
    """
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name.upper()) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, f"${name}")
    return _USER_IN_URL.sub("…@", text)
