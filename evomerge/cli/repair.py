"""`evomerge repair`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evomerge.cli.output import say
from evomerge.config.locate import rescued, run_at
from evomerge.errors import RunLockedError
from evomerge.storage.salvage import salvage


def repair_command(run: Path, out: Path, *, as_json: bool) -> None:
    """Write what is whole of a damaged run to a new folder; `run` itself is only read.

    Raises:
        RunLockedError: A driver is writing the run.
        RunError: Nothing can be saved, or `out` exists.
    """
    folder = rescued(run)
    if folder.is_driven():
        raise RunLockedError(f"{folder.where}: a search is running here; stop it first")
    found = salvage(folder)
    run_at(out).create(found.files)
    if as_json:
        body = {
            "run": folder.where,
            "out": str(out),
            "damage": found.damage,
            "kept": found.kept,
            "waiting": found.waiting,
            "lost": found.lost,
        }
        say(json.dumps(body), to=sys.stdout)
        return
    say(found.damage or "no damage was found", to=sys.stdout)
    say(
        f"{out}: {found.kept} results kept, {found.waiting} behind the damage kept for their turn, "
        f"{found.lost} to be scored again; go on with evomerge resume {out}",
        to=sys.stdout,
    )
