"""`evomerge export` and `evomerge merge`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from evomerge.cli.after_export import AfterExport
from evomerge.cli.ensemble import show
from evomerge.cli.validate import say_validating
from evomerge.config.ensemble import export_ensemble
from evomerge.config.export_run import Exported, Exporter, export_folders
from evomerge.config.locate import locate
from evomerge.config.merge_file import merge_file
from evomerge.errors import ConfigError
from evomerge.export import AdapterFacts, AsAdapter, ExportResult


def export_command(
    run: Path,
    out: Path,
    top: int | None,
    *,
    pick: str,
    verify: bool,
    adapter: bool,
    rank: int | None,
    then: AfterExport,
    as_json: bool,
) -> None:
    """Export the picked candidates of a run; with `top` the so many best, as an ensemble."""
    form = _form(adapter, rank)
    is_one_model = top is None and pick.strip() != "all"
    then.check(is_one_model=is_one_model, is_full_model=form is None)
    if top is not None and pick != "knee":
        raise ConfigError("--ensemble takes the best candidates itself; leave out --pick")
    exporter = Exporter(locate(run))
    if top is not None:
        on_scored = partial(say_validating, as_json)
        show(
            export_ensemble(exporter, top, out, verify=verify, adapter=form, on_scored=on_scored),
            out,
            as_json=as_json,
        )
        return
    ids = exporter.choose(pick, partial(say_validating, as_json))
    rows = []
    for candidate_id, folder in zip(ids, export_folders(out, ids, pick), strict=True):
        done = exporter.export(candidate_id, folder, verify=verify, adapter=form)
        validation = exporter.validation_of(candidate_id)
        rows.append(
            {
                "candidate": candidate_id,
                "folder": str(done.result.folder),
                "weights_digest": done.result.weights_digest,
                "search": dict(done.search),
                **({"validation": validation} if validation else {}),
                "held_out": dict(done.held_out),
                "rescored_examples": done.rescored,
                **_constraints_json(done),
                **_adapter_json(done.result),
            }
        )
        if not as_json:
            search = ", ".join(f"{name} {value:.4f}" for name, value in done.search.items())
            held_out = ", ".join(f"{name} {value:.4f}" for name, value in done.held_out.items())
            chosen_by = ", ".join(f"{name} {value:.4f}" for name, value in validation.items())
            print(f"candidate {candidate_id} -> {folder}")
            print(f"  weights match the scored candidate ✓  ({done.result.weights_digest})")
            parts = {"search": search, "validation": chosen_by, "test": held_out}
            print("  " + "; ".join(f"{name} {text}" for name, text in parts.items() if text))
            if not done.is_feasible:
                print("  does not keep all constraints, see its README.md", file=sys.stderr)
            if done.rescored:
                print(f"  re-scored {done.rescored} examples: all equal ✓")
            if done.result.adapter is not None:
                print(f"  {_adapter_text(done.result.adapter)}")
            elif done.result.no_mergekit_reason:
                print(f"  no mergekit YAML: {done.result.no_mergekit_reason}", file=sys.stderr)
        rows[-1] |= then.run(folder, as_json=as_json)
    if as_json:
        print(json.dumps(rows))


def merge_command(file: Path, out: Path, *, adapter: bool, rank: int | None, as_json: bool) -> None:
    """Do one merge from a recipe or a mergekit YAML."""
    result = merge_file(file, out, adapter=_form(adapter, rank))
    if as_json:
        row = {"folder": str(out), "weights_digest": result.weights_digest}
        print(json.dumps(row | _adapter_json(result)))
        return
    print(f"{file} -> {out}  ({result.weights_digest})")
    if result.adapter is not None:
        print(f"  {_adapter_text(result.adapter)}")


def _form(adapter: bool, rank: int | None) -> AsAdapter | None:
    """Return what to write; None is the full model."""
    if rank is not None and not adapter:
        raise ConfigError("--rank is the rank of an adapter; give --adapter too")
    return AsAdapter(rank) if adapter else None


def _constraints_json(done: Exported) -> dict[str, Any]:
    if not done.constraints:
        return {}
    return {"feasible": done.is_feasible, "constraints": dict(done.constraints)}


def _adapter_json(result: ExportResult) -> dict[str, Any]:
    return {} if result.adapter is None else {"adapter": result.adapter.to_json()}


def _adapter_text(facts: AdapterFacts) -> str:
    whole = f", {len(facts.whole)} modules whole" if facts.whole else ""
    said = f"LoRA adapter of {facts.base}, rank {facts.rank}"
    if facts.relative_error == 0.0:
        return f"{said}, exact{whole}"
    error = f"relative error {facts.relative_error:.3g}"
    return f"{said}, {error}{whole}; the figures above are of the full merge"
