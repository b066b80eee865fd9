"""The problems and figures of benchmarks/search_quality.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.problems import digits_pair, synthetic_experts
from benchmarks.problems.synthetic_experts import best_coefficients
from benchmarks.quality_figures import Results, example_evaluation_ratio, mean_ranks, table
from benchmarks.quality_run import RunResult, run_search
from benchmarks.search_quality import PROBLEMS, problem_file
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.core.recipe import Recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return synthetic_experts.build(tmp_path_factory.mktemp("models"))


def best_recipe(problem) -> Recipe:
    space = problem.search_space(search_algorithms.get("cma_es"))
    params = dict(space.fixed) | {"weights": best_coefficients()}
    return Recipe(space.operator, space.sources, params, space.grouping, None, space.settings)


def test_the_known_optimum_scores_one_on_every_example(problem):
    recipe = best_recipe(problem)
    for part in ("search", "held-out"):
        for task, scores in problem.scores(recipe, part).items():
            assert scores.min() > 0.999, (part, task)
    assert problem.optimum == 1.0


def test_the_known_optimum_lies_in_the_search_space(problem):
    space = problem.search_space(search_algorithms.get("cma_es"))
    assert space.dimension == best_coefficients().size
    assert space.encode(best_recipe(problem)) is not None


def test_founders_are_far_from_the_known_optimum(problem):
    space = problem.search_space(search_algorithms.get("cma_es"))
    means = [
        np.mean([s.mean() for s in problem.scores(founder.recipe, "search").values()])
        for founder in space.founders
    ]
    assert len(means) >= 18  # the base, the experts, their mean
    assert max(means) < 0.5


@pytest.mark.skipif(bool(digits_pair.is_available()), reason="needs the reference pair")
def test_the_pair_merges_to_what_its_parents_score(tmp_path):
    built = digits_pair.build(tmp_path)
    first = built.search_space(search_algorithms.get("m2n2")).founders[0].recipe
    scores = built.scores(first, "search")
    assert {task: len(own) for task, own in scores.items()} == built.sizes
    assert scores["low"].mean() > 0.9
    assert scores["high"].mean() == 0.0


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_file_says_whether_it_can_be_built(name):
    module = problem_file(name)
    assert name == module.NAME
    assert isinstance(module.is_available(), str)


@pytest.mark.parametrize("name", ["m2n2", "ga", "map_elites", "cma_es", "random"])
def test_a_run_is_repeatable_and_keeps_to_its_budget(problem, name):
    first, second = (run_search(problem, name, 3, 40) for _ in range(2))
    assert first.note == ""
    assert first.steps == second.steps
    assert first.hypervolumes == second.hypervolumes
    assert first.spent == first.budget == 40 * problem.n_examples
    assert len(first.checkpoints) == len(first.hypervolumes) == 10
    assert first.checkpoints[-1] == first.budget
    found = [step[1] for step in first.steps]
    assert found == sorted(found)  # the best on the search examples so far
    assert first.steps[0][0] == problem.n_examples


def test_an_algorithm_that_refuses_a_problem_is_noted(problem):
    result = run_search(problem, "nevergrad", 0, 10, {"optimizer": "NoSuch"})
    assert "NoSuch" in result.note
    assert result.steps == []


def run_with(problem: str, algorithm: str, seed: int, steps: list[tuple[int, float]]) -> RunResult:
    checkpoints = list(range(10, 101, 10))
    curve = [(when, value, value) for when, value in steps]
    return RunResult(problem, algorithm, seed, 100, 100, curve, checkpoints, [0.0] * 10)


@pytest.fixture
def results() -> Results:
    return Results(
        [
            run_with("p", "cma_es", 0, [(1, 0.1), (80, 0.5)]),
            run_with("p", "cma_es", 1, [(1, 0.1), (90, 0.7)]),
            run_with("p", "fast", 0, [(1, 0.2), (10, 0.6), (50, 0.8)]),
            run_with("p", "fast", 1, [(1, 0.2), (20, 0.6)]),
            RunResult("p", "no", 0, 100, note="refused"),
        ]
    )


def test_ratio_is_the_share_of_the_budget_that_matches_the_other(results):
    assert example_evaluation_ratio(results, "p", "fast", "cma_es") == 0.2
    assert example_evaluation_ratio(results, "p", "cma_es", "cma_es") == 0.9
    assert example_evaluation_ratio(results, "p", "cma_es", "fast") is None
    assert example_evaluation_ratio(results, "p", "auto", "cma_es") is None


def test_ranks_put_the_best_first_and_refusals_last(results):
    ranks = mean_ranks(results)
    assert {name: rank["rank"] for name, rank in ranks.items()} == {
        "fast": 1.0,
        "cma_es": 2.0,
        "no": 3.0,
    }
    assert all(rank["low"] <= rank["rank"] <= rank["high"] for rank in ranks.values())
    lines = table(results, ranks).splitlines()
    assert lines[2].startswith("| `fast` | 1.00 [1.00, ")
    assert lines[-1].endswith("| – |")


def test_the_command_prints_every_figure(tmp_path):
    command = [sys.executable, "benchmarks/search_quality.py", "--problems", "synthetic_experts"]
    command += ["--algorithms", "m2n2", "random", "--seeds", "1", "--budget", "25", "--jobs", "1"]
    command += ["--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures["mean_rank"]) == {"m2n2", "random"}
    assert set(figures["auto_example_evaluation_ratio"]["synthetic_experts"]) == {"cma_es", "m2n2"}
    curve = figures["curves"]["synthetic_experts"]["m2n2"]
    assert {len(column) for column in curve.values()} == {10}
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    assert "`m2n2`" in (tmp_path / "out" / "table.md").read_text()
    with (tmp_path / "out" / "runs.jsonl").open("a") as kept:
        kept.write('{"problem": "cut off by a kill')
    again = subprocess.run(
        [*command, "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    assert "held out" not in again.stderr, "nothing is run again"
    assert json.loads(again.stdout.splitlines()[-1])["mean_rank"] == figures["mean_rank"]
    assert len((tmp_path / "out" / "runs.jsonl").read_text().splitlines()) == 2
