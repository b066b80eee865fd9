"""benchmarks/scratch_recipes.py runs, and what it evolves is what its recipes say."""

import json
import sys

import numpy as np

from benchmarks import scratch_recipes
from benchmarks.m2n2_digits import load_digits_parts


def test_a_short_evolution_prints_its_figures(monkeypatch, capsys):
    arguments = ["scratch_recipes.py", "--evaluations", "60", "--seeds", "1", "--max-noise", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    scratch_recipes.main()
    found = json.loads(capsys.readouterr().out)
    assert found["most_terms"] == 4
    assert len(found["per_seed"]) == len(found["ancestors_of_champion"]) == 1
    assert 0.0 <= found["mean_test_accuracy"] <= 1.0


def test_another_run_computes_the_same_weights():
    fitness, _ = load_digits_parts()
    one, other = (scratch_recipes.ScratchRun(fitness, 0, 4) for _ in range(2))
    recipes = [one.evaluate(number) for number in range(40)]
    last = next(recipe for recipe in reversed(recipes) if recipe.ancestors)
    assert np.array_equal(one.weights(last), other.weights(last))
