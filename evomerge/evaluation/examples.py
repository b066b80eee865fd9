"""Calibration data: JSONL rows and npz arrays, read once, never written to.

Every complaint names the file, the line, the key and what to do about it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError, DataError, EvaluationError, nearest


@dataclass(frozen=True, eq=False)
class Row:
    """One JSON object of a JSONL file, with the place it came from."""

    path: Path
    line: int
    values: Mapping[str, Any]

    def text(self, key: str) -> str:
        """Return the string under `key`; an empty one is an error."""
        value = self._value(key)
        if not isinstance(value, str):
            self.fail(f"{key!r} is {_kind(value)}, expected a string", f"put {key!r} in quotes")
        if not value:
            self.fail(f"{key!r} is empty", "remove the row, or fill it in")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the list of at least two non-empty strings under `key`."""
        value = self._value(key)
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            self.fail(f"{key!r} is {_kind(value)}, expected a list of strings", 'write ["…", "…"]')
        if len(value) < 2 or not all(value):
            self.fail(f"{key!r} needs at least two strings, none of them empty", "fill it in")
        return value

    def label(self, key: str, labels: Sequence[str] | None) -> int:
        """Return the class index under `key`; names are looked up in `labels`."""
        value = self._value(key)
        if isinstance(value, str):
            if labels is None:
                self.fail(
                    f"{key!r} is the string {value!r}, expected an integer class index",
                    "list the class names under `labels:`, in the order of the model's outputs",
                )
            if value not in labels:
                self.fail(
                    f"{key!r} is {value!r}, which is not in `labels`.{nearest(value, labels)}",
                    "add it to `labels:`, or correct the row",
                )
            return list(labels).index(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{key!r} is {_kind(value)}, expected an integer class index", "correct it")
        if value < 0 or (labels is not None and value >= len(labels)):
            top = f"0 to {len(labels) - 1}" if labels is not None else "0 or more"
            self.fail(f"{key!r} is {value}, expected {top}", "correct the row")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """Return the number in [low, high] under `key`."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{key!r} is {_kind(value)}, expected a number", "correct it")
        if not low <= value <= high:  # NaN as well
            self.fail(f"{key!r} is {value}, expected {low} to {high}", "correct it, or the range")
        return float(value)

    def index(self, key: str, size: int) -> int:
        """Return the integer in [0, size) under `key`."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            self.fail(
                f"{key!r} is {value!r}, expected an integer from 0 to {size - 1}", "correct it"
            )
        return value

    def digest(self, *keys: str, beside: Sequence[Any] = ()) -> str:
        """Return 16 hex digits that stand for the values under `keys`; missing ones are null.

        Args:
            keys: Keys of the row that a score depends on.
            beside: JSON values outside the row that belong to the example as well.
        """
        content = {key: self.values.get(key) for key in keys}
        return content_digest([content, *beside])

    def fail(self, problem: str, remedy: str) -> NoReturn:
        """Raise the DataError for this row."""
        raise DataError(f"{self.path}:{self.line}: {problem}; {remedy}.")

    def _value(self, key: str) -> Any:
        if key not in self.values:
            self.fail(
                f"key {key!r} is missing (the row has {', '.join(self.values) or 'no keys'})",
                f"every row needs {key!r}",
            )
        return self.values[key]


def read_rows(path: Path, rows: tuple[int, int] | None = None) -> tuple[Row, ...]:
    """Return the rows of a JSONL file, blank lines left out.

    Args:
        path: One JSON object a line, UTF-8.
        rows: Half-open range [start, stop) to keep, counted from 0; None for all.

    Raises:
        DataError: The file is missing, empty, not UTF-8, has a line that is not a JSON
            object, two rows with the same `id`, or fewer rows than asked for.
    """
    kept: tuple[Row, ...] = cut(_read_rows(path, stamp(path)), rows, path)
    return kept


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        DataError: The file is missing, empty or not UTF-8.
    """
    return _read_text(path, stamp(path))


def read_arrays(
    path: Path, names: Sequence[str], rows: tuple[int, int] | None = None
) -> dict[str, NDArray[Any]]:
    """Return the named arrays of an npz file as read-only views, cut to `rows`.

    Args:
        path: A file of `numpy.savez`; pickled objects are refused.
        names: Arrays it must have, all of the same length.
        rows: Half-open range [start, stop) of the first axis; None for all.

    Raises:
        DataError: The file is missing or broken, an array is missing, or lengths differ.
    """
    arrays = _read_arrays(path, stamp(path))
    for name in names:
        if name not in arrays:
            raise DataError(
                f"{path}: array {name!r} is missing (the file has {', '.join(arrays) or 'none'}); "
                f"save it with numpy.savez(path, {', '.join(f'{n}=…' for n in names)})."
            )
        if arrays[name].ndim == 0:
            raise DataError(f"{path}: array {name!r} is a scalar; its first axis must be examples.")
    lengths = {name: len(arrays[name]) for name in names}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: arrays differ in length: {lengths}; one entry per example each.")
    if not lengths[names[0]]:
        raise DataError(f"{path}: no examples in it; give at least one.")
    return {name: cut(arrays[name], rows, path) for name in names}


def stamp(path: Path) -> tuple[int, int]:
    """Return (mtime in ns, size in bytes) of a data file, so that an edited one is read again.

    Raises:
        DataError: The file is missing or empty.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the examples ({error.strerror}); "
            "check `examples:`, paths count from the config file's folder."
        ) from error
    if not path.is_file():
        raise DataError(f"{path}: is not a file; `examples:` names one file.")
    if not stat.st_size:
        raise DataError(f"{path}: is empty; give at least one example.")
    return stat.st_mtime_ns, stat.st_size


