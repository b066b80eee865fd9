"""The part of a model card that says what was measured, on how many examples, and how surely."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How far the model is above the best parent in one objective, on the same examples.

    Attributes:
        over: Name of that parent.
        value: Difference of the scores.
        interval: Its paired 95 % bootstrap interval.
        p: Chance of such a gain if there were none, Holm-adjusted over the models compared.
        on: "test" or "validation".
    """

    over: str
    value: float
    interval: Interval
    p: float
    on: str


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One objective or task of the card's table; None where it was not measured.

    Attributes:
        name: Objective or task.
        search: Mean score on the examples the search optimised.
        n_search: How many those are.
        held_out: Mean score on examples that nothing was chosen by.
        n_held_out: How many those are.
        search_interval: 95 % confidence interval of `search`.
        held_out_interval: 95 % confidence interval of `held_out`.
        validation: Mean score on the examples the model was chosen by.
        n_validation: How many those are.
        validation_interval: 95 % confidence interval of `validation`.
        shrunken: `validation` less what the choice is expected to have added.
        gain: Over the best parent.
    """

    name: str
    search: float | None = None
    n_search: int = 0
    held_out: float | None = None
    n_held_out: int = 0
    search_interval: Interval | None = None
    held_out_interval: Interval | None = None
    validation: float | None = None
    n_validation: int = 0
    validation_interval: Interval | None = None
    shrunken: float | None = None
    gain: Gain | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what was measured."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def score_section(rows: Sequence[ScoreRow], n_candidates: int | None, n_tested: int) -> str:
    """Return the section, "" without scores.

    Args:
        rows: One per objective.
        n_candidates: How many candidates the search scored; None without a search.
        n_tested: How many of them were ever scored on the test examples.
    """
    if not rows:
        return ""
    is_validated = any(row.validation is not None for row in rows)
    heads = ["search", *(["validation"] if is_validated else []), "test"]
    lines = [
        "## Scores",
        "",
        "| objective | " + " | ".join(f"{head} score | n" for head in heads) + " |",
        "|---|" + "---|---|" * len(heads),
    ]
    for row in rows:
        cells = [_score(row.search, row.search_interval), str(row.n_search or "–")]
        if is_validated:
            cells.append(_score(row.validation, row.validation_interval))
            cells.append(str(row.n_validation or "–"))
        cells += [_score(row.held_out, row.held_out_interval), str(row.n_held_out or "–")]
        name = " ".join(row.name.split()).replace("|", "\\|")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    facts = [*_gaps(rows), *_gains(rows)]
    if facts:
        lines += ["", *facts]
    if n_candidates:
        lines += ["", _selection(rows, n_candidates, n_tested)]
    return "\n".join(lines)


def _gaps(rows: Sequence[ScoreRow]) -> list[str]:
    lines = []
    for row in rows:
        if row.search is None or row.validation is None:
            continue
        text = f"- {row.name}: search minus validation {row.search - row.validation:+.4f}"
        if row.shrunken is not None:
            text += f"; validation shrunken for the choice {row.shrunken:.4f}"
        lines.append(text)
    return lines


def _gains(rows: Sequence[ScoreRow]) -> list[str]:
    return [
        f"- {row.name}, {row.gain.on} examples: {row.gain.value:+.4f} "
        f"[{row.gain.interval[0]:+.4f}, {row.gain.interval[1]:+.4f}] over the best parent, "
        f"{row.gain.over} (paired; p = {row.gain.p:.2g}, Holm-adjusted)"
        for row in rows
        if row.gain is not None
    ]


def _selection(rows: Sequence[ScoreRow], n_candidates: int, n_tested: int) -> str:
    is_validated = any(row.validation is not None for row in rows)
    text = f"**Selection effect:** this model was picked out of {n_candidates} candidates "
    if is_validated:
        text += (
            "in two steps: finalists by their search scores, one of them by its validation score. "
        )
    else:
        text += "by its search score, on the examples counted there. "
    text += (
        "The best of many noisy scores is too high on average, the more so the fewer the examples. "
    )
    if any(row.held_out is not None for row in rows):
        text += "The test examples chose nothing; trust that column."
        if n_tested > 1:
            text += f" They have been looked at for {n_tested} candidates of the run."
    elif is_validated:
        text += "It was not measured on test examples that nothing was chosen by."
    else:
        text += "It was not measured on test examples: expect less than the table says."
    return text


def _score(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return "not measured"
    around = "" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]"
    return f"{value:.4f}{around}"
