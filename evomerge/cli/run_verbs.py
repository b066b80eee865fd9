"""How verbs about runs are called: `compare`, `replay`, `gc`, `validate`, `watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import JsonOption, RunArgument


def compare(
    run: RunArgument,
    other: Annotated[Path, typer.Argument(metavar="RUN", help="Another run on the same tasks.")],
    json_: JsonOption = False,
) -> None:
    """Put two runs on the same examples side by side: best, knee, hypervolume over cost.

    Exit codes: 0 compared, 3 a run cannot be read or was scored on other examples.

    Example: evomerge compare populations/nsga2 populations/cma
    """
    from evomerge.cli.compare import compare_command

    compare_command(run, other, as_json=json_)


def replay(
    run: RunArgument,
    candidate: Annotated[
        int, typer.Option("--candidate", metavar="ID", min=0, help="Which one to do again.")
    ],
    json_: JsonOption = False,
) -> None:
    """Merge and score a candidate again and compare weights and scores with the journal.

    Exit codes: 0 all equal, 2 no such scored candidate, 3 something differs or cannot be read.

    Example: evomerge replay populations/digits --candidate 17
    """
    from evomerge.cli.replay import replay_command

    raise typer.Exit(replay_command(run, candidate, as_json=json_))


def gc(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|CACHE", help="Runs to tidy; caches, less what RUNs use."),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list.")] = False,
    json_: JsonOption = False,
) -> None:
    """List, or with --yes delete, what can be made again; never journals, scores or exports.

    Exit codes: 0 done, 3 a search is running there, or a path is neither run nor cache.

    Example: evomerge gc ~/.cache/evomerge populations/digits --yes
    """
    from evomerge.cli.gc import gc_command

    gc_command(paths, delete=yes, as_json=json_)


def validate(run: RunArgument, json_: JsonOption = False) -> None:
    """Score front, best parents and mean on the validation examples; `export` then picks by them.

    Exit codes: 0 done, 2 the tasks have no validation examples, 3 a candidate cannot be scored.

    Example: evomerge validate populations/digits
    """
    from evomerge.cli.validate import validate_command

    validate_command(run, as_json=json_)


def watch(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Runs, or folders of runs; default: populations/."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Follow runs on a screen of the terminal, drain or stop them; --json prints one look at them.

    Keys: tab another run, ← → log, workers, failures, o objectives, d drain, s stop now, q quit.

    Exit codes: 0 done, 2 no terminal, 3 nothing to watch, or the extra `watch` is not installed.

    Example: evomerge watch populations/digits
    """
    from evomerge.cli.watch import watch_command

    watch_command(runs or [], as_json=json_)
