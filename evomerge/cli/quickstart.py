"""`evomerge quickstart`: the whole road on real models, without a download or a GPU."""

from __future__ import annotations

import json

from evomerge.cli.output import say
from evomerge.cli.progress import Progress
from evomerge.cli.search import DONE, INTERRUPTED, exit_code_of_ctrl_c, stop_signals
from evomerge.config.locate import POPULATIONS
from evomerge.config.session import Session
from evomerge.quickstart.report import front_table, mean, table
from evomerge.quickstart.run import NAME, TITLES, Outcome, run_quickstart
from evomerge.search.loop import StopReason
from evomerge.storage.run_store import RunFolder


def quickstart_command(*, evaluations: int, as_json: bool) -> int:
    """Train, search, report, export; returns the exit code."""

    def search(session: Session) -> StopReason:
        with (
            stop_signals(session.loop, as_json=as_json),
            Progress(session.loop, NAME, as_json=as_json),
        ):
            return session.run()

    with exit_code_of_ctrl_c(RunFolder(POPULATIONS / NAME)):
        outcome = run_quickstart(POPULATIONS, evaluations=evaluations, search=search, say=say)
    if outcome is None:
        again = f"evomerge quickstart --evaluations {evaluations}"
        if as_json:
            print(json.dumps({"run": str(POPULATIONS / NAME), "reason": "interrupted"}))
        else:
            print(f"interrupted; nothing finished is lost. Continue with:  {again}")
        return INTERRUPTED
    print(json.dumps(outcome.to_json()) if as_json else text_of(outcome))
    return DONE


def text_of(outcome: Outcome) -> str:
    """Return the report for people."""
    report, exported = outcome.report, outcome.exported
    knee, average = mean(report.knee.held_out), mean(report.average.held_out)
    parent = max(report.parents, key=lambda model: mean(model.held_out))
    phases = ", ".join(
        f"{name} {value:.1f}" for name, value in outcome.seconds.items() if name != "total"
    )
    accuracies = ", ".join(
        f"{skill} {value:.3f}" for skill, value in exported["held_out"].items() if skill != "mean"
    )
    return "\n".join(
        [
            "",
            "; ".join(f"{skill}: {title}" for skill, title in TITLES.items())
            + ". Best and knee were picked on the search images; held-out images only report.",
            "",
            table(report),
            "",
            front_table(report),
            "",
            f"knee, held-out mean {knee:.3f}: {knee - mean(parent.held_out):+.3f} over the best "
            f"parent ({parent.label}), {knee - average:+.3f} over the uniform average",
            f"exported   {exported['folder']}: loaded with transformers, every held-out image "
            f"scores as in the search ({accuracies})",
            f"picture    {outcome.picture}",
            f"seconds    {outcome.seconds['total']:.1f} ({phases})",
            f"next       evomerge front {outcome.run.path}",
            f"           evomerge quickstart --evaluations {2 * report.evaluations}",
        ]
    )
