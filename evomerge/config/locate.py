"""Find the run a user means."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import RunError, nearest
from evomerge.storage.run_store import RunFolder

POPULATIONS = Path("populations")


def locate(run: Path) -> RunFolder:
    """Return the run folder called `run`: a path, or a name under ``populations/``.

    Raises:
        RunError: There is none; names the nearest.
    """
    for path in (run, POPULATIONS / run):
        if RunFolder(path).exists():
            return RunFolder(path)
    if run.is_dir():
        RunFolder(run).require()
    parent = run.parent if run.parent != Path() else POPULATIONS
    known = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    raise RunError(f"{run}: there is no such run folder.{nearest(run.name, known)}")
