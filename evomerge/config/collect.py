"""What of runs and caches can be made again, and may therefore be deleted."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.config.models import open_models
from evomerge.config.workers import read_run_config, read_sources
from evomerge.errors import RunError, RunLockedError
from evomerge.merging.source import content_key
from evomerge.storage.derived_cache import DerivedCache, is_entry
from evomerge.storage.run_store import RunFolder

# Keys of an entry's key.json under which digests of models stand.
_MODEL_KEYS = ("base", "expert", "experts", "sources")
_PID = re.compile(r"(?:\.partial-|\.creating-|\.)(\d+)(?:\.tmp)?$")


@dataclass(frozen=True)
class Item:
    """One file or folder that can be made again.

    Attributes:
        path: Where it is.
        why: What it is, for people.
        n_bytes: How much it takes.
        cache: The cache that it is an entry of, if it is one.
    """

    path: Path
    why: str
    n_bytes: int
    cache: Path | None = None


@dataclass(frozen=True)
class Collected:
    """What was found, or deleted.

    Attributes:
        items: Found, or with `delete` those that are gone now.
        kept: With `delete`, those that a process uses or that cannot be removed.
    """

    items: tuple[Item, ...]
    kept: tuple[Item, ...] = ()


def collect(runs: Sequence[RunFolder], caches: Sequence[Path], *, delete: bool) -> Collected:
    """Find, and with `delete` remove, what can be made again.

    Of runs: temporary files, results parked for a turn that came, and exports that were never
    finished. Of caches: entries of other models than those of `runs`; without runs all entries.

    Args:
        runs: Their journals, scores, configs and exports stay.
        caches: Cache folders.
        delete: Remove it.

    Raises:
        RunLockedError: A driver is writing one of the runs.
        RunError: Neither runs nor caches are given.
        SourceError: The models of a run cannot be opened, so what it uses is not known.
    """
    for run in runs:
        if run.is_driven():
            raise RunLockedError(f"{run.where}: a search is running here; stop it first")
    used = _used_digests(runs) if caches else frozenset()
    found = [item for cache in caches for item in _unused_entries(cache, used)]
    if not delete:
        return Collected((*(item for run in runs for item in _leftovers(run)), *found))
    gone: list[Item] = []
    kept: list[Item] = []
    for run in runs:
        lease = run.take_lease()  # no search may begin in between
        try:
            for item in _leftovers(run):
                (gone if _remove(item.path) else kept).append(item)
        finally:
            lease.release()
    for item in found:
        assert item.cache is not None
        (gone if DerivedCache(item.cache).remove(item.path) else kept).append(item)
    return Collected(tuple(gone), tuple(kept))


def _leftovers(run: RunFolder) -> Iterator[Item]:
    """Yield what of one run is left over from processes that are gone."""
    for place in (run.path, run.arrived):
        for path in sorted(place.glob(".*.tmp")):
            yield _item(path, "temporary file")
    for path in sorted(run.path.parent.glob(f".{run.path.name}.creating-*")):
        if not _is_alive(path):
            yield _item(path, "run folder that was never finished")
    for path in sorted(run.exports.glob("*.partial-*")):
        if not _is_alive(path):
            yield _item(path, "export that was never finished")
    events = run.read_events() if any(run.arrived.glob("*.json")) else []
    told = {int(event["id"]) for event in events if event["kind"] == "told"}
    for path in sorted(run.arrived.glob("*.json")):
        if path.stem.isdigit() and int(path.stem) in told:
            yield _item(path, "parked result that is in the journal")


def _is_alive(path: Path) -> bool:
    """Return whether the process whose number is in a name runs here."""
    found = _PID.search(path.name)
    return found is not None and Path("/proc", found[1]).exists()


def _used_digests(runs: Sequence[RunFolder]) -> frozenset[str]:
    """Return every digest under which the cache may keep something of the runs' models."""
    used: set[str] = set()
    for run in runs:
        models = open_models(read_run_config(run), known=read_sources(run), check=False)
        used |= {str(record["digest"]) for record in models.record}
        sources = [*models.sources.values()]
        for group in models.virtual:
            sources += [group.run.base, *group.run.experts, *group.sources]
        used |= {digest for item in sources for digest in (item.digest, content_key(item))}
    return frozenset(used)


def _unused_entries(cache: Path, used: frozenset[str]) -> Iterator[Item]:
    for folder in sorted(cache.glob("*/*")):
        if is_entry(folder) and not _models_of(folder) <= used:
            yield _item(folder, f"cache: {folder.parent.name}", cache)


def _models_of(folder: Path) -> set[str]:
    """Return the digests of the models that an entry is of; a torn one is of none that is used."""
    try:
        body = json.loads((folder / "key.json").read_bytes())
        values = [body[key] for key in _MODEL_KEYS if key in body]
    except (OSError, ValueError, TypeError):
        return {"unknown"}
    flat = {str(v) for value in values for v in (value if isinstance(value, list) else [value])}
    return flat or {"unknown"}


def _item(path: Path, why: str, cache: Path | None = None) -> Item:
    return Item(path, why, _n_bytes(path), cache)


def _n_bytes(path: Path) -> int:
    """Return the size of a file or of all files below a folder; what vanishes counts as 0."""
    files = [path] if not path.is_dir() else [p for p in path.rglob("*") if not p.is_dir()]
    total = 0
    for file in files:
        try:
            total += os.lstat(file).st_size
        except FileNotFoundError:
            continue
    return total


def _remove(path: Path) -> bool:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def sort_paths(paths: Sequence[Path], runs: Sequence[RunFolder | None]) -> list[Path]:
    """Return the paths that are caches: those without a run at their place.

    Raises:
        RunError: A path is neither; names it.
    """
    caches = [path for path, run in zip(paths, runs, strict=True) if run is None]
    for path in caches:
        entries = [folder for folder in path.glob("*/*") if is_entry(folder)]
        if not path.is_dir() or (any(path.iterdir()) and not entries):
            raise RunError(f"{path}: is neither a run folder nor a cache of evomerge")
    return caches
