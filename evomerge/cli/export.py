"""`evomerge export` and `evomerge merge`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evomerge.cli.locate import locate
from evomerge.config.export_run import Exporter, choose, export_folders
from evomerge.config.merge_file import merge_file


def export_command(run: Path, out: Path, *, pick: str, verify: bool, as_json: bool) -> None:
    """Export the picked candidates of a run."""
    exporter = Exporter(locate(run))
    ids = choose(exporter.results, pick)
    rows = []
    for candidate_id, folder in zip(ids, export_folders(out, ids, pick), strict=True):
        done = exporter.export(candidate_id, folder, verify=verify)
        rows.append(
            {
                "candidate": candidate_id,
                "folder": str(done.result.folder),
                "weights_digest": done.result.weights_digest,
                "search": dict(done.search),
                "held_out": dict(done.held_out),
                "rescored_examples": done.rescored,
            }
        )
        if not as_json:
            search = ", ".join(f"{name} {value:.4f}" for name, value in done.search.items())
            held_out = ", ".join(f"{name} {value:.4f}" for name, value in done.held_out.items())
            print(f"candidate {candidate_id} -> {folder}")
            print(f"  weights match the scored candidate ✓  ({done.result.weights_digest})")
            print(f"  search {search}" + (f"; held-out {held_out}" if held_out else ""))
            if done.rescored:
                print(f"  re-scored {done.rescored} examples: all equal ✓")
            if done.result.no_mergekit_reason:
                print(f"  no mergekit YAML: {done.result.no_mergekit_reason}", file=sys.stderr)
    if as_json:
        print(json.dumps(rows))


def merge_command(file: Path, out: Path, *, as_json: bool) -> None:
    """Do one merge from a recipe or a mergekit YAML."""
    result = merge_file(file, out)
    if as_json:
        print(json.dumps({"folder": str(out), "weights_digest": result.weights_digest}))
    else:
        print(f"{file} -> {out}  ({result.weights_digest})")
