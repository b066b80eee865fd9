"""`evomerge schema` describes exactly what config files may hold."""

import json
from pathlib import Path

import pytest
import yaml

from evomerge.config.json_schema import config_schema

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator():
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def digits():
    return yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_configs_are_valid(path, validator):
    errors = [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))]
    assert errors == []


@pytest.mark.parametrize(
    "change",
    [
        {"budgget": {"evaluations": 3}},
        {"budget": {"evaluations": 0}},
        {"budget": {}},
        {"models": []},
        {"algorithm": "cma"},
        {"algorithm": {"name": "nsga2", "popsize": 4}},
        {"merge": "tie"},
        {"merge": {"name": "ties", "density": "all"}},
        {"merge": {"name": "ties", "groups": "layers"}},
        {"merge": {"any_of": ["ties"]}},
        {"merge": {"name": "layer_sequence", "repeat": 2}},
        {"racing": {"name": "paired", "tests": "normal"}},
        {"tasks": [{"name": "a", "evaluator": {"name": "lm_eval"}}]},
        {"tasks": [{"name": "a b", "evaluator": {"name": "lm_eval", "task": "arc"}}]},
        {"transforms": ["tsv"]},
        {"search": {"founders": "some"}},
    ],
    ids=str,
)
def test_mistakes_are_seen(change, validator):
    assert list(validator.iter_errors(digits() | change))


@pytest.mark.parametrize(
    "change",
    [
        {"merge": "linear"},
        {
            "merge": {
                "name": "ties",
                "groups": "block:4",
                "weights": {"curve": 3},
                "density": [0, 1],
            }
        },
        {"merge": {"groups": "layer", "any_of": ["linear", {"name": "ties", "density": "search"}]}},
        {"merge": {"name": "layer_sequence", "repeats": 2}},
        {"racing": "paired"},
        {"transforms": [{"name": "tsv_m", "of": ["a"], "share": "full"}, "iso_c"]},
        {"tasks": [{"name": "a", "evaluator": {"name": "lm_eval", "task": "arc", "rows": [0, 9]}}]},
    ],
    ids=str,
)
def test_every_form_of_a_section_is_known(change, validator):
    assert [error.message for error in validator.iter_errors(digits() | change)] == []


def test_the_command_prints_it_and_writes_it(evomerge, tmp_path):
    printed = evomerge("schema")
    assert (printed.code, printed.err) == (0, "")
    done = evomerge("schema", "--out", tmp_path / "s.json", "--json")
    assert json.loads(done.out) == {"file": str(tmp_path / "s.json")}
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(printed.out)
    refused = evomerge("schema", "--out", tmp_path / "missing" / "s.json")
    assert refused.code == 3
    assert "cannot be written" in refused.err