def cut(items: Any, rows: tuple[int, int] | None, path: Path) -> Any:
    """Return items[start:stop] for `rows` = (start, stop), or all for None.

    Raises:
        DataError: The range reaches past the last example.
    """
    if rows is None:
        return items
    start, stop = rows
    if stop > len(items):
        raise DataError(
            f"{path}: `rows: [{start}, {stop}]` asks for more than the {len(items)} examples "
            f"there are; the largest range is [0, {len(items)}]."
        )
    return items[start:stop]


def content_digest(value: Any) -> str:
    """Return 16 hex digits that stand for a JSON value: equal values, equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def chosen(n: int, positions: IntArray | None) -> IntArray:
    """Return (m,) int64 positions of the examples asked for, all of them for None.

    Raises:
        IndexError: There is no such example, or `positions` is not a list of integers.
    """
    if positions is None:
        return np.arange(n)
    wanted = np.asarray(positions)
    if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
        raise IndexError(f"positions is {wanted.dtype} {wanted.shape}, expected integers (n,)")
    outside = wanted[(wanted < 0) | (wanted >= n)]
    if outside.size:
        raise IndexError(f"there is no example {outside[0]}; positions run from 0 to {n - 1}")
    return wanted.astype(np.int64)


def check_settings(
    kind: str,
    *,
    rows: tuple[int, int] | None,
    positive: Mapping[str, int | None],
    choices: Mapping[str, tuple[str, Sequence[str]]] = MappingProxyType({}),
) -> None:
    """Check the settings evaluators have in common.

    Args:
        kind: Name of the evaluator, for messages.
        rows: Half-open range of examples.
        positive: Setting -> value that must be at least 1 (None: not set).
        choices: Setting -> (value, allowed values).

    Raises:
        ConfigError: A setting is out of range, naming the nearest allowed value.
    """
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(
                f"{kind}: {key} is {value!r}.{nearest(str(value), allowed)} "
                f"Known: {', '.join(allowed)}."
            )
    for key, number in positive.items():
        if number is not None and number < 1:
            raise ConfigError(f"{kind}: {key} is {number}, expected at least 1.")
    if rows is not None and not 0 <= rows[0] < rows[1]:
        raise ConfigError(
            f"{kind}: rows is {list(rows)}, expected [start, stop] with 0 <= start < stop."
        )


def checked_scores(
    scores: Any,
    *,
    n: int,
    subject: str,
    path: Path | str,
    first: int = 0,
    positions: IntArray | None = None,
) -> ScoreArray:
    """Return `scores` as (n,) float32.

    Args:
        scores: (n,) numbers, one per example.
        n: Expected length.
        subject: Name of the model, for messages.
        path: Data file, for messages.
        first: Index in the file of the evaluator's first example, for messages.
        positions: (n,) which of the evaluator's examples were scored, for messages; None: all.

    Raises:
        EvaluationError: The shape is wrong or a score is not finite; names the first one.
    """
    array = np.asarray(scores, dtype=np.float32)
    if array.shape != (n,):
        raise EvaluationError(f"{subject}: scores on {path} are {array.shape}, expected ({n},)")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        example = first + int(bad[0] if positions is None else positions[bad[0]])
        raise EvaluationError(
            f"{subject}: {bad.size} of {n} scores on {path} are not finite, the first for example "
            f"{example} ({array[bad[0]]}); the merged weights are probably broken."
        )
    return array


@lru_cache(maxsize=64)
def _read_text(path: Path, stamp: tuple[int, int]) -> str:  # noqa: ARG001  (part of the key)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert the file.") from error


@lru_cache(maxsize=64)
def _read_rows(path: Path, stamp: tuple[int, int]) -> tuple[Row, ...]:
    rows: list[Row] = []
    # split("\n"), not splitlines(): JSON strings may hold U+2028 and its like.
    for number, line in enumerate(_read_text(path, stamp).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}); write one JSON object a line."
            ) from error
        if not isinstance(value, dict):
            raise DataError(
                f"{path}:{number}: {_kind(value)}, expected an object; write one {{…}} a line."
            )
        rows.append(Row(path, number, _frozen(value)))
    if not rows:
        raise DataError(f"{path}: has no rows; give at least one example.")
    _refuse_equal_ids(rows)
    return tuple(rows)


def _refuse_equal_ids(rows: Sequence[Row]) -> None:
    """Rows need no `id`, but two with the same one are a slip of whoever joined the data."""
    seen: dict[str, int] = {}
    for row in rows:
        if "id" not in row.values:
            continue
        name = repr(row.values["id"])
        if name in seen:
            row.fail(f"id {name} is that of line {seen[name]} as well", "remove one of the two")
        seen[name] = row.line


@lru_cache(maxsize=16)
def _read_arrays(path: Path, stamp: tuple[int, int]) -> Mapping[str, NDArray[Any]]:  # noqa: ARG001
    if not zipfile.is_zipfile(path):  # numpy would advise to unpickle it
        raise DataError(f"{path}: is not an npz file; save plain arrays with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # numpy raises zipfile, value and OS errors alike
        raise DataError(
            f"{path}: cannot be read as npz ({error}); save plain arrays with numpy.savez."
        ) from error
    for array in arrays.values():
        array.setflags(write=False)
    return MappingProxyType(arrays)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, tuple | list) else "an object")
