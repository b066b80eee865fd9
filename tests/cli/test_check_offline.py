"""`check --offline` and `check --show-config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.command import assert_one_line

EXAMPLES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_right(path, evomerge):
    done = evomerge("check", path, "--offline")
    assert (done.code, done.messages) == (0, [])
    assert done.out == f"✓ {path}: the file is right; models and data were not looked at\n"


def test_models_and_data_need_not_exist(place, evomerge):
    place.put("models.0.model", "somewhere/else")
    place.put("tasks.0.evaluator", {"name": "exact_match", "examples": "none.jsonl"})
    place.write()
    assert json.loads(evomerge("check", "c.yaml", "--offline", "--json").out)["offline"]
    assert evomerge("check", "c.yaml").code == 3


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("merge.name", "tie", "Did you mean 'ties'"),
        ("merge.groups", "layers", "merge.groups"),
        ("merge.weights", {"values": [0.5]}, "1 values for 2 models"),
        ("algorithm", {"name": "nsga2", "popsize": 3}, "algorithm.popsize"),
        ("tasks.0.evaluator.name", "pyton", "Did you mean 'python'"),
        ("constraints", [{"task": "up", "at_least": "bas"}], "'bas' is not a model"),
        ("transforms", [{"name": "iso_c", "of": ["z"]}], "'z' is none of `models:`"),
        ("objectives", [{"name": "a", "tasks": {"ups": 1.0}}], "'ups' is not a task"),
    ],
)
def test_mistakes_are_named(key, value, says, place, evomerge):
    place.put(key, value)
    place.write()
    assert_one_line(evomerge("check", "c.yaml", "--offline"), 2, (says,))


def test_fixed_weights_may_name_transformed_models(place, evomerge):
    place.put("transforms", [{"name": "tsv_m", "keep_parents": False}])
    place.put("merge.weights", {"values": [0.5, 0.5]})
    place.put("merge.lambda_", "search")
    place.write()
    done = evomerge("check", "c.yaml", "--offline")
    assert done.code == 0, done.err


@pytest.mark.parametrize("options", [(), ("--offline",)])
def test_every_default_is_shown_and_the_result_is_a_config(options, place, evomerge):
    place.write()
    done = evomerge("check", "c.yaml", "--show-config", *options)
    assert (done.code, done.messages) == (0, [])
    shown = yaml.safe_load(done.out)
    assert shown["merge"]["lambda_"] == 1.0
    assert shown["merge"]["weights"] == {"low": -1.0, "high": 1.5, "initial": 0.5}
    assert shown["runtime"]["max_attempts"] == 3
    assert shown["search"]["tell_order"] == "asked"
    place.text = done.out
    place.write()
    again = evomerge("check", "c.yaml", "--show-config", *options)
    assert yaml.safe_load(again.out) == shown
    done = evomerge("check", "c.yaml", "--show-config", "--json", *options)
    assert json.loads(done.out) == shown
