"""How `evomerge export` is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evomerge.cli.options import (
    AdapterOption,
    EnsembleOption,
    JsonOption,
    RankOption,
    RunArgument,
)


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    pick: Annotated[
        str,
        typer.Option(
            "--pick",
            metavar="P",
            help="knee | champion | best:X | weights:a=1,b=2 | 'max(a) s.t. b>=0.7' | "
            "candidate:ID | all",
        ),
    ] = "knee",
    verify: Annotated[
        bool, typer.Option("--verify", help="Re-score the written model and compare.")
    ] = False,
    k: EnsembleOption = None,
    adapter: AdapterOption = False,
    rank: RankOption = None,
    gguf: Annotated[
        str | None,
        typer.Option(
            "--gguf", metavar="TYPE", help="A GGUF file, too: auto | f32 | f16 | bf16 | q8_0 | …"
        ),
    ] = None,
    gguf_converter: Annotated[
        Path | None,
        typer.Option(
            "--gguf-converter",
            metavar="PATH",
            help="llama.cpp's convert_hf_to_gguf.py or its folder; default: $LLAMA_CPP, then PATH.",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="ORG/NAME",
            help="Publish the folder on the Hugging Face hub; token: HF_TOKEN or hf auth login.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="As a private model; never onto a public one.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Write merges of a run as Hugging Face model folders, or as LoRA adapters of their base.

    Exit codes: 0 done, 2 bad argument, 3 what was written is not what was scored; or the folder is
    whole, but the GGUF converter or the hub refused.

    Example: evomerge export populations/digits --pick knee --out merged/
    """
    from evomerge.cli.after_export import AfterExport
    from evomerge.cli.export import export_command

    export_command(
        run,
        out,
        k,
        pick=pick,
        verify=verify,
        adapter=adapter,
        rank=rank,
        then=AfterExport(push_to_hub, private, gguf, gguf_converter),
        as_json=json_,
    )
