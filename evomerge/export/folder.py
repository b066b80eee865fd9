"""A folder that appears complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, PreflightError, RunError
from evomerge.storage.atomic import sync_folder

_SPARE_BYTES = 64 << 20  # tokenizer, card and file system overhead


@contextmanager
def new_folder(out: Path, n_bytes: int) -> Iterator[Path]:
    """Yield a folder beside `out` to write into; it becomes `out` when the block is done.

    Args:
        out: New or empty folder.
        n_bytes: What will be written, for the check of free space.

    Raises:
        ConfigError: `out` holds something.
        PreflightError: The disk is too small.
        RunError: The folder cannot be written.
    """
    out = out if out.name else out.absolute()  # "." has no name to write beside
    check_vacant(out)
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_space(out.parent, n_bytes)
        if partial.exists():
            shutil.rmtree(partial)  # a process with this id died here
        yield partial
        for path in partial.iterdir():
            _sync(path)
        sync_folder(partial)
        check_vacant(out)
        partial.replace(out)
        sync_folder(out.parent)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_vacant(out: Path) -> None:
    """Raise ConfigError if `out` is there and not an empty folder."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ConfigError(
            f"{out}: already exists and is not an empty folder. Choose another output folder, "
            "or delete this one."
        )


def write_json(path: Path, body: Mapping[str, Any]) -> None:
    """Write a JSON object, indented."""
    text = json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _check_space(parent: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(parent).free
    if n_bytes + _SPARE_BYTES > free:
        raise PreflightError(
            f"{parent}: the model needs {n_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. "
            "Free some space, or export elsewhere."
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
