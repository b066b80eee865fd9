"""evomerge's command line.

Exit codes: 0 done, 2 bad config or argument, 3 preflight or run failed, 75 interrupted and
resumable, 130 interrupted with no run to resume, 141 nobody reads the output any more, 1 bug.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from evomerge.cli.export_verbs import export
from evomerge.cli.interrupts import forget_interrupts, keep_interrupts
from evomerge.cli.job_verbs import logs, stop, submit
from evomerge.cli.options import (
    AdapterOption,
    AddressOption,
    ConfigArgument,
    ExecutorOption,
    InsecureOption,
    JsonOption,
    RankOption,
    RunArgument,
    SetOption,
    WorkersOption,
)
from evomerge.cli.output import say, silence
from evomerge.cli.planning_verbs import check, init, plan, schema
from evomerge.cli.run_verbs import compare, gc, replay, validate, watch
from evomerge.cli.track_verbs import optuna, track
from evomerge.errors import ConfigError, EvomergeError

CTRL_C = 130  # what typer turns a KeyboardInterrupt into
BROKEN_PIPE = 141  # what a shell reports for a program that SIGPIPE ended

app = typer.Typer(
    name="evomerge",
    help=(
        "Breed merges of fine-tuned models.\n\n"
        "begin: evomerge init; start: evomerge search CONFIG; resume: evomerge resume RUN; "
        "export: evomerge export RUN --pick knee --out DIR\n\n"
        "Exit codes: 0 done, 2 bad config, 3 preflight or run failed, "
        "75 interrupted and resumable, 130 interrupted with no run to resume, "
        "141 nobody reads the output any more, 1 bug."
    ),
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def search(
    config: ConfigArgument,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR|URL", help="Default: populations/<name>.")
    ] = None,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    insecure: InsecureOption = False,
    set_: SetOption = None,
    warm_start: Annotated[
        Path | None,
        typer.Option("--warm-start", metavar="RUN", help="Begin from an old run's evaluations."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Search for merges; continues the run if it exists.

    Example: evomerge search configs/digits.yaml --set budget.evaluations=200
    """
    from evomerge.cli.search import search_command

    raise typer.Exit(
        search_command(
            config,
            run,
            executor=executor,
            address=address,
            workers=workers,
            insecure=insecure,
            overrides=set_ or [],
            warm_start=warm_start,
            as_json=json_,
        )
    )


