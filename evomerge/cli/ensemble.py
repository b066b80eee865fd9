"""What `evomerge export --ensemble K` prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evomerge.config.ensemble import ENSEMBLE_FILE, Ensemble


def show(ensemble: Ensemble, out: Path, *, as_json: bool) -> None:
    """Print the members of an exported ensemble and how their vote scores."""
    if as_json:
        print(json.dumps(ensemble.to_json()))
        return
    for member in ensemble.members:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in member.search.items())
        print(f"candidate {member.candidate} -> {member.result.folder}  ({scores})")
    for task, value in ensemble.held_out.items():
        alone = ", ".join(f"{member.held_out[task]:.4f}" for member in ensemble.members)
        print(f"  vote on test examples of {task}: {value:.4f}  (members {alone})")
    if not ensemble.held_out:
        print("  no task has test examples: the vote is not scored", file=sys.stderr)
    print(f"  {out / ENSEMBLE_FILE}")
