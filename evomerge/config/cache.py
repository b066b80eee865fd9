"""Which cache a config means."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from evomerge.core.model_space import ModelSpace
from evomerge.errors import PreflightError
from evomerge.merging.derived import RANK_CODES
from evomerge.storage.derived_cache import DerivedCache, default_cache_root
from evomerge.storage.named_path import named_path

# A search takes at most this part of the disk's free space for rank codes, which are half as
# large as the models; `evomerge prepare` takes what it needs.
_SHARE_OF_FREE = 0.1


def open_cache(folder: str | None, budget_bytes: int | None = None) -> DerivedCache:
    """Return the cache in `folder` (`runtime.cache`), None for the user's; nothing is created.

    Raises:
        ConfigError: The budget is not positive.
    """
    root = default_cache_root() if folder is None else named_path(folder)
    return DerivedCache(root, budget_bytes=budget_bytes)


def usable_cache(folder: str | None) -> DerivedCache | None:
    """Return the cache for a search; None where nobody named one and there is no place for it.

    A search without a cache is slower and otherwise the same, so it need not fail in a home
    folder that cannot be written. A cache that was named and cannot be written is an error.
    """
    cache = open_cache(folder)
    is_named = folder is not None or bool(os.environ.get("EVOMERGE_CACHE"))
    place = _nearest_folder(cache.root)
    return cache if is_named or os.access(place, os.W_OK | os.X_OK) else None


def refuse_unusable_cache(folder: str | None) -> None:
    """Check that a cache somebody named can be written, before anything is computed.

    Raises:
        PreflightError: It cannot, or it is no folder.
    """
    cache = usable_cache(folder)
    if cache is None:
        return
    root = cache.root.absolute()
    place = _nearest_folder(root)
    blocked = next((path for path in (root, *root.parents) if path.is_file()), None)
    if blocked is not None or not os.access(place, os.W_OK | os.X_OK):
        reason = f"{blocked} is a file" if blocked is not None else f"{place} cannot be written"
        raise PreflightError(
            f"{root}: cannot be the cache: {reason}. Name another folder with `runtime.cache` or "
            "EVOMERGE_CACHE"
        )


def too_large_for_a_search(cache: DerivedCache, space: ModelSpace) -> tuple[str, ...]:
    """Return the kinds that a search should not compute unasked, only use."""
    n_bytes = 2 * space.n_elements * (len(space.sources) - 1)
    free = shutil.disk_usage(_nearest_folder(cache.root)).free
    return (RANK_CODES,) if n_bytes > _SHARE_OF_FREE * free else ()


def _nearest_folder(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())
