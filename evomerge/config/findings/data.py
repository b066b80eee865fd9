"""Examples: how many fall to which part, and whether parts can be told to be apart."""

from __future__ import annotations

from evomerge.config.findings.finding import Finding, good, warn
from evomerge.config.tasks import Tasks
from evomerge.evaluation.evaluator import Evaluator, example_digests

_FEW = 100


def example_findings(tasks: Tasks) -> list[Finding]:
    """Return the sizes of the parts of every task and what is wrong with them.

    That examples are in two parts has been refused before (`refuse_shared_examples`).
    """
    sizes = {
        task: [f"{n} search"]
        + [f"{p[task].n_examples()} {k}" for k, p in _later(tasks).items() if task in p]
        for task, n in tasks.sizes.items()
    }
    listed = "; ".join(f"{task} {', '.join(parts)}" for task, parts in sizes.items())
    found = [good("examples", listed)]
    if tasks.validation or tasks.held_out:
        found.append(_leakage(tasks))
    small = [task for task, n in tasks.sizes.items() if n < _FEW]
    if small:
        found.append(
            warn(
                "examples",
                f"fewer than {_FEW} examples in {', '.join(small)}: the search will overfit",
                "Add examples, and choose on a validation split (docs/honest-scores.md)",
            )
        )
    missing = sorted(set(tasks.sizes) - set(tasks.held_out))
    if missing:
        found.append(
            warn(
                "examples",
                f"no test examples for {', '.join(missing)}: scores will look too good",
                "Give the task `splits:`, or `held_out:` with other data",
            )
        )
    return found


def _later(tasks: Tasks) -> dict[str, dict[str, Evaluator]]:
    return {"validation": dict(tasks.validation), "test": dict(tasks.held_out)}


def _leakage(tasks: Tasks) -> Finding:
    """Return whether the contents of the examples could be compared."""
    parts = [tasks.search, tasks.validation, tasks.held_out]
    blind = sorted(
        {task for part in parts for task, item in part.items() if example_digests(item) is None}
    )
    if not blind:
        return good("splits", "no example is in two parts, compared by content")
    return warn(
        "splits",
        f"the examples of {', '.join(blind)} cannot be compared: the evaluator gives no digests",
        "See to it yourself that no test example is one of the search's, or add "
        "`example_digests` to the evaluator",
    )
