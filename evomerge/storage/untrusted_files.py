"""Opening small files of a model folder that somebody else wrote.

Nothing outside the folder is followed, nothing too large is parsed, and JSON that two
parsers could read differently (duplicate keys, NaN) is refused.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from evomerge.errors import SourceError

MAX_CONFIG_BYTES = 1_000_000


def contained_file(folder: Path, name: str) -> Path:
    """Return the real path of the regular file `name` in `folder`.

    Symbolic links are followed only inside the folder, or, for a Hugging Face cache
    snapshot (`models--*/snapshots/*`), into the `blobs` of the same repository.

    Raises:
        SourceError: The file is missing, is not a regular file or lies elsewhere.
    """
    root = folder.resolve()
    try:
        target = (root / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SourceError(
            f"{folder / name}: cannot be opened ({error}). Download the model again."
        ) from None
    if not any(target.is_relative_to(place) for place in (root, *_hub_blobs(root))):
        raise SourceError(
            f"{folder / name}: is a link to {target}, outside the model folder. "
            "Copy that file into the folder if you trust it."
        )
    if not stat.S_ISREG(target.stat().st_mode):
        raise SourceError(
            f"{folder / name}: is not a regular file. Replace it with the file it stands for."
        )
    return target


def _hub_blobs(root: Path) -> tuple[Path, ...]:
    """Return the blob folder next to a hub-cache snapshot, or nothing."""
    snapshots = root.parent
    repository = snapshots.parent
    if snapshots.name == "snapshots" and repository.name.startswith("models--"):
        return (repository / "blobs",)
    return ()


def open_regular(path: Path, *, shown_as: Path | None = None) -> BinaryIO:
    """Return `path` opened for reading; links, folders, pipes and devices are refused.

    Args:
        path: A regular file; resolve links first.
        shown_as: The path to name in errors, when `path` is a resolved one.

    Raises:
        SourceError: `path` is missing, unreadable or not a regular file.
    """
    # O_NONBLOCK: opening a pipe would otherwise wait for a writer for ever.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        reason = "not a regular file"
    except OSError as error:
        reason = error.strerror or str(error)
    raise SourceError(
        f"{shown_as or path}: cannot be read ({reason}). Give the path of a regular file."
    )


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the JSON object stored in `path`.

    Raises:
        SourceError: The file is unreadable, larger than `max_bytes`, or not one JSON object
            with distinct keys.
    """
    with open_regular(path.resolve(), shown_as=path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise SourceError(
            f"{path}: is larger than {max_bytes:,} bytes, too large for such a file. "
            "Check that it belongs to the model."
        )
    return parse_json_object(data, where=str(path))


def parse_json_object(data: bytes, *, where: str) -> dict[str, Any]:
    """Return `data` parsed as one JSON object.

    Args:
        data: UTF-8 text.
        where: File, and part of it, for the error message.

    Raises:
        SourceError: Not valid JSON, not an object, a key is repeated, or a number is NaN.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_distinct_keys, parse_constant=_no_constant
        )
    except RecursionError:
        raise SourceError(f"{where}: JSON is nested too deeply. Download the file again.") from None
    except ValueError as error:
        raise SourceError(f"{where}: not valid JSON ({error}). Download the file again.") from None
    if not isinstance(value, dict):
        raise SourceError(
            f"{where}: expected a JSON object, found {type(value).__name__}. "
            "Download the file again."
        )
    return value


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {repeated!r:.100} appears twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
