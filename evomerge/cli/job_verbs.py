"""How the verbs about searches on a cluster elsewhere are called: `submit`, `logs`, `stop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import (
    ConfigArgument,
    InsecureOption,
    JobsOption,
    JsonOption,
    RunArgument,
    SetOption,
    WorkersOption,
)


def submit(
    config: ConfigArgument,
    address: JobsOption,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR|URL", help="As the cluster's machines see it."),
    ] = None,
    workers: WorkersOption = None,
    pip: Annotated[
        Path | None,
        typer.Option("--pip", metavar="FILE", help="Pinned requirements to install there."),
    ] = None,
    insecure: InsecureOption = False,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Run a search as a job of a Ray cluster; continues the run if it was interrupted.

    The job has the run's name. Models, data and run folder must be at the same paths there.

    Exit codes: 0 submitted, 2 bad config, 3 the run is being driven already, or no such cluster.

    Example: evomerge submit configs/ray_cluster.yaml --address http://localhost:8265
    """
    from evomerge.cli.jobs import submit_command

    submit_command(
        config,
        run,
        address=address,
        workers=workers,
        pip=pip,
        insecure=insecure,
        overrides=set_ or [],
        as_json=json_,
    )


def logs(
    run: RunArgument,
    address: JobsOption,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
    insecure: InsecureOption = False,
) -> None:
    """Print what a submitted search has printed.

    Exit codes: 0 printed, 3 no such job or cluster.

    Example: evomerge logs digits --address http://localhost:8265 --follow
    """
    from evomerge.cli.jobs import logs_command

    logs_command(run, address=address, follow=follow, insecure=insecure)


def stop(
    run: RunArgument,
    address: JobsOption,
    insecure: InsecureOption = False,
    json_: JsonOption = False,
) -> None:
    """Let a submitted search finish what it evaluates and end; `submit` continues it.

    Exit codes: 0 told to stop or ended before, 3 no such job or cluster.

    Example: evomerge stop digits --address http://localhost:8265
    """
    from evomerge.cli.jobs import stop_command

    stop_command(run, address=address, insecure=insecure, as_json=json_)