@app.command()
def resume(
    run: RunArgument,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    insecure: InsecureOption = False,
    evaluations: Annotated[
        int | None, typer.Option("--evaluations", help="New evaluation budget.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Continue a run where it stopped, however it stopped.

    Example: evomerge resume populations/digits
    """
    from evomerge.cli.search import resume_command

    raise typer.Exit(
        resume_command(
            run,
            executor=executor,
            address=address,
            workers=workers,
            insecure=insecure,
            evaluations=evaluations,
            as_json=json_,
        )
    )


@app.command()
def repair(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", metavar="NEW", help="Folder of the copy.")],
    json_: JsonOption = False,
) -> None:
    """Copy what is whole of a damaged run; RUN itself is never changed.

    Example: evomerge repair populations/digits --out populations/digits-2
    """
    from evomerge.cli.repair import repair_command

    repair_command(run, out, as_json=json_)


@app.command()
def status(
    run: RunArgument,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="http://HEAD:8265", help="Of a submitted run: its job."),
    ] = None,
    insecure: InsecureOption = False,
    json_: JsonOption = False,
) -> None:
    """Say how far a run is, without disturbing it; with --address, what its job does."""
    if address is None:
        from evomerge.cli.inspect import status_command

        status_command(run, as_json=json_)
        return
    from evomerge.cli.jobs import job_status_command

    job_status_command(run, address=address, insecure=insecure, as_json=json_)


@app.command()
def front(
    run: RunArgument,
    confident: Annotated[
        float | None,
        typer.Option(
            "--confident",
            metavar="P",
            help="All that nothing beats with this confidence, say 0.95, example by example.",
        ),
    ] = None,
    thin: Annotated[
        bool, typer.Option("--thin", help="One candidate per standard error of the scores.")
    ] = False,
    pick: Annotated[
        str | None,
        typer.Option(
            "--pick",
            metavar="P",
            help="Of them only: knee | best:X | weights:a=1,b=2 | 'max(math) s.t. general>=0.7'",
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    json_: JsonOption = False,
) -> None:
    """List the Pareto front of a run; of candidates that keep the constraints, if there are.

    Example: evomerge front populations/digits --pick "max(low) s.t. high>=0.7" --csv
    """
    from evomerge.cli.inspect import front_command

    front_command(run, confident=confident, thin=thin, pick=pick, as_csv=csv, as_json=json_)


@app.command()
def report(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="HTML file to write.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve a page on loopback that follows the run.")
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Of --live; default: a free one.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", metavar="T", help="In the live page's address; default: random."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write one self-contained HTML page about a run, or follow it live in a browser.

    Example: evomerge report populations/digits --out report.html
    """
    from evomerge.cli.report import report_command

    report_command(run, out, live=live, port=port, token=token, as_json=json_)


@app.command()
def ask(
    run: RunArgument,
    weights: Annotated[
        str,
        typer.Option("--weights", metavar="W", help="What matters how much: math=0.7,code=0.3."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write that merge, unscored.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Say what a run's surrogate expects to be best, without evaluating (amortized_pareto).

    Example: evomerge ask populations/digits --weights math=0.7,code=0.3
    """
    from evomerge.cli.ask import ask_command

    ask_command(run, weights=weights, out=out, as_json=json_)


@app.command()
def merge(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="recipe.json of an export, or a mergekit YAML.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    adapter: AdapterOption = False,
    rank: RankOption = None,
    json_: JsonOption = False,
) -> None:
    """Do one merge, without a search."""
    from evomerge.cli.export import merge_command

    merge_command(file, out, adapter=adapter, rank=rank, as_json=json_)


@app.command()
def prepare(
    config: ConfigArgument,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="SIZE", help="Most disk the cache may take: 20GB, 512MiB."
        ),
    ] = None,
    every_kind: Annotated[
        bool, typer.Option("--all", help="Every kind of statistic, whatever the merge method.")
    ] = False,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Compute once, before a search, what every candidate will want; may be stopped and continued.

    Example: evomerge prepare configs/digits.yaml --budget 20GB
    """
    from evomerge.cli.prepare import prepare_command

    prepare_command(
        config, overrides=set_ or [], budget=budget, every_kind=every_kind, as_json=json_
    )


@app.command()
def serve(
    config: ConfigArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 picks a free one.")] = 8000,
    set_: SetOption = None,
) -> None:
    """Hold a config's models and score merges for searches elsewhere (docs/endpoint.md).

    Clients need the token: $EVOMERGE_SERVER_TOKEN, or one that is made up and printed.
    """
    from evomerge.cli.serve import serve_command

    serve_command(config, host=host, port=port, overrides=set_ or [])


@app.command()
def quickstart(
    evaluations: Annotated[int, typer.Option("--evaluations", help="Search budget.")] = 240,
    json_: JsonOption = False,
) -> None:
    """Train small specialists, search, export: the whole road in two minutes, no download."""
    from evomerge.cli.quickstart import quickstart_command

    raise typer.Exit(quickstart_command(evaluations=evaluations, as_json=json_))


for _verb in (
    init,
    check,
    plan,
    schema,
    compare,
    replay,
    gc,
    validate,
    watch,
    submit,
    logs,
    stop,
    track,
    optuna,
    export,
):  # fmt: skip
    app.command()(_verb)


def run() -> None:
    """Run the command line; user errors end in one line, bugs in a traceback and exit code 1."""
    # Waiting OpenMP threads must not spin: with another process on the same cores they made
    # small models 60 times slower. Has to be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_interrupts()
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except EvomergeError as error:
        _fail(type(error).__name__, str(error), error.exit_code)
    except typer.TyperException as error:  # an unknown verb, a missing argument, …
        message = error.format_message().rstrip(".")
        message += "" if message.endswith("?") else "."
        _fail("ConfigError", f"{message} See evomerge --help.", ConfigError.exit_code)
    except BrokenPipeError:  # `evomerge front RUN | head -1`
        silence(sys.stdout)
        code = BROKEN_PIPE
    except SystemExit as stopped:  # typer leaves with 1 where a verb meets a closed pipe itself
        if stopped.code != 1:
            raise
        silence(sys.stdout)
        code = BROKEN_PIPE
    finally:
        forget_interrupts()
    if code == CTRL_C:
        say("interrupted")
    sys.exit(code)


def _fail(kind: str, message: str, code: int) -> NoReturn:
    # One line also where a library's message, quoted in ours, has several.
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    say(f"{kind}: {line}")
    sys.exit(code)
