"""The whole road of `evomerge quickstart`: train, search, report, export, check."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.export_run import Exporter, choose
from evomerge.config.held_out import score_held_out
from evomerge.config.results import RunResults
from evomerge.config.schema import load_config
from evomerge.config.session import Session, open_or_create
from evomerge.core.arrays import ScoreArray
from evomerge.core.intervals import resample
from evomerge.core.objective import Objective
from evomerge.errors import ConfigError, RunError
from evomerge.export import verify_digest
from evomerge.quickstart.report import Report, ScoredModel, draw, mean
from evomerge.quickstart.specialists import (
    CONFIG,
    SKILLS,
    Say,
    Training,
    data_file,
    load_exported,
    predict,
    prepare,
    read_images,
)
from evomerge.search.loop import StopReason
from evomerge.seeding import generator
from evomerge.storage.run_store import RunFolder

NAME = "quickstart"
LEAST_EVALUATIONS = 10  # parents, average and the other founders are scored before anything else
LABELS = {
    "founder: base": "base",
    **{f"founder: {skill}": f"expert {skill}" for skill in SKILLS},
}
AVERAGE = "founder: mean of the models"
TITLES = {skill: f"digits {digits[0]}-{digits[-1]}" for skill, digits in SKILLS.items()}

Search = Callable[[Session], StopReason]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished quickstart.

    Attributes:
        run: The run folder.
        models: Folder of the specialists, their data and the config.
        report: All figures.
        picture: The front as a PNG.
        exported: Folder, digest and accuracies of the exported knee.
        seconds: Phase -> wall seconds; "total" is their sum.
    """

    run: RunFolder
    models: Path
    report: Report
    picture: Path
    exported: dict[str, Any]
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of everything."""
        return {
            "run": str(self.run.path),
            "models": str(self.models),
            **self.report.to_json(),
            "picture": str(self.picture),
            "exported": self.exported,
            "seconds": self.seconds,
        }


def config_text() -> str:
    """Return the config that a quickstart runs, with its comments; paths count from its folder."""
    return (resources.files("evomerge.quickstart") / CONFIG).read_text(encoding="utf-8")


def run_quickstart(
    populations: Path,
    *,
    evaluations: int,
    search: Search,
    say: Say,
    training: Training | None = None,
) -> Outcome | None:
    """Train, search, report, export and check; whatever exists already is used again.

    Args:
        populations: Folder for ``quickstart-models`` and the run ``quickstart``.
        evaluations: Search budget.
        search: Runs a session to its end; lets the caller show progress and handle signals.
        say: Told what happens.
        training: How to train the specialists; None: as always.

    Returns:
        What was found, or None when the search was interrupted.

    Raises:
        ConfigError: The budget is too small.
        DataError: scikit-learn is not installed.
        RunError: The folders hold something else, or the exported model scores differently.
    """
    if evaluations < LEAST_EVALUATIONS:
        raise ConfigError(
            f"--evaluations is {evaluations}, must be at least {LEAST_EVALUATIONS}: parents and "
            "simple averages are scored first"
        )
    clock = _Clock()
    models = populations / f"{NAME}-models"
    text = config_text().encode()
    if not prepare(models, text, training=training or Training(), say=say):
        say(f"using the trained models in {models}")
    clock.lap("train")
    folder = RunFolder(populations / NAME)
    if not _search(folder, models / CONFIG, evaluations, search, say):
        return None
    clock.lap("search")
    report, held_out = _score(folder, models)
    picture = folder.path / "front.png"
    draw(report, picture, TITLES)
    clock.lap("report")
    exported = _export(folder, models, report.knee, held_out, say)
    clock.lap("export")
    return Outcome(folder, models, report, picture, exported, clock.seconds())


def _search(
    folder: RunFolder, config_path: Path, evaluations: int, search: Search, say: Say
) -> bool:
    """Search until the budget is spent; return False when interrupted."""
    config = load_config(config_path, [f"budget.evaluations={evaluations}"])
    try:
        resolved, existed = open_or_create(config, config_path.resolve().parent, folder)
    except RunError as error:
        raise RunError(
            f"{error} (quickstart always searches {folder.path}: move that folder away)"
        ) from None
    if existed and folder.journal.exists():
        done = len(RunResults(folder).told)
        if done >= evaluations:
            say(f"{folder.path}: already searched, {done} evaluations")
            return True
        say(f"{folder.path}: continuing after {done} of {evaluations} evaluations")
    else:
        say(f"searching {evaluations} merges of {' and '.join(SKILLS)}; run folder {folder.path}")
    with Session(folder, config=resolved) as session:
        return search(session) != "interrupted"


def _score(folder: RunFolder, models: Path) -> tuple[Report, dict[int, dict[str, ScoreArray]]]:
    """Score what the report shows on held-out images; also return them by candidate."""
    results = RunResults(folder)
    origins = {i: str(event["origin"]) for i, event in results.asked.items()}
    by_origin = {origin: i for i, origin in reversed(origins.items())}
    front = [int(row["candidate"]) for row in results.front_members()]
    best = {skill: choose(results, f"best:{skill}")[0] for skill in SKILLS}
    knee = choose(results, "knee")[0]
    founders = [by_origin[origin] for origin in (*LABELS, AVERAGE)]
    ids = list(dict.fromkeys([*founders, *front]))
    scores = score_held_out(folder, [results.candidate(i).recipe for i in ids])
    held_out = dict(zip(ids, scores, strict=True))
    draws = resample(
        {skill: np.stack([row[skill] for row in scores]) for skill in SKILLS},
        [Objective("mean", dict.fromkeys(SKILLS, 1.0))],
        generator(results.config.seed, "quickstart", "bootstrap"),
    )

    def scored(candidate: int, label: str) -> ScoredModel:
        means = {
            skill: float(np.mean(held_out[candidate][skill], dtype=np.float64)) for skill in SKILLS
        }
        return ScoredModel(
            label=label,
            candidate=candidate,
            origin=origins[candidate],
            search=results.objectives_of(candidate),
            held_out=means,
            interval=draws.interval(ids.index(candidate), 0),
        )

    parents = tuple(scored(by_origin[origin], label) for origin, label in LABELS.items())
    best_parent = max(parents, key=lambda model: mean(model.search))
    report = Report(
        skills=("low", "high"),
        n_search={skill: len(read_images(models, skill, "search")) for skill in SKILLS},
        n_held_out={skill: len(held_out[knee][skill]) for skill in SKILLS},
        evaluations=len(results.told),
        parents=parents,
        average=scored(by_origin[AVERAGE], "uniform average"),
        best={skill: scored(i, f"best {skill}") for skill, i in best.items()},
        knee=scored(knee, "knee"),
        best_parent=best_parent,
        gain=draws.difference(ids.index(knee), ids.index(best_parent.candidate), 0),
        front=tuple(scored(i, str(i)) for i in front),
        everything=np.array([event["objectives"] for event in results.scored]),
    )
    return report, held_out


def _export(
    folder: RunFolder,
    models: Path,
    knee: ScoredModel,
    held_out: dict[int, dict[str, ScoreArray]],
    say: Say,
) -> dict[str, Any]:
    """Export the knee unless it is there, load it with transformers and compare every score.

    Raises:
        RunError: The loaded model gets another image right than the one that was scored.
    """
    digest = RunResults(folder).weights_digest(knee.candidate)
    out = folder.exports / "knee"
    if out.exists() and verify_digest(out) != digest:
        out = folder.exports / f"knee-{knee.candidate}"  # of an earlier, shorter search: keep it
    there = out.exists() and verify_digest(out) == digest
    if there:
        say(f"{out}: already exported")
    else:
        Exporter(folder).export(knee.candidate, out, verify=False)
    model = load_exported(out)
    accuracies: dict[str, float] = {}
    for skill in SKILLS:
        before = held_out[knee.candidate][skill]
        images = read_images(models, skill, "held-out")
        right = predict(model, images.pixel_values) == images.labels
        differs = np.flatnonzero(right != (before == 1.0))
        if len(differs):
            raise RunError(
                f"{out}: loaded with transformers, the model scores held-out image {differs[0]} "
                f"of {data_file(skill, 'held-out')} otherwise than the search's model did "
                f"({len(differs)} of {len(right)} differ). Please report this."
            )
        accuracies[skill] = float(right.mean())
    return {
        "folder": str(out),
        "candidate": knee.candidate,
        "weights_digest": digest,
        "held_out": {**accuracies, "mean": float(np.mean(list(accuracies.values())))},
        "matches": True,
        "written": not there,
    }


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name], self._last = now - self._last, now

    def seconds(self) -> dict[str, float]:
        rounded = {name: round(value, 2) for name, value in self._laps.items()}
        return {**rounded, "total": round(sum(self._laps.values()), 2)}
