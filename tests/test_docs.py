"""The documents say what the code does."""

import re
from pathlib import Path

import pytest
import yaml

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.algorithms.races.race import races
from evomerge.cli.main import app
from evomerge.config.construct import construct
from evomerge.config.schema import parse_config
from evomerge.evaluation.evaluator import evaluators
from evomerge.merging.operator import merge_operators
from evomerge.merging.transform import delta_transforms
from evomerge.trackers.tracker import trackers
from tests.docs.pages import PAGES

ROOT = Path(__file__).parents[1]
REGISTRIES = (merge_operators, delta_transforms, search_algorithms, evaluators, races, trackers)
METHODS = (ROOT / "docs" / "methods.md").read_text()
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_every_built_in_has_a_row_and_every_row_a_built_in(registry):
    rows = set(re.findall(r"^\| `(\w+)`", METHODS, flags=re.MULTILINE))
    assert set(registry.names()) <= rows
    everything = {n for r in REGISTRIES for n in r.names()}
    assert rows <= everything


def test_the_readme_config_is_valid(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        config = parse_config(yaml.safe_load(block), "README.md")
        construct(search_algorithms, config.algorithm, "algorithm", tmp_path)
        merge_operators.get(config.merge["name"])
        for task in config.tasks:
            construct(evaluators, task.evaluator, "tasks", tmp_path)
            if task.held_out is not None:
                construct(evaluators, {**task.evaluator, **task.held_out}, "tasks", tmp_path)


def test_the_readme_names_every_verb_and_every_link_exists():
    verbs = {command.callback.__name__ for command in app.registered_commands}
    for verb in verbs:
        assert f"`{verb}" in README or f"evomerge {verb}" in README, verb
    for document in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document}: {link}"


def test_the_comparison_counts_what_is_registered():
    counts = f"{len(merge_operators.names())}, and {len(delta_transforms.names())} transforms"
    comparison = (ROOT / "docs" / "comparison.md").read_text()
    for document in (README, comparison):
        assert counts in document
        assert re.search(
            rf"^\| algorithms \| \[?{len(search_algorithms.names())}\b", document, re.M
        )
