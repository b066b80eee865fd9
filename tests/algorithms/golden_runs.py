"""Small seeded searches whose proposals are pinned in golden/*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evomerge.algorithms  # noqa: F401  (registers the built-ins)
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.seeding import generator
from evomerge.testing import linear_problem

FOLDER = Path(__file__).parent / "golden"

# File stem -> algorithm and config. Every registered algorithm needs at least one.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "amortized_pareto": ("amortized_pareto", {"samples": 12, "batch_size": 6}),
    "amortized_pareto_bayesian": (
        "amortized_pareto",
        {"variant": "bayesian", "batch_size": 5, "generations": 20, "link": "sigmoid"},
    ),
    "amortized_pareto_nested": (
        "amortized_pareto",
        {"variant": "nested", "samples_per_merge": 7, "batch_size": 4, "link": "identity"},
    ),
    "auto": ("auto", {}),
    "auto_front": ("auto", {"front_share": 0.5, "optimism": 2.0, "weights": {"second": 1.0}}),
    "cma_es": ("cma_es", {}),
    "m2n2": ("m2n2", {"population_size": 6}),
    "m2n2_variant": (
        "m2n2",
        {
            "population_size": 4,
            "alpha": 0.5,
            "attraction": False,
            "angle_scope": "segment",
            "max_segments": 3,
        },
    ),
    "nevergrad": ("nevergrad", {"optimizer": "TwoPointsDE", "weights": {"second": 1.0}}),
    "nsga2": ("nsga2", {"population_size": 6}),
    "optuna": ("optuna", {"sampler": "TPESampler", "options": {"n_startup_trials": 5}}),
    "random": ("random", {}),
    "tpe": ("tpe", {"startup_evaluations": 5}),
    "basis_refresh": ("basis_refresh", {"iterations": 2}),
    "cycle_qd": ("cycle_qd", {"cells": 5}),
    "evo_merging": ("evo_merging", {"population_size": 6, "budget_hint": 30, "first": "weights"}),
    "frank_wolfe": ("frank_wolfe", {"iterations": 3}),
    "ga": ("ga", {"population_size": 5}),
    "map_elites": ("map_elites", {"bins": 4, "split_point": False}),
    "m2n2_warm_up": ("m2n2", {"population_size": 6, "warm_up": 12}),
    "m2n2_mutation": ("m2n2", {"population_size": 6, "mutation": 0.05, "max_noise": 5}),
    "genome": ("genome", {"population_size": 6, "mutation_probability": 0.5}),
    "genome_plus": ("genome_plus", {"population_size": 4}),
    "greedy_soup": ("greedy_soup", {}),
    "model_swarms": ("model_swarms", {"population_size": 5}),
    "pso_merging": ("pso_merging", {"moves": 3}),
    "ribs": ("ribs", {"emitter": "IsoLineEmitter", "emitters": 2, "batch_size": 4}),
}


def trajectory(stem: str, n_proposals: int = 30) -> list[dict[str, Any]]:
    """Return the proposals of a run with three in flight, every seventh of which fails."""
    name, config = RUNS[stem]
    problem = linear_problem()
    algorithm = search_algorithms.get(name)(**config)
    algorithm.start(problem.space, problem.objectives, generator(5, "golden", stem))
    for number, founder in enumerate(problem.space.founders):
        candidate = Candidate(number, founder.recipe)
        algorithm.tell(Evaluation(candidate, problem.scores(founder.recipe)))
    proposals: list[dict[str, Any]] = []
    waiting: list[Candidate] = []
    while len(proposals) < n_proposals:
        proposal = algorithm.ask() if len(waiting) < 3 else None
        if proposal is None:
            candidate = waiting.pop(1 if len(waiting) > 1 else 0)
            failed = candidate.id % 7 == 0
            scores = {} if failed else problem.scores(candidate.recipe)
            algorithm.tell(Evaluation(candidate, scores, "planned failure" if failed else None))
            continue
        number = len(problem.space.founders) + len(proposals)
        waiting.append(Candidate(number, proposal.recipe, proposal.parents))
        body = proposal.recipe.to_json()
        proposals.append(
            {
                "parents": list(proposal.parents),
                "origin": proposal.origin,
                "breaks": body.get("breaks"),
                "weights": body["params"]["weights"],
            }
        )
    return proposals


def read(stem: str) -> list[dict[str, Any]]:
    """Return the pinned proposals of a run."""
    body: dict[str, Any] = json.loads((FOLDER / f"{stem}.json").read_text())
    proposals: list[dict[str, Any]] = body["proposals"]
    return proposals


def write(stem: str) -> None:
    """Pin the proposals of a run."""
    name, config = RUNS[stem]
    rows = ",\n".join("  " + json.dumps(item) for item in trajectory(stem))
    head = f'{{"algorithm": {json.dumps(name)}, "config": {json.dumps(config)}, "proposals": [\n'
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{stem}.json").write_text(f"{head}{rows}\n]}}\n")
