"""`evomerge gc`: delete what can be made again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.cli.output import say
from evomerge.config.collect import Item, collect, sort_paths
from evomerge.config.locate import POPULATIONS, run_at
from evomerge.core.amounts import size
from evomerge.storage.run_store import RunFolder


def gc_command(paths: Sequence[Path], *, delete: bool, as_json: bool) -> None:
    """List or delete what can be made again of runs and caches.

    Raises:
        RunLockedError: A driver is writing one of the runs; nothing is deleted.
        RunError: A path is neither run nor cache.
    """
    runs = [_run_at(path) for path in paths]
    caches = sort_paths(paths, runs)
    found = collect([run for run in runs if run is not None], caches, delete=delete)
    total = sum(item.n_bytes for item in found.items)
    if as_json:
        body = {
            "deleted": delete,
            "bytes": total,
            "items": [_facts(item) for item in found.items],
            "kept": [_facts(item) for item in found.kept],
        }
        print(json.dumps(body))
        return
    for item in found.items:
        print(f"{size(item.n_bytes):>12}  {item.path}  ({item.why})")
    if delete:
        print(f"deleted {len(found.items)}, {size(total)}")
    else:
        hint = "; --yes deletes them" if found.items else ""
        print(f"{len(found.items)} can be made again, {size(total)}{hint}")
    for item in found.kept:
        say(f"kept, in use or not removable: {item.path}")


def _run_at(path: Path) -> RunFolder | None:
    places = (run_at(place) for place in (path, POPULATIONS / path))
    return next((run for run in places if run.exists()), None)


def _facts(item: Item) -> dict[str, Any]:
    return {"path": str(item.path), "why": item.why, "bytes": item.n_bytes}
