"""`evomerge init`: a config from options, questions, or another tool's config."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import typer

from evomerge.cli.output import say
from evomerge.config.migrate_mergekit import migrate_mergekit_evolve
from evomerge.config.migrate_mergenetic import migrate_mergenetic
from evomerge.config.starter import Answers, starter, task_sections
from evomerge.errors import ConfigError, RunError
from evomerge.storage.atomic import write_atomically

__all__ = ["Answers", "init_command"]

_PRINT = "-"
Ask = Callable[[str], str]


def init_command(
    answers: Answers,
    out: str,
    *,
    from_mergekit_evolve: Path | None,
    from_mergenetic: Path | None,
    n_layers: int | None,
    as_json: bool,
) -> None:
    """Write a config.

    Args:
        answers: What the options say.
        out: File to write, "-" for standard output.
        from_mergekit_evolve: Config to convert, or
        from_mergenetic: config to convert.
        n_layers: Of the models of a config that is converted.
        as_json: Say in JSON what was written.

    Raises:
        ConfigError: Options are missing, wrong or contradict each other, or `out` exists.
        RunError: The file cannot be written.
    """
    converted = from_mergekit_evolve or from_mergenetic
    if from_mergekit_evolve is not None and from_mergenetic is not None:
        raise ConfigError("--from-mergekit-evolve and --from-mergenetic: give one of them")
    if n_layers is not None and from_mergekit_evolve is None:
        raise ConfigError("--layers belongs to --from-mergekit-evolve")
    if out == _PRINT and as_json:
        raise ConfigError("--json says what was written, and --out - writes nothing")
    if out != _PRINT and Path(out).exists():
        raise ConfigError(f"{out}: exists already; give another --out")
    folder = Path() if out == _PRINT else Path(out).parent
    remarks: tuple[str, ...] = ()
    if converted is None:
        if sys.stdin.isatty():
            answers = asked(
                answers,
                lambda text: str(typer.prompt(text, default="", show_default=False, err=True)),
            )
        text = starter(answers, folder, "search" if out == _PRINT else Path(out).stem)
    else:
        text, remarks = _convert(answers, from_mergekit_evolve, from_mergenetic, n_layers, folder)
    if out == _PRINT:
        print(text, end="")
    else:
        _write(Path(out), text)
        print(json.dumps({"file": out, "remarks": remarks}) if as_json else f"config -> {out}")
    for remark in () if as_json else remarks:
        say(f"! {remark}")
    if out != _PRINT and not as_json:
        say(f"next: evomerge check {shlex.quote(out)}", to=sys.stdout)


def asked(answers: Answers, ask: Ask) -> Answers:
    """Return the answers with what is missing asked for.

    Args:
        answers: Models and tasks are asked for where there are none.
        ask: Question -> what was typed, "" for nothing.
    """
    if not answers.models:
        if answers.base is None:
            answers = replace(
                answers, base=ask("Base model (folder or Hub id, may be empty)") or None
            )
        typed = ask("Fine-tuned models, separated by spaces").split()
        answers = replace(answers, models=tuple(typed))
    if not answers.tasks:
        typed = ask("Tasks: JSONL files or names of lm-eval tasks, separated by spaces").split()
        answers = replace(answers, tasks=tuple(typed))
        if answers.evaluations is None:
            budget = ask("Evaluations (empty: 200)").strip()
            if budget and not (budget.isascii() and budget.isdigit() and int(budget) > 0):
                raise ConfigError(f"{budget!r} is no number of evaluations")
            answers = replace(answers, evaluations=int(budget) if budget else None)
    return answers


def _convert(
    answers: Answers,
    mergekit_evolve: Path | None,
    mergenetic: Path | None,
    n_layers: int | None,
    folder: Path,
) -> tuple[str, tuple[str, ...]]:
    """Return the text of the converted config and what was not carried over."""
    given = {
        "--base": answers.base,
        "--model": answers.models,
        "--merge": answers.merge,
        "--algorithm": answers.algorithm,
        "--include-path": None if mergenetic is None else answers.include_path,
        "--task": () if mergenetic is not None else answers.tasks,
        "--evaluator": None if mergenetic is not None and answers.tasks else answers.evaluator,
    }
    extra = [option for option, value in given.items() if value]
    if extra:
        raise ConfigError(
            f"{', '.join(extra)}: come from the file that is converted; edit the result"
        )
    if mergenetic is not None:
        found = migrate_mergenetic(
            mergenetic,
            folder,
            name=answers.name or mergenetic.stem,
            tasks=task_sections(answers, folder),
            evaluations=answers.evaluations,
        )
        return found.text(folder, "mergenetic"), found.all_remarks
    assert mergekit_evolve is not None
    found = migrate_mergekit_evolve(
        mergekit_evolve,
        folder,
        name=answers.name or mergekit_evolve.stem,
        n_layers=n_layers,
        evaluations=answers.evaluations,
        include_path=answers.include_path,
    )
    return found.text(folder, "mergekit-evolve"), found.all_remarks


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or error}") from None
