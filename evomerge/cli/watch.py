"""`evomerge watch`: a terminal screen that follows runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import ConfigError, PreflightError


def watch_command(places: Sequence[Path], *, as_json: bool) -> None:
    """Show runs until somebody quits, or print one snapshot.

    Args:
        places: Runs, or folders of runs; none: ``populations/``.
        as_json: Print how they are now and end.

    Raises:
        ConfigError: There is no terminal to draw on.
        PreflightError: textual is not installed.
        RunError: There is nothing to watch.
    """
    if as_json:
        print(json.dumps({"runs": _snapshots(places)}))
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "watch needs a terminal to draw on; for scripts there are `evomerge status RUN --json` "
            "and `evomerge watch --json`"
        )
    try:
        from evomerge.watch.screen import WatchApp
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise PreflightError(
            "watch needs textual, which is not installed: pip install 'evomerge[watch]'"
        ) from None
    WatchApp(places).run()


def _snapshots(places: Sequence[Path]) -> list[dict[str, object]]:
    from evomerge.watch.discover import find_runs
    from evomerge.watch.snapshot import RunFollower

    return [RunFollower(folder).newest().to_json() for folder in find_runs(places)]
