"""Lines for people and scripts that outlive their reader: a pipe or terminal may be gone."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO


def say(text: str, *, to: TextIO | None = None) -> None:
    """Print a line, on stderr unless told otherwise; when nobody reads any more, go on quietly."""
    stream = to or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except OSError:  # the reader of the pipe left, the terminal was closed
        silence(stream)
    except RuntimeError:
        return  # a signal came in the middle of another line


def notice(text: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a line on stderr: `text` for people, `facts` for scripts."""
    say(json.dumps(facts) if as_json else text)


def silence(stream: TextIO) -> None:
    """Send whatever is still written to a stream, also at exit, into nothing."""
    with contextlib.suppress(OSError, ValueError):  # not a file: nothing to send elsewhere
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
