"""Every YAML block of the documents is read by the code that would read it."""

from pathlib import Path

import pytest
import yaml

from evomerge.config.mergekit_slices import read_slices
from evomerge.config.mergekit_yaml import read_mergekit
from evomerge.config.migrate_mergekit import migrate_mergekit_evolve
from evomerge.config.offline import check_offline
from evomerge.config.schema import parse_config
from tests.docs.pages import PAGES, blocks, name_of

# What a block that shows a part of a config leaves out.
REST = {
    "name": "block",
    "base_model": "./base",
    "models": [{"name": "math", "model": "./math"}, {"name": "code", "model": "./code"}],
    "merge": "task_arithmetic",
    "algorithm": "random",
    "tasks": [
        {"name": name, "evaluator": {"name": "perplexity", "examples": "x.jsonl"}} for name in "ab"
    ],
    "budget": {"evaluations": 1},
}
BLOCKS = [
    pytest.param(page, block, id=f"{name_of(page)}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_a_block_is_understood(page, block, tmp_path):
    body = yaml.safe_load(block)
    if "genome" in body:
        file = tmp_path / "evolve.yml"
        file.write_text(block)
        found = migrate_mergekit_evolve(
            file, tmp_path, name="old", n_layers=32, evaluations=None
        ).text(tmp_path, "mergekit-evolve")
        body = yaml.safe_load(found)
    if "merge_method" in body:
        file = tmp_path / "mergekit.yml"
        file.write_text(block)
        assert read_slices(file) or read_mergekit(file)
        return
    check_offline(parse_config(REST | body, name_of(page)), Path(tmp_path))
