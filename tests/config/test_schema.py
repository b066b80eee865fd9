"""The config file: what is accepted, how `--set` changes it, and what is refused."""

import math

import pytest

from evomerge.config.schema import RunConfig, apply_override, load_config, parse_config
from evomerge.config.yaml_file import dump_yaml, parse_mapping
from evomerge.errors import ConfigError


def body(**changes):
    return {
        "name": "run",
        "models": ["a", {"model": "b", "name": "bee"}],
        "merge": "ties",
        "algorithm": {"name": "random"},
        "tasks": [{"name": "t", "evaluator": "python"}],
        "budget": {"evaluations": 10},
    } | changes


def test_short_forms_are_spelled_out():
    config = parse_config(body(base_model="org/base"), "c.yaml")
    assert config.base_model.model == "org/base"
    assert [m.model for m in config.models] == ["a", "b"]
    assert config.models[1].name == "bee"
    assert config.merge == {"name": "ties"}
    assert config.tasks[0].evaluator == {"name": "python"}


def test_defaults():
    config = parse_config(body(), "c.yaml")
    assert (config.version, config.seed, config.base_model) == (1, 0, None)
    assert (config.search.tell_order, config.search.founders) == ("asked", "all")
    assert (config.runtime.executor, config.runtime.device) == ("in-process", "auto")
    assert config.objectives == []
    assert config.budget.seconds is None


def test_a_dumped_config_parses_to_itself():
    config = parse_config(body(objectives=[{"name": "o", "tasks": {"t": 1}}]), "c.yaml")
    text = dump_yaml(config.model_dump(mode="json"))
    assert parse_config(parse_mapping(text, "again"), "again") == config


def test_replay_part_leaves_out_what_may_change():
    used = body(transforms=["tsv_m"], constraints=[{"task": "t", "at_least": 0.5}], racing="paired")
    part = parse_config(used, "c.yaml").replay_part()
    assert set(RunConfig.model_fields) - set(part) == {"name", "budget", "runtime", "trackers"}


def test_replay_part_leaves_out_how_a_server_is_reached():
    def part(url, model):
        server = {"url": url, "attempts": 3}
        evaluator = {"name": "judge", "server": server, "model": model}
        evaluator["candidate"] = {"install": "recipe", "server": {"url": url}}
        evaluator["arguments"] = {"server": "kept"}
        task = {"name": "t", "evaluator": evaluator, "held_out": {"server": server}}
        return parse_config(body(tasks=[task]), "c.yaml").replay_part()

    assert part("http://a", "m") == part("http://b", "m")
    assert part("http://a", "m") != part("http://a", "n")
    assert part("http://a", "m")["tasks"][0]["evaluator"]["arguments"] == {"server": "kept"}


def test_integers_are_fine_where_floats_are_wanted():
    assert parse_config(body(budget={"evaluations": 1, "seconds": 60}), "c").budget.seconds == 60.0


def test_frozen():
    config = parse_config(body(), "c.yaml")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeed": 1}, "c.yaml: unknown key 'seeed'. Did you mean 'seed'?"),
        ({"budget": {"evaluation": 1}}, "unknown key 'budget.evaluation'.*'evaluations'"),
        ({"models": [{"model": "a", "lore": "b"}]}, "unknown key 'models.0.lore'.*'lora'"),
        ({"base_model": {"model": "a", "rev": "b"}}, "unknown key 'base_model.rev'"),
        ({"runtime": {"worker": 3}}, "unknown key 'runtime.worker'.*'workers'"),
        (
            {"tasks": [{"name": "t", "evaluator": {"name": "e"}, "splits": {"serach": 1}}]},
            "unknown key 'tasks.0.splits.serach'. Did you mean 'search'.*validation, test",
        ),
        (
            {"tasks": [{"name": "t", "evaluator": {"name": "e"}, "splits": {"search": 0.5}}]},
            "c.yaml: tasks.0.splits: the shares add up to 0.5",
        ),
        ({"objectives": [{"name": "o", "task": {}}]}, "'objectives.0.task'.*'tasks'"),
        ({"name": None}, "c.yaml: name: .*valid string"),
        ({"seed": True}, "c.yaml: seed: .*integer"),
        ({"seed": "7"}, "c.yaml: seed: .*integer"),
        ({"models": [5]}, "c.yaml: models.0: Input should be a mapping, got 5"),
        ({"budget": []}, "c.yaml: budget: Input should be a mapping"),
        ({"seed": 2**70}, "c.yaml: seed is too large"),
        ({"merge": {"name": "ties", "a": [{"b": -math.inf}]}}, "c.yaml: merge.a.0.b is -inf"),
        ({"budget": {"evaluations": 1, "seconds": math.nan}}, "budget.seconds is nan"),
    ],
)
def test_what_is_wrong_is_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        parse_config(body(**changes), "c.yaml")


