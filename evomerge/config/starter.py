"""A first config, from what a user says of models and tasks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from evomerge.config.config_text import config_text
from evomerge.config.offline import check_offline
from evomerge.config.schema import parse_config
from evomerge.config.yaml_file import parse_mapping
from evomerge.errors import ConfigError
from evomerge.storage.named_path import named_path

EVALUATIONS = 200
FRONT_SHARE = 0.25  # of auto's proposals, where there are several tasks
_SEARCHED = 200  # examples of a task that the search sees, where there are twice as many
# Keys of an example -> the evaluator that reads them; the first that fits counts.
_BY_KEYS = (
    ({"prompt", "options", "gold"}, "multiple_choice"),
    ({"prompt", "tests"}, "code_execution"),
    ({"prompt", "answer"}, "exact_match"),
    ({"text", "label"}, "classification"),
    ({"first", "second"}, "embedding_similarity"),
    ({"text"}, "perplexity"),
)


@dataclass(frozen=True)
class Answers:
    """What the user said; None and () where nothing.

    Attributes:
        base: Base model: a path from the current folder, or a Hub id.
        models: The fine-tunes, likewise.
        tasks: JSONL files of examples, from the current folder, or names of lm-eval tasks.
        evaluator: Of all files.
        merge: Merge method.
        algorithm: Search algorithm.
        evaluations: Budget.
        name: Of the run.
        include_path: Folder with lm-eval task files, from the current folder.
    """

    base: str | None = None
    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    evaluator: str | None = None
    merge: str | None = None
    algorithm: str | None = None
    evaluations: int | None = None
    name: str | None = None
    include_path: str | None = None


def starter(answers: Answers, folder: Path, name: str) -> str:
    """Return the text of a config.

    Args:
        answers: Models and tasks are needed.
        folder: Where the config will lie: its relative paths start there.
        name: Of the run, where `answers` has none.

    Raises:
        ConfigError: Something is missing or unknown.
        DataError: Examples cannot be read.
    """
    if len(answers.models) < (1 if answers.base else 2):
        raise ConfigError("init: give --model twice or more, or once with --base")
    if not answers.tasks:
        raise ConfigError("init: give at least one --task, a JSONL file or an lm-eval task")
    method = answers.merge or ("task_arithmetic" if answers.base else "linear")
    tasks = task_sections(answers, folder)
    algorithm: dict[str, Any] = {"name": answers.algorithm or "auto"}
    if algorithm["name"] == "auto" and len(tasks) > 1:
        algorithm["front_share"] = FRONT_SHARE
    body: dict[str, Any] = {"version": 1, "name": run_name(answers.name or name), "seed": 0}
    if answers.base:
        body["base_model"] = placed(answers.base, folder)
    body |= {
        "models": [{"model": placed(model, folder)} for model in answers.models],
        "merge": {"name": method} | ({} if algorithm["name"] == "auto" else {"groups": "block:4"}),
        "algorithm": algorithm,
        "tasks": tasks,
        "budget": {"evaluations": answers.evaluations or EVALUATIONS},
        "runtime": {"executor": "in-process", "device": "auto"},
    }
    notes = {
        "base_model": ["What the models were tuned from: a folder (from this file's) or a Hub id."],
        "models": ["The fine-tunes; `name:` is what recipes call one, `lora:` an adapter on it."],
        "merge": [
            "The method. `groups:` says what shares its parameters: global, block:N (of the "
            "layers), layer, kind, module or chunk:N; auto chooses where it is left out. "
            "Parameters: fixed (0.5), searched (search, or [0.2, 1.0])."
        ],
        "algorithm": [
            "auto needs the fewest evaluations; with several tasks a `front_share` of them goes "
            "into the front."
        ],
        "tasks": [
            "What merges are scored on, 200 examples or more each. `held_out` is never seen by "
            "the search; exports and reports score it."
        ],
        "budget": ["`seconds:` stops earlier; either may be raised when a run is resumed."],
        "runtime": ["`executor: ray` with `workers: N` uses many devices."],
    }
    head = ["Next: evomerge check, evomerge plan, evomerge search, each with this file."]
    text = config_text(body, head, notes)
    check_text(text, folder)
    return text


def check_text(text: str, folder: Path) -> None:
    """Raise ConfigError unless a config that was written is right, models and data apart."""
    check_offline(parse_config(parse_mapping(text, "init"), "init"), folder.absolute())


def task_sections(answers: Answers, folder: Path) -> list[dict[str, Any]]:
    """Return the `tasks:` section.

    Raises:
        ConfigError: Nothing says how a file is scored.
    """
    sections = [_task(task, answers, folder) for task in answers.tasks]
    names = unique([section["name"] for section in sections])
    return [{**body, "name": name} for body, name in zip(sections, names, strict=True)]


def placed(reference: str, folder: Path) -> str:
    """Return a model or file, given from the current folder, as a config in `folder` names it."""
    path = named_path(reference)
    is_local = path.exists() or reference.startswith((".", "/", "~"))
    if not is_local or path.is_absolute():
        return str(path) if is_local else reference
    relative = os.path.relpath(path, folder)
    return relative if relative.startswith("..") else f"./{relative}"


def run_name(text: str) -> str:
    """Return a text as the name of a run."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip(".") or "search"


def unique(names: Sequence[str]) -> list[str]:
    """Return names fit for tasks, repeated ones numbered."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name) or "task"
        fresh, number = plain, 2
        while fresh in found:
            fresh, number = f"{plain}-{number}", number + 1
        found.append(fresh)
    return found


def _task(task: str, answers: Answers, folder: Path) -> dict[str, Any]:
    path = named_path(task)
    if not path.is_file():
        if path.suffix in (".jsonl", ".json", ".csv", ".txt") or "/" in task:
            raise ConfigError(f"--task {task}: there is no such file")
        body = {"name": answers.evaluator or "lm_eval", "task": task, "limit": _SEARCHED}
        if answers.include_path is not None:
            body["include_path"] = placed(answers.include_path, folder)
        return {"name": task, "evaluator": body}
    name = answers.evaluator or _evaluator_of(path)
    n_rows = sum(1 for _ in _lines(path))
    searched = min(_SEARCHED, n_rows // 2)
    body = {"name": name, "examples": placed(task, folder)}
    if searched < 1:
        return {"name": path.stem, "evaluator": body}
    return {
        "name": path.stem,
        "evaluator": body | {"rows": [0, searched]},
        "held_out": {"rows": [searched, n_rows]},
    }


def _evaluator_of(path: Path) -> str:
    """Return the evaluator that the keys of the first example suggest."""
    first = next(islice(_lines(path), 1), "")
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    keys = set(row) if isinstance(row, dict) else set()
    for wanted, name in _BY_KEYS:
        if wanted <= keys:
            return name
    known = "; ".join(f"{name}: {', '.join(sorted(wanted))}" for wanted, name in _BY_KEYS)
    raise ConfigError(
        f"--task {path}: its first line suggests no evaluator. Give --evaluator, or JSON objects "
        f"with the keys of one ({known})."
    )


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that are not blank."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.strip())
    except OSError as error:
        raise ConfigError(f"--task {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"--task {path}: is not UTF-8 text; `init` reads JSON lines. Write other tasks "
            "into the config by hand (docs/methods.md lists the evaluators)."
        ) from None
