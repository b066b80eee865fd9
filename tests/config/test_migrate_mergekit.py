"""mergekit-evolve's configs become ours; what they cannot carry over is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evomerge.config.migrate_mergekit import migrate_mergekit_evolve
from evomerge.config.schema import parse_config
from evomerge.errors import ConfigError

# The general form of docs/evolve.md, every documented key in it.
DOCUMENTED = """
genome:
  models: [org/math-7b, "org/chat-7b@abc123", org/code-7b+org/code-lora]
  merge_method: dare_ties
  base_model: org/base-7b
  tokenizer_source: null
  layer_granularity: 8
  normalize: false
  allow_negative_weights: false
  smooth: false
tasks:
  - name: my_task
    weight: 1.0
    metric: "acc,none"
  - name: my_other_task
    weight: 0.5
    metric: "exact_match,strict-match"
  - bare_task
"""


def migrate(tmp_path, text=DOCUMENTED, *, n_layers=32, evaluations=None, **genome):
    body = yaml.safe_load(text)
    body["genome"] |= genome
    file = tmp_path / "evolve.yml"
    file.write_text(yaml.safe_dump(body))
    found = migrate_mergekit_evolve(
        file, tmp_path, name="old", n_layers=n_layers, evaluations=evaluations
    )
    config = parse_config(yaml.safe_load(found.text(tmp_path, "mergekit-evolve")), "test")
    return config, " ".join(found.all_remarks)


def test_the_documented_form_is_carried_over(tmp_path):
    config, remarks = migrate(tmp_path)
    assert config.name == "old"
    assert config.base_model.model == "org/base-7b"
    assert [(m.model, m.revision, m.lora) for m in config.models] == [
        ("org/math-7b", None, None),
        ("org/chat-7b", "abc123", None),
        ("org/code-7b", None, "org/code-lora"),
    ]
    assert config.merge["name"] == "dare_ties"
    assert config.merge["groups"] == "block:4"
    assert config.merge["weights"] == {"low": 0.0, "high": 1.5, "initial": pytest.approx(1 / 3)}
    assert config.merge["density"]["initial"] == 1.0
    assert config.merge["divisor"] == "none"  # normalize: false
    assert config.merge["compat"] == "mergekit"
    assert config.algorithm == {"name": "cma_es"}
    assert config.budget.evaluations == 100
    tasks = {task.name: task.evaluator for task in config.tasks}
    assert tasks["my_other_task"]["metric"] == "exact_match,strict-match"
    assert tasks["bare_task"]["metric"] == "acc,none"
    assert all(task["name"] == "lm_eval" for task in tasks.values())
    assert all(task["apply_chat_template"] for task in tasks.values())
    assert config.objectives[0].tasks == {"my_task": 1.0, "my_other_task": 0.5, "bare_task": 1.0}
    assert "One density for all models" in remarks
    assert "4 blocks of 8 of 32 layers" in remarks


def test_common_settings_of_tasks_are_carried_over(tmp_path):
    extra = "num_fewshot: 5\nlimit: 50\nshuffle: true\napply_chat_template: false\nunheard: 1\n"
    config, remarks = migrate(tmp_path, DOCUMENTED + extra, evaluations=40)
    task = config.tasks[0].evaluator
    assert (task["num_fewshot"], task["limit"], task["apply_chat_template"]) == (5, 50, False)
    assert config.budget.evaluations == 40
    assert "shuffle: true is not carried over" in remarks
    assert "unheard: not understood" in remarks


@pytest.mark.parametrize(
    ("method", "normalize", "key", "value"),
    [
        ("ties", None, "divisor", "signed_weights"),
        ("ties", False, "divisor", "none"),
        ("task_arithmetic", None, "normalize", False),
        ("task_arithmetic", True, "normalize", True),
        ("linear", None, "normalize", True),
    ],
)
def test_normalize_means_what_it_meant(method, normalize, key, value, tmp_path):
    config, _ = migrate(tmp_path, merge_method=method, normalize=normalize)
    assert config.merge[key] == value
    is_bounded = normalize is not False and (method, normalize) != ("task_arithmetic", None)
    assert config.merge["weights"]["high"] == (1.0 if is_bounded else 1.5)


def test_negative_weights_are_searched_where_they_were(tmp_path):
    config, _ = migrate(tmp_path, allow_negative_weights=True)
    assert config.merge["weights"]["low"] == -1.0


def test_smooth_becomes_a_curve(tmp_path):
    config, _ = migrate(tmp_path, smooth=True)
    assert config.merge["groups"] == "layer"
    assert config.merge["weights"]["curve"] == config.merge["density"]["curve"] == 4


@pytest.mark.parametrize(("granularity", "groups"), [(8, "module"), (0, "kind")])
def test_filters_become_the_nearest_grouping(granularity, groups, tmp_path):
    changes = {"filters": ["self_attn", "mlp"], "layer_granularity": granularity}
    config, remarks = migrate(tmp_path, n_layers=None, **changes)
    assert config.merge["groups"] == groups
    assert "self_attn, mlp and all else" in remarks


def test_without_granularity_there_is_one_group(tmp_path):
    config, _ = migrate(tmp_path, n_layers=None, layer_granularity=0)
    assert config.merge["groups"] == "global"


def test_two_models_are_slerped_and_more_go_to_nlerp(tmp_path):
    two = {"merge_method": "slerp", "models": ["org/a", "org/b"]}
    config, remarks = migrate(tmp_path, **two)
    assert config.base_model is None
    assert config.merge == {
        "name": "slerp",
        "groups": "block:4",
        "t": [0.0, 1.0],
        "compat": "mergekit",
    }
    assert "base_model org/base-7b has no part" in remarks
    config, remarks = migrate(tmp_path, merge_method="slerp")
    assert config.merge["name"] == "nlerp"
    assert "picked two of them" in remarks


@pytest.mark.parametrize("method", ["dare_ties", "linear"])
def test_a_base_among_the_models_is_given_once(method, tmp_path):
    models = ["org/base-7b", "org/math-7b"]
    config, _ = migrate(tmp_path, merge_method=method, models=models)
    assert config.base_model.model == "org/base-7b"
    assert [model.model for model in config.models] == ["org/math-7b"]
    assert config.merge["weights"]["initial"] == (0.5 if method == "linear" else 1.0)


def test_weights_of_metrics_where_less_is_better_turn_positive(tmp_path):
    text = DOCUMENTED.replace("weight: 0.5", "weight: -0.5").replace("weight: 1.0", "weight: 0")
    config, remarks = migrate(tmp_path, text)
    assert config.objectives[0].tasks == {"my_other_task": 0.5, "bare_task": 1.0}
    assert "evomerge negates those metrics itself" in remarks


def test_layers_are_counted_in_a_model_that_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("math").mkdir()
    Path("math/config.json").write_text(json.dumps({"num_hidden_layers": 16}))
    config, _ = migrate(tmp_path, n_layers=None, models=["math", "org/chat"])
    assert config.models[0].model == "./math"
    assert config.merge["groups"] == "block:2"


@pytest.mark.parametrize(
    ("genome", "n_layers", "says"),
    [
        ({}, None, "give --layers N"),
        ({}, 30, "8 does not divide 30 layers"),
        ({"merge_method": "della"}, 32, "'della' is not one of mergekit-evolve's"),
        ({"base_model": None}, 32, "dare_ties needs one"),
        ({"models": []}, 32, "expected a list of models"),
        ({"layer_granularity": "all"}, 32, "not a number"),
    ],
)
def test_refusals_name_the_key(genome, n_layers, says, tmp_path):
    with pytest.raises(ConfigError) as refused:
        migrate(tmp_path, n_layers=n_layers, **genome)
    assert says in str(refused.value)
    assert "evolve.yml: genome." in str(refused.value)


def test_another_file_is_refused(tmp_path):
    file = tmp_path / "merge.yml"
    file.write_text("merge_method: linear\nmodels: []\n")
    with pytest.raises(ConfigError, match="'genome' is missing"):
        migrate_mergekit_evolve(file, tmp_path, name="x", n_layers=None, evaluations=None)
