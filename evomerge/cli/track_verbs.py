"""How the verbs that show a run elsewhere are called: `track` and `optuna`."""

from __future__ import annotations

from typing import Annotated

import typer

from evomerge.cli.options import JsonOption, RunArgument


def track(
    run: RunArgument,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="NAME", help="Tracker; default: all of the run's config."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the tracker of --to."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Send a run's results to TensorBoard, Weights & Biases, MLflow or an Optuna study.

    Only what the tracker does not have yet is sent. A search that is to be followed while it runs
    has `trackers:` in its config.

    Exit codes: 0 done, 2 unknown tracker or setting, or its package is missing, 3 it cannot be
    reached, or holds another run.

    Example: evomerge track populations/digits --to wandb --set project=merges --set mode=offline
    """
    from evomerge.cli.track import track_command

    track_command(run, to, set_ or [], as_json=json_)


def optuna(
    run: RunArgument,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="FILE|URL",
            help="Journal file, or a database such as sqlite:///x.db; "
            "default: trackers/optuna.journal in the run folder.",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Default: the run's name.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write a run as an Optuna study, for optuna-dashboard; again, adds what is new.

    Exit codes: 0 done, 2 bad argument, 3 the storage cannot be used, or the study is another's.

    Example: evomerge optuna populations/digits --storage digits.journal && optuna-dashboard
    digits.journal
    """
    from evomerge.cli.track import optuna_command

    optuna_command(run, storage, study, as_json=json_)
