"""Which runs to watch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.config.locate import POPULATIONS, locate
from evomerge.errors import RunError
from evomerge.storage.run_store import RunFolder


def find_runs(places: Sequence[Path]) -> list[RunFolder]:
    """Return the runs that are meant, each once, in order.

    Args:
        places: Run folders, names of runs, or folders of runs (all in them, by name); none:
            ``populations/``.

    Raises:
        RunError: A place is neither, or has no runs in it.
    """
    found: dict[Path, RunFolder] = {}
    for place in places or (POPULATIONS,):
        try:
            folders = _runs_at(place)
        except OSError as error:
            raise RunError(f"{place}: cannot be read: {error.strerror or error}") from None
        for folder in folders:
            found.setdefault(folder.path.resolve(), folder)
    return list(found.values())


def _runs_at(place: Path) -> list[RunFolder]:
    if not RunFolder(place).exists() and place.is_dir():
        folders = [RunFolder(path) for path in sorted(place.iterdir()) if path.name[:1] != "."]
        runs = [folder for folder in folders if folder.exists()]
        if runs:
            return runs
        if not RunFolder(POPULATIONS / place).exists():
            raise RunError(f"{place}: there are no runs in this folder; give a run or its name")
    if place == POPULATIONS and not place.exists():
        raise RunError(
            f"there is no folder {POPULATIONS}/ here: give a run, or begin one with evomerge search"
        )
    return [locate(place)]
