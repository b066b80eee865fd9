"""Arguments and options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML config file.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, its name or URL.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.KEY=VALUE", help="Override a config key.")
]
ExecutorOption = Annotated[
    str | None, typer.Option("--executor", metavar="in-process|ray", help="Where to score.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="auto|HOST:PORT", help="Ray cluster; default: a local one."),
]
AdapterOption = Annotated[
    bool, typer.Option("--adapter", help="Write a PEFT LoRA adapter of the base, not a model.")
]
RankOption = Annotated[
    int | None,
    typer.Option("--rank", metavar="R", help="Cut the adapter to this rank; default: exact."),
]
EnsembleOption = Annotated[
    int | None,
    typer.Option(
        "--ensemble", metavar="K", help="The K best and how they vote (ensemble.json), not --pick."
    ),
]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Number of workers.")]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Use a cluster elsewhere that asks for no token.")
]
JobsOption = Annotated[
    str,
    typer.Option("--address", metavar="http://HEAD:8265", help="Dashboard of the Ray cluster."),
]
