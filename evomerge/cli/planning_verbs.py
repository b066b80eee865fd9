"""How the verbs before a search are called: `init`, `check`, `plan`, `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import ConfigArgument, JsonOption, SetOption


def init(
    out: Annotated[
        str, typer.Option("--out", metavar="CONFIG", help="File to write; - prints it.")
    ] = "search.yaml",
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="MODEL", help="A fine-tune: folder or Hub id; repeat."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="What they were tuned from.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="FILE|NAME", help="JSONL examples, or an lm-eval task; repeat."
        ),
    ] = None,
    evaluator: Annotated[
        str | None,
        typer.Option("--evaluator", help="Of the examples; default: what their keys suggest."),
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option("--merge", metavar="METHOD", help="Default: task_arithmetic or linear."),
    ] = None,
    algorithm: Annotated[str | None, typer.Option("--algorithm", help="Default: auto.")] = None,
    evaluations: Annotated[
        int | None, typer.Option("--evaluations", min=1, help="Budget; default 200.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Default: that of the file.")] = None,
    from_mergekit_evolve: Annotated[
        Path | None,
        typer.Option("--from-mergekit-evolve", metavar="FILE", help="Convert this config."),
    ] = None,
    from_mergenetic: Annotated[
        Path | None, typer.Option("--from-mergenetic", metavar="FILE", help="Convert this config.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option("--layers", min=1, help="Layers of the models, where they are not here."),
    ] = None,
    include_path: Annotated[
        str | None,
        typer.Option("--include-path", metavar="DIR", help="lm-eval task files of your own."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write a commented config from options, or from a few questions on a terminal.

    Exit codes: 0 written, 2 something is missing, wrong or cannot be converted.

    Example: evomerge init --base ./base --model ./math --model ./chat --task data/math.jsonl
    """
    from evomerge.cli.init import Answers, init_command

    answers = Answers(
        base=base,
        models=tuple(model or ()),
        tasks=tuple(task or ()),
        evaluator=evaluator,
        merge=merge,
        algorithm=algorithm,
        evaluations=evaluations,
        name=name,
        include_path=include_path,
    )
    init_command(
        answers,
        out,
        from_mergekit_evolve=from_mergekit_evolve,
        from_mergenetic=from_mergenetic,
        n_layers=layers,
        as_json=json_,
    )


def check(
    config: ConfigArgument,
    offline: Annotated[
        bool, typer.Option("--offline", help="Look at the file alone: no models, no data.")
    ] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the config with every default, as YAML.")
    ] = False,
    dry_run: Annotated[
        bool | None,
        typer.Option(
            "--dry-run/--no-dry-run",
            help="Score two examples of each task; default: where that takes seconds.",
        ),
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Validate a config, its models and its data; merges nothing, needs no GPU.

    Findings: ✓ fine, ! look at this, ✗ the search would be worthless. Exit codes: 0 no ✗,
    2 bad config, 3 a ✗, or models or data cannot be used.

    Example: evomerge check configs/digits.yaml --offline
    """
    from evomerge.cli.check import check_command

    raise typer.Exit(
        check_command(
            config,
            offline=offline,
            show_config=show_config,
            dry_run=dry_run,
            overrides=set_ or [],
            as_json=json_,
        )
    )


def plan(
    config: ConfigArgument,
    detect: Annotated[
        float | None,
        typer.Option("--detect", metavar="D", help="Difference of scores to tell apart: 0.01."),
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Score two warm-up candidates and say what the search will cost and can tell apart.

    Scores in this process and creates no run. Exit codes: 0 measured, 2 bad config, 3 the models,
    the data or a warm-up failed.

    Example: evomerge plan configs/digits.yaml --detect 0.01
    """
    from evomerge.cli.plan import plan_command

    plan_command(config, detect=detect, overrides=set_ or [], as_json=json_)


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write; default: stdout.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Print the JSON schema of config files, for editors; plug-ins that are installed included.

    Always JSON. Exit codes: 0 done, 3 the file cannot be written.

    Example: evomerge schema --out evomerge.schema.json
    """
    from evomerge.cli.schema import schema_command

    schema_command(out, as_json=json_)
