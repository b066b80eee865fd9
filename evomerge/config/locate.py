"""Find the run a user means."""

from __future__ import annotations

import os
from pathlib import Path

from evomerge.errors import RunError, nearest
from evomerge.storage.derived_cache import default_cache_root
from evomerge.storage.object_store import object_url, open_object_store
from evomerge.storage.remote_run import RemoteRun
from evomerge.storage.run_store import RunFolder

POPULATIONS = Path("populations")


def run_at(place: Path | str, *, with_journal: bool = True) -> RunFolder:
    """Return the run at a path or URL, which need not exist; one at a URL is fetched.

    Args:
        place: A folder, or a URL of an object store.
        with_journal: Of one at a URL also journal and scores, which a worker does not need.

    Raises:
        ConfigError: The URL cannot hold a run.
        RunError: The store cannot be reached, or an object is damaged.
    """
    url = object_url(place)
    if url is None:
        return RunFolder(Path(place))
    remote = RemoteRun(open_object_store(url), _working_folders())
    remote.pull(with_journal=with_journal)
    return RunFolder(remote.path, remote)


def rescued(run: Path) -> RunFolder:
    """Return the run folder called `run` for `repair`; of one at a URL a copy of all that is left.

    Raises:
        RunError: There is none.
    """
    url = object_url(run)
    if url is None:
        return locate(run)
    remote = RemoteRun(open_object_store(url), _working_folders())
    return RunFolder(remote.rescue(), remote)


def locate(run: Path) -> RunFolder:
    """Return the run folder called `run`: a path, a URL, or a name under ``populations/``.

    Raises:
        RunError: There is none; names the nearest.
    """
    if object_url(run) is not None:
        folder = run_at(run)
        if not folder.exists():
            raise RunError(
                f"{folder.where}: there is no such run: the store has no config.yaml there. Check "
                "bucket and name; to begin one, give the URL to `evomerge search CONFIG --run`"
            )
        return folder
    for path in (run, POPULATIONS / run):
        if RunFolder(path).exists():
            return RunFolder(path)
    if run.is_dir():
        RunFolder(run).require()
    parent = run.parent if run.parent != Path() else POPULATIONS
    known = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    raise RunError(f"{run}: there is no such run folder.{nearest(run.name, known)}")


def _working_folders() -> Path:
    """Return $EVOMERGE_RUNS, else a folder beside evomerge's cache."""
    given = os.environ.get("EVOMERGE_RUNS")
    if given:
        return Path(given)
    cache = default_cache_root()
    return cache.with_name(f"{cache.name}-runs")
