"""What was searched, what it cost, and the candidates one would take first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.config.front_views import example_scores
from evomerge.config.results import RunResults
from evomerge.core.arrays import FloatArray
from evomerge.core.intervals import Resampled, resample
from evomerge.core.picking import pick
from evomerge.report.numbers import short, shorts
from evomerge.report.scored import Scored
from evomerge.report.timing import Timing
from evomerge.seeding import generator


def summary(scored: Scored, timing: Timing) -> dict[str, Any]:
    """Return facts of the run and the rows of the table of picks."""
    return {
        "facts": _facts(scored.results, timing),
        "constraints": [str(line) for line in scored.results.feasibility.describe()],
        "feasible": scored.results.front_is_feasible,
        "columns": [*scored.results.objectives.names, *(["mean"] if _has_mean(scored) else [])],
        "picks": _picks(scored),
    }


def _facts(results: RunResults, timing: Timing) -> list[list[str]]:
    """Return (label, value) pairs for people."""
    status = results.status()
    config = results.config
    sizes = {str(task): int(n) for task, n in results.header.get("tasks", {}).items()}
    base = f"{config.base_model.name} + " if config.base_model else ""
    experts = ", ".join(str(model.name) for model in config.models)
    examples = " + ".join(f"{sizes[task]:,} {task}" for task in sorted(sizes))
    facts = [
        ["State", str(status["state"])],
        ["Models", f"{base}{experts}"],
        ["Merge method", f"{status['merge']}, groups: {config.merge.get('groups', 'global')}"],
        ["Algorithm", f"{config.algorithm['name']}, seed {config.seed}"],
        ["Examples per candidate", f"{sum(sizes.values()):,} ({examples})"],
        ["Budget spent", f"{status['done']:,} of {status['budget']:,} candidates"],
        ["Failed", f"{status['failed']:,} candidates"],
        ["Front", f"{status['front']:,} candidates"],
    ]
    if status["hypervolume"] is not None:
        facts.append(["Hypervolume", f"{status['hypervolume']:.5g}"])
    if timing.total:
        facts.append(["Scoring time, all workers", timing.text])
    usage = status.get("usage")
    if usage is not None:
        tokens = usage["prompt_tokens"] + usage["completion_tokens"]
        cost = f", cost {usage['cost']:.4g} in the currency of the prices" if usage["cost"] else ""
        facts.append(["Servers", f"{usage['requests']:,} requests, {tokens:,} tokens{cost}"])
    return facts


def _picks(scored: Scored) -> list[dict[str, Any]]:
    """Return one row per objective's best and the knee, compared with the best parents."""
    if not len(scored.front):
        return []
    names = scored.results.objectives.names
    rules = [(f"best: {name}", f"best:{name}") for name in names] + [("knee", "knee")]
    chosen = [(label, pick(scored.front, names, rule)[0]) for label, rule in rules]
    ids = list(dict.fromkeys([*(candidate for _, candidate in chosen), *scored.models.values()]))
    table = _Table.of(scored, ids)
    return [
        {
            "label": label,
            "candidate": candidate,
            "origin": scored.origin(candidate),
            "objectives": [table.cell(candidate, m) for m in range(table.values.shape[1])],
        }
        for label, candidate in chosen
    ]


@dataclass(frozen=True, eq=False)
class _Table:
    """Some candidates with their values and resampled values.

    Attributes:
        ids: The candidates.
        values: (len(ids), columns) objectives, and their mean where that is shown.
        draws: The same over resamples.
        models: Unmerged model -> its candidate, one of `ids`.
    """

    ids: list[int]
    values: FloatArray
    draws: Resampled
    models: dict[str, int]

    @classmethod
    def of(cls, scored: Scored, ids: list[int]) -> _Table:
        rng = generator(scored.results.config.seed, "report", "bootstrap")
        scores = example_scores(scored.results, np.array(ids, dtype=np.int64))
        draws = resample(scores, scored.results.objectives.items, rng)
        row_of = {int(candidate_id): row for row, candidate_id in enumerate(scored.ids)}
        values = scored.objectives[[row_of[i] for i in ids]]
        if _has_mean(scored):
            values = np.column_stack([values, values.mean(axis=1)])
            draws = draws.with_mean()
        return cls(ids, values, draws, scored.models)

    def cell(self, candidate: int, column: int) -> dict[str, Any]:
        """Return value and interval, and the gain on the model that is best in this column."""
        row = self.ids.index(candidate)
        found: dict[str, Any] = {
            "value": short(self.values[row, column]),
            "interval": shorts(self.draws.interval(row, column)),
        }
        if self.models:
            rows = {name: self.ids.index(i) for name, i in self.models.items()}
            best = max(rows, key=lambda name: float(self.values[rows[name], column]))
            found |= {
                "parent": best,
                "gain": short(self.values[row, column] - self.values[rows[best], column]),
                "gain_interval": shorts(self.draws.difference(row, rows[best], column)),
            }
        return found


def _has_mean(scored: Scored) -> bool:
    """Whether the mean over objectives says something: all are shares, such as accuracies."""
    values = scored.objectives
    return values.shape[1] > 1 and bool(((values >= 0.0) & (values <= 1.0)).all())
