"""A function of your own as an evaluator."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError, EvaluationError, EvomergeError, nearest
from evomerge.evaluation.evaluator import evaluator
from evomerge.evaluation.examples import check_settings, checked_scores, chosen, content_digest
from evomerge.evaluation.resident import AUTO_CLASSES
from evomerge.evaluation.subject import Subject


@evaluator("python")
@dataclass(frozen=True, kw_only=True)
class PythonFunction:
    """Scores from `function(subject, **arguments)`, which returns n numbers.

    The function runs in the worker with the worker's rights: only name code you trust. It
    must be deterministic and leave the model's weights as they are.

    A function with a parameter `positions` is also given the (m,) int64 examples to score and
    returns m numbers. Any other function scores all n, of which the wanted ones are kept: where
    a search asks for parts of the examples, that costs as much as all of them.

    Attributes:
        function: "module:function".
        n: Number of scores it returns.
        path: Folder the module lies in, when it is not installed.
        arguments: Keyword arguments.
        auto_class: The transformers Auto class of the model it expects.
    """

    function: str
    n: int
    path: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    auto_class: str = "AutoModelForCausalLM"

    def __post_init__(self) -> None:
        check_settings(
            "python",
            rows=None,
            positive={"n": self.n},
            choices={"auto_class": (self.auto_class, AUTO_CLASSES)},
        )
        if "positions" in self.arguments:
            raise ConfigError(
                "python: `positions` among the arguments; the search gives it, rename your own."
            )
        module, colon, name = self.function.partition(":")
        if not (colon and module and name.isidentifier()):
            raise ConfigError(f'python: function is {self.function!r}, expected "module:function".')

    def code_files(self) -> tuple[Path, ...]:
        """Return the module's file if it lies in `path`; a changed one cannot be replayed."""
        if self.path is None:
            return ()
        stem = self.path.joinpath(*self.function.partition(":")[0].split("."))
        found = (stem.with_suffix(".py"), stem / "__init__.py")
        return tuple(file for file in found if file.is_file())

    def n_examples(self) -> int:
        """Return N after importing the function; ConfigError when that fails."""
        self._load()
        return self.n

    def example_digests(self) -> tuple[str, ...]:
        """Return (N,) digests of the function, its arguments, its code and the position.

        What the function reads is not known here: data files it opens are not part of it.
        """
        code = [hashlib.sha256(file.read_bytes()).hexdigest() for file in self.code_files()]
        arguments = json.dumps(dict(self.arguments), sort_keys=True, default=repr)
        return tuple(content_digest([self.function, arguments, code, i]) for i in range(self.n))

    def evaluate(self, subject: Subject, positions: IntArray | None = None) -> ScoreArray:
        """Return (n,) float32, what the function returned, in the order of `positions`.

        Raises:
            EvaluationError: The function raised, or returned another number of scores, or
                one that is not finite.
            ImportError: The function imports what is not installed.
        """
        function = self._load()
        wanted = chosen(self.n, positions)
        takes_positions = "positions" in inspect.signature(function).parameters
        arguments = {**self.arguments, **({"positions": wanted} if takes_positions else {})}
        n = len(wanted) if takes_positions else self.n
        subject.require(self.auto_class, initialised=False)
        try:
            with torch.inference_mode():
                scores = [float(score) for score in function(subject, **arguments)]
        except EvomergeError:
            raise
        except (ImportError, MemoryError, torch.OutOfMemoryError):
            raise  # no fault of the candidate: the worker ends the run, or tries it again
        except Exception as error:
            raise EvaluationError(
                f"{subject.name}: {self.function} failed: {type(error).__name__}: {error}"
            ) from error
        if len(scores) != n:
            raise EvaluationError(
                f"{subject.name}: {self.function} returned {len(scores)} scores, expected n={n}"
            )
        found = checked_scores(scores, n=n, subject=subject.name, path=self.function)
        return found if takes_positions else found[wanted]

    def _load(self) -> Callable[..., Any]:
        module_name, _, name = self.function.partition(":")
        with _folder_on_path(self.path):
            try:
                module = importlib.import_module(module_name)
            except Exception as error:  # a module's own code can raise anything
                where = f" in {self.path}" if self.path else ""
                raise ConfigError(
                    f"python: cannot import {module_name!r}{where}: {type(error).__name__}: "
                    f"{error}. Set `path:` to the folder the module lies in."
                ) from error
        file = getattr(module, "__file__", None)
        if self.path is not None and file is not None:
            folder = Path(self.path).resolve()
            beside = folder.joinpath(*module_name.split("."))
            here = beside.with_suffix(".py").exists() or beside.is_dir()
            if here and folder not in Path(file).resolve().parents:
                raise ConfigError(
                    f"python: {module_name!r} is already imported from {file}, not from {folder}; "
                    "rename your module."
                )
        function: Callable[..., Any] | None = getattr(module, name, None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if callable(value)]
            raise ConfigError(
                f"python: {module_name!r} has no function {name!r}.{nearest(name, known)}"
            )
        return function


@contextmanager
def _folder_on_path(folder: Path | None) -> Iterator[None]:
    """Put `folder` on sys.path for the duration of an import."""
    if folder is None:
        yield
        return
    if not Path(folder).is_dir():
        raise ConfigError(f"python: path {folder} is not a folder.")
    entry = str(Path(folder).resolve())
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(entry)
