"""Two examples of every task, scored with the first model as it is: does the evaluator work?"""

from __future__ import annotations

import time

import numpy as np

from evomerge.config.findings.finding import Finding, bad, good, warn
from evomerge.config.session import Prepared
from evomerge.config.workers import load_subject
from evomerge.errors import EvaluationError, EvomergeError, first_line
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.sanity import watched_outputs
from evomerge.evaluation.subject import Subject
from evomerge.runtime.placement import is_gpu, pick_device, threads_per_worker, use_threads

N_EXAMPLES = 2
# Larger models take longer than a check may; on a GPU they are loaded and scored quickly.
MAX_BYTES = {"cpu": 1 << 30, "gpu": 20 << 30}


def dry_run_findings(
    prepared: Prepared, n_bytes: int, *, forced: bool | None = None
) -> list[Finding]:
    """Return a finding for every task; nothing is merged.

    Args:
        prepared: The checked config.
        n_bytes: Of the model.
        forced: True: whatever the size; False: leave it out; None: only models up to `MAX_BYTES`.
    """
    if forced is False:
        return []
    search = prepared.tasks.search
    classes = {n: e.auto_class for n, e in search.items() if e.auto_class is not None}
    found = []
    outside = sorted(set(search) - set(classes))
    if outside:
        text = f"{', '.join(outside)}: scored outside this process, by what a search starts or asks"
        found.append(good("dry run", text))
    if not classes:
        return found
    runtime = prepared.config.runtime
    device = pick_device(runtime.device)
    if forced is None and n_bytes > MAX_BYTES["gpu" if is_gpu(device) else "cpu"]:
        text = f"left out: loading a model of this size on {device} takes more than seconds"
        return [*found, warn("dry run", text, "Run it with --dry-run, or see `evomerge plan`")]
    use_threads(runtime.threads or threads_per_worker(1, prepared.models.space.n_elements))
    subjects: dict[str, Subject] = {}
    for task, auto_class in classes.items():
        started = time.perf_counter()
        try:
            if auto_class not in subjects:
                subjects[auto_class] = load_subject(prepared.models, auto_class, device)
            text = f"{task}: {_scores(search[task], subjects[auto_class])}"
        except Exception as error:  # an evaluator's own code can raise anything
            kind = "" if isinstance(error, EvomergeError) else f"{type(error).__name__}: "
            text = f"{task}: {kind}{first_line(error)}"
            found.append(bad("dry run", text, "Correct it: every candidate would fail like this"))
            continue
        seconds = time.perf_counter() - started
        found.append(good("dry run", f"{text} ({seconds:.1f} s with loading)"))
    return found


def _scores(evaluator: Evaluator, subject: Subject) -> str:
    """Return what the first examples score, for people."""
    positions = np.arange(min(N_EXAMPLES, evaluator.n_examples()))
    with watched_outputs(subject.model, subject.name):
        scores = evaluator.evaluate(subject, positions)
    if scores.shape != positions.shape or not np.isfinite(scores).all():
        raise EvaluationError(f"scores {scores.tolist()} for {len(positions)} examples")
    shown = ", ".join(f"{score:.4g}" for score in scores)
    return f"{subject.name} scores {shown} on {len(positions)} examples"
