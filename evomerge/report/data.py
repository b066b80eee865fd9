"""Everything a report shows, as one JSON-ready mapping."""

from __future__ import annotations

import shlex
import time
from typing import Any

from evomerge.config.results import RunResults
from evomerge.report.candidates import candidates
from evomerge.report.environment import environment
from evomerge.report.failures import failures
from evomerge.report.history import history
from evomerge.report.lineage import lineage
from evomerge.report.niches import niches
from evomerge.report.recipes import recipes
from evomerge.report.scored import Scored
from evomerge.report.summary import summary
from evomerge.report.timing import read_timing
from evomerge.report.validation import validation


def report_data(results: RunResults) -> dict[str, Any]:
    """Return the content of a report; its size does not grow with the number of candidates.

    Raises:
        RunError: Nothing was evaluated yet, or a file of the run cannot be read.
        JournalError: The scores are damaged.
    """
    if not results.header:
        results.folder.header()  # raises, and says what to do
    timing = read_timing(results.folder.events)
    scored = Scored.of(results)
    shown = candidates(scored, timing)
    tree = lineage(scored)
    summarised = list(dict.fromkeys(shown["id"] + [node["id"] for node in tree["nodes"]]))
    picked = summary(scored, timing)
    mapped = list(dict.fromkeys([row["candidate"] for row in picked["picks"]] + scored.front_ids))
    return {
        "run": results.config.name,
        "folder": results.folder.where,
        "command": f"evomerge export {shlex.quote(results.folder.where)}",
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "objectives": [
            {
                "name": item.name,
                "n": sum(int(results.header["tasks"][task]) for task in item.weights),
            }
            for item in results.objectives.items
        ],
        "constraints": [str(item) for item in results.objectives.constraints],
        "summary": picked,
        "candidates": shown,
        "recipes": recipes(results, summarised, mapped),
        "history": history(scored, timing),
        "niches": niches(scored),
        "lineage": tree,
        "validation": validation(scored),
        "failures": failures(scored, timing),
        "environment": environment(results, timing),
    }
