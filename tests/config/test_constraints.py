"""The `constraints:` section: what it may say, and what is refused."""

from __future__ import annotations

import pytest

from evomerge.config.build import build_objectives
from evomerge.config.constraints import build_constraints, check_bound_sources, parse_bound
from evomerge.config.schema import parse_config
from evomerge.core.objective import Bound
from evomerge.errors import ConfigError


def config(*constraints, **changes):
    body = {
        "name": "run",
        "base_model": {"name": "base", "model": "base"},
        "models": [{"name": "x-7b", "model": "x"}, {"name": "y", "model": "y"}],
        "merge": "linear",
        "algorithm": "random",
        "tasks": [{"name": name, "evaluator": "python"} for name in ("math", "general")],
        "budget": {"evaluations": 4},
        "constraints": list(constraints),
    }
    return parse_config(body | changes, "c.yaml")


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        (0.7, Bound(0.7)),
        (1, Bound(1.0)),
        ("base", Bound(0.0, 1.0, "base")),
        ("0.95 * base", Bound(0.0, 0.95, "base")),
        ("0.95*x-7b", Bound(0.0, 0.95, "x-7b")),
        ("base - 0.02", Bound(-0.02, 1.0, "base")),
        ("2e-1 * base + 1e-3", Bound(0.001, 0.2, "base")),
        ("7b", Bound(0.0, 1.0, "7b")),
    ],
)
def test_bounds_are_numbers_or_relative_to_a_model(value, bound):
    assert parse_bound(value, "here") == bound
    assert parse_bound(bound.offset if bound.source is None else str(bound), "here") == bound


@pytest.mark.parametrize(
    "value", ["0.7", "", "* base", "base * 0.9", "0 * base", "base -", "1e999 * base"]
)
def test_other_texts_are_refused(value):
    with pytest.raises(ConfigError, match="here is"):
        parse_bound(value, "here")


def test_each_bound_of_an_item_is_a_constraint():
    made = build_constraints(
        config(
            {"task": "general", "at_least": "0.95 * base", "at_most": 0.9},
            {"tasks": {"math": 1.0, "general": 3.0}, "name": "both", "at_least": 0.5},
        )
    )
    assert [str(item) for item in made] == [
        "general >= 0.95 * base",
        "general <= 0.9",
        "both >= 0.5",
    ]
    assert made[2].measure.weights == {"math": 1.0, "general": 3.0}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"task": "generl", "at_least": 1}, "Did you mean 'general'"),
        ({"task": "general"}, "give `at_least`, `at_most` or both"),
        ({"at_least": 1}, "either `task` or `tasks`"),
        ({"task": "math", "tasks": {"math": 1.0}, "at_least": 1}, "either `task` or `tasks`"),
        ({"task": "math", "at_least": "x 7"}, r"constraints.0.at_least is 'x 7'"),
    ],
)
def test_wrong_items_are_refused(item, message):
    with pytest.raises(ConfigError, match=message):
        build_objectives(config(item))


def test_misspelt_keys_name_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'at_least'"):
        config({"task": "math", "at_leest": 1})


def test_bounds_refer_to_models_that_are_scored_as_founders():
    check_bound_sources(config({"task": "math", "at_least": "x-7b"}))
    with pytest.raises(ConfigError, match=r"'bse' is not a model of the search. Did you mean"):
        check_bound_sources(config({"task": "math", "at_least": "bse"}))
    with pytest.raises(ConfigError, match=r"set search.founders"):
        check_bound_sources(
            config({"task": "math", "at_least": "base"}, search={"founders": "none"})
        )
    dropped = config(
        {"task": "math", "at_least": "y"},
        transforms=[{"name": "iso_c", "of": ["y"], "keep_parents": False}],
    )
    with pytest.raises(ConfigError, match="'y' is not a model of the search"):
        check_bound_sources(dropped)


def test_a_run_without_constraints_has_the_header_it_always_had():
    assert "constraints" not in config().replay_part()
    assert "constraints" in config({"task": "math", "at_least": 0.1}).replay_part()
