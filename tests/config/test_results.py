"""What is read from a journal."""

import pytest

from evomerge.config.results import RunResults
from tests.report.synthetic import Plan, write_run


@pytest.mark.parametrize("n_examples", [10, 49, 3000])
def test_a_budget_spent_example_by_example_is_spent(n_examples, tmp_path):
    results = RunResults(write_run(tmp_path / "run", Plan(n=4)))
    results.header = results.header | {"tasks": {"a": n_examples}}
    numbers = range(n_examples)
    results.asked = {number: {"examples": f"1:{number:016x}"} for number in numbers}
    results.told = [{"id": number, "examples": 1} for number in numbers]
    assert results.done == 1.0
