"""What a quickstart found: the numbers, one table of them, and a picture of the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.pareto import hypervolume

Interval = tuple[float, float]

FRONT_ROWS = 12
PANELS = (
    ("search", "search images (chosen on these)"),
    ("held_out", "held-out images (never searched on)"),
)


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """One model with its accuracies, fractions in [0, 1].

    Attributes:
        label: For people: "expert low", "knee".
        candidate: Its id in the run.
        origin: How the candidate came about.
        search: Skill -> accuracy on the images the search used.
        held_out: Skill -> accuracy on images the search never saw.
        interval: 95 % bootstrap interval of the mean of `held_out`.
    """

    label: str
    candidate: int
    origin: str
    search: Mapping[str, float]
    held_out: Mapping[str, float]
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping, with the means over the skills."""
        return {
            "candidate": self.candidate,
            "origin": self.origin,
            "search": {**self.search, "mean": mean(self.search)},
            "held_out": {**self.held_out, "mean": mean(self.held_out)},
            "held_out_interval": list(self.interval),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """Every figure of a quickstart.

    Attributes:
        skills: The two skills: titles of the axes and columns.
        n_search: Skill -> images the search scores.
        n_held_out: Skill -> held-out images.
        evaluations: Candidates the search scored.
        parents: Base and experts.
        average: Uniform average of the experts.
        best: Skill -> the front's best candidate on it, by search images.
        knee: The front's best compromise, by search images.
        best_parent: The parent with the best mean on the search's images.
        gain: Paired 95 % bootstrap interval of the knee's held-out mean less that of `best_parent`.
        front: The front by search images, best first skill first.
        everything: (P, 2) search accuracies of all scored candidates.
    """

    skills: tuple[str, str]
    n_search: Mapping[str, int]
    n_held_out: Mapping[str, int]
    evaluations: int
    parents: tuple[ScoredModel, ...]
    average: ScoredModel
    best: Mapping[str, ScoredModel]
    knee: ScoredModel
    best_parent: ScoredModel
    gain: Interval
    front: tuple[ScoredModel, ...]
    everything: FloatArray

    def hypervolumes(self) -> dict[str, dict[str, float]]:
        """Return part -> {"parents", "average", "front"} -> area dominated above (0, 0).

        On held-out images it is the area of the candidates that form the front on the search
        images: none of them is chosen anew.
        """
        sets = {"parents": self.parents, "average": (self.average,), "front": self.front}
        return {
            part: {name: self._area(models, part) for name, models in sets.items()}
            for part, _ in PANELS
        }

    def _area(self, models: Sequence[ScoredModel], part: str) -> float:
        return hypervolume(self.points(models, part), np.zeros(len(self.skills)))

    def points(self, models: Sequence[ScoredModel], part: str) -> FloatArray:
        """Return (n, 2) accuracies on "search" or "held_out"."""
        return np.array([[getattr(m, part)[skill] for skill in self.skills] for m in models])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of all figures."""
        return {
            "evaluations": self.evaluations,
            "n": {"search": dict(self.n_search), "held_out": dict(self.n_held_out)},
            "parents": {model.label: model.to_json() for model in self.parents},
            "average": self.average.to_json(),
            "knee": self.knee.to_json(),
            "gain": {
                "over": self.best_parent.label,
                "held_out": mean(self.knee.held_out) - mean(self.best_parent.held_out),
                "interval": list(self.gain),
            },
            "best": {skill: model.to_json() for skill, model in self.best.items()},
            "front": [model.to_json() for model in self.front],
            "hypervolume": self.hypervolumes(),
        }


def mean(accuracies: Mapping[str, float]) -> float:
    """Return the mean over skills, each weighing the same."""
    return float(np.mean(list(accuracies.values())))


def table(report: Report) -> str:
    """Return the main table: parents, average, best per skill, knee, and the hypervolumes."""
    n_search = " + ".join(str(report.n_search[skill]) for skill in report.skills)
    n_held_out = " + ".join(str(report.n_held_out[skill]) for skill in report.skills)
    columns = "".join(f"{name:>8}" for name in (*report.skills, "mean"))
    width = len(columns)
    lines = [
        f"{'accuracy':<21}{f'search, n = {n_search}':>{width}}   "
        f"{f'held-out, n = {n_held_out}':>{width}}",
        f"{'':<21}{columns}   {columns}   candidate",
    ]
    rows = [*report.parents, report.average, *report.best.values(), report.knee]
    same = {model.candidate: model.label for model in (report.average, *report.parents)}
    for model in rows:
        cells = "   ".join(
            "".join(f"{value:8.3f}" for value in (*(part[s] for s in report.skills), mean(part)))
            for part in (model.search, model.held_out)
        )
        known = same.get(model.candidate, model.label)
        also = f" = {known}" if known != model.label else ""
        lines.append(f"{model.label:<21}{cells}   {model.candidate:>9}{also}")
    parent, knee = report.best_parent, report.knee
    (low, high), gain = knee.interval, mean(knee.held_out) - mean(parent.held_out)
    lines += [
        "",
        f"knee, held-out mean: {mean(knee.held_out):.3f} [{low:.3f}, {high:.3f}], {gain:+.3f} "
        f"[{report.gain[0]:+.3f}, {report.gain[1]:+.3f}] over the best parent ({parent.label})",
        "95 % intervals by bootstrap over the images, the second one paired",
    ]
    areas = report.hypervolumes()
    lines += ["", f"{'hypervolume':<21}{'search':>8}{'held-out':>10}   area above (0, 0)"]
    for name, label in (("parents", "parents"), ("average", "uniform average"), ("front", "front")):
        search, held_out = areas["search"][name], areas["held_out"][name]
        lines.append(f"{label:<21}{search:8.3f}{held_out:10.3f}")
    return "\n".join(lines)


def front_table(report: Report) -> str:
    """Return the front, best first skill first; of a long one the ends, the knee and some more."""
    shown = np.unique(np.linspace(0, len(report.front) - 1, FRONT_ROWS).round().astype(int))
    kept = {report.front[i].candidate for i in shown} | {report.knee.candidate}
    columns = "".join(f"{skill:>8}" for skill in report.skills)
    lines = [
        f"{'front':<10}{'search':>{len(columns)}}   {'held-out':>{len(columns)}}",
        f"{'candidate':<10}{columns}   {columns}   origin",
    ]
    for model in report.front:
        if model.candidate not in kept:
            continue
        cells = "   ".join(
            "".join(f"{part[skill]:8.3f}" for skill in report.skills)
            for part in (model.search, model.held_out)
        )
        mark = "  <- knee" if model.candidate == report.knee.candidate else ""
        lines.append(f"{model.candidate:<10}{cells}   {model.origin}{mark}")
    if len(kept) < len(report.front):
        lines.append(f"… {len(report.front) - len(kept)} more of {len(report.front)}")
    return "\n".join(lines)


def draw(report: Report, path: Path, titles: Mapping[str, str]) -> None:
    """Write the front as a PNG: on the search images and, the same candidates, held-out.

    Args:
        report: What to draw.
        path: The file.
        titles: Skill -> what it is, for the axes.
    """
    # Figure with its own canvas: pyplot would keep global state and choose a GUI backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    first = None
    areas = report.hypervolumes()
    for position, (part, title) in enumerate(PANELS):
        axes = figure.add_subplot(1, 2, position + 1, sharex=first, sharey=first)
        first = first or axes
        _draw_panel(axes, report, part)
        axes.set_title(f"{title}\nhypervolume of the front {areas[part]['front']:.3f}")
        n_images = report.n_search if part == "search" else report.n_held_out
        wide, high = (
            f"accuracy on {titles[skill]} (fraction of {n_images[skill]} images)"
            for skill in report.skills
        )
        axes.set_xlabel(wide)
        axes.set_ylabel(high)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_aspect("equal")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="lower left", fontsize="small")
    figure.suptitle(f"Merges of two specialists, {report.evaluations} evaluations")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _draw_panel(axes: Any, report: Report, part: str) -> None:
    """Draw one panel; the front's staircase only where it is the front."""
    front = report.points(report.front, part)
    if part == "search":
        axes.plot(*report.everything.T, ".", color="0.75", markersize=4, label="all candidates")
        style = {"linewidth": 1, "drawstyle": "steps-post", "label": "front"}
    else:
        style = {"linestyle": "none", "label": "the same candidates"}
    axes.plot(*front.T, marker="o", color="tab:blue", markersize=4, **style)
    best = report.points(list(report.best.values()), part)
    ring = {"marker": "o", "linestyle": "none", "markerfacecolor": "none"}
    axes.plot(*best.T, **ring, color="tab:green", markersize=13, label="best of each skill")
    for parent, marker in zip(report.parents, ("s", "<", "v"), strict=True):
        point = report.points([parent], part)
        axes.plot(*point.T, marker, color="black", markersize=6, label=parent.label)
    for model, marker, color, size in (
        (report.average, "D", "tab:orange", 7),
        (report.knee, "*", "tab:red", 14),
    ):
        point = report.points([model], part)
        axes.plot(
            *point.T,
            marker,
            color=color,
            markersize=size,
            markeredgecolor="white",
            label=model.label,
            zorder=3,
        )