def test_a_misspelt_key_is_named_before_the_one_that_is_missing_for_it():
    wrong = body()
    wrong["algoritm"] = wrong.pop("algorithm")
    with pytest.raises(ConfigError, match=r"unknown key 'algoritm'. Did you mean 'algorithm'\?"):
        parse_config(wrong, "c.yaml")


@pytest.mark.parametrize("name", ["a", "A-1", "run_2.b", "0"])
def test_names_that_make_folders(name):
    assert parse_config(body(name=name), "c.yaml").name == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "a\n", "ä", "a\x00"])
def test_names_that_do_not(name):
    with pytest.raises(ConfigError, match=r"c.yaml: name"):
        parse_config(body(name=name), "c.yaml")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("name=x=y", ("name",), "x=y"),
        ("merge.density=[0.1, 0.5]", ("merge", "density"), [0.1, 0.5]),
        ("budget.seconds=1.5", ("budget", "seconds"), 1.5),
        ("runtime.workers=3", ("runtime", "workers"), 3),
        ("tasks.0.evaluator.n=4", ("tasks", 0, "evaluator", "n"), 4),
        ("models.1.name=c", ("models", 1, "name"), "c"),
        ("base_model.revision=main", ("base_model", "revision"), "main"),
        ("algorithm.sigma=", ("algorithm", "sigma"), None),
        ("seed='7'", ("seed",), "7"),
    ],
)
def test_set_changes_one_key(override, path, value):
    changed = body(base_model="base")
    apply_override(changed, override)
    found = changed
    for part in path:
        found = found[part]
    assert found == value


def test_set_spells_out_a_short_form_first():
    changed = body(base_model="base")
    apply_override(changed, "merge.groups=layer")
    apply_override(changed, "base_model.revision=main")
    assert changed["merge"] == {"name": "ties", "groups": "layer"}
    assert changed["base_model"] == {"model": "base", "revision": "main"}


def test_set_reaches_into_models_in_their_short_form():
    changed = body()
    apply_override(changed, "models.0.name=first")
    assert changed["models"][0] == {"model": "a", "name": "first"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "--set seed: expected KEY.KEY=VALUE"),
        ("=1", "expected KEY.KEY=VALUE"),
        ("a..b=1", "expected KEY.KEY=VALUE"),
        (".a=1", "expected KEY.KEY=VALUE"),
        ("tasks.9.name=x", "'9' is not one of 0..0"),
        ("tasks.-1.name=x", "'-1' is not one of 0..0"),
        ("tasks.t.name=x", "'t' is not one of 0..0"),
        ("budget.evaluations.x=1", "budget.evaluations has no keys"),
        ("seed={", "--set seed={: line 1"),
        ("seed=*a", "anchors and aliases"),
    ],
)
def test_a_set_that_cannot_be_is_refused(override, says):
    with pytest.raises(ConfigError, match=says):
        apply_override(body(), override)


def test_overrides_apply_in_order(tmp_path):
    (tmp_path / "c.yaml").write_text(dump_yaml(body()))
    config = load_config(tmp_path / "c.yaml", ["seed=1", "merge.groups=layer", "seed=2"])
    assert config.seed == 2
    assert config.merge == {"name": "ties", "groups": "layer"}


def test_the_algorithm_is_auto_unless_said_otherwise():
    given = body()
    given.pop("algorithm", None)
    assert parse_config(given, "c.yaml").algorithm == {"name": "auto"}
