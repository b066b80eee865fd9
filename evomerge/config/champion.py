"""The champion of a run's candidates; see `core.champion`."""

from __future__ import annotations

import numpy as np

from evomerge.config.results import RunResults
from evomerge.core.candidate import Evaluation, known_margins, split_scores
from evomerge.core.champion import champion_of
from evomerge.storage.score_log import ScoreLog

CONTENDERS = 200  # those with the best means of scores


def run_champion(results: RunResults) -> int:
    """Return the champion among the candidates that were scored in full.

    Where some keep all constraints only those count.

    Raises:
        JournalError: A row of scores is missing or damaged.
    """
    scored = {
        int(event["id"]): event
        for event in results.scored
        if not results.front_is_feasible or results.is_feasible(int(event["id"]))
    }
    means = {i: float(np.mean(event["objectives"])) for i, event in scored.items()}
    ids = sorted(sorted(means, key=lambda i: (-means[i], i))[:CONTENDERS])
    log = ScoreLog.of(results.folder.scores, results.header)
    sizes = {str(task): int(n) for task, n in results.header["tasks"].items()}
    evaluations = []
    for i in ids:
        row, margins = log.read_both(int(scored[i]["row"]), str(scored[i]["scores"]))
        scores = split_scores(row, sizes)
        leads = known_margins(margins, sizes)
        evaluations.append(Evaluation(results.candidate(i), scores, margins=leads))
    return ids[champion_of(evaluations, results.objectives)]
