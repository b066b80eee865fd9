"""mergenetic's configs become ours."""

from __future__ import annotations

import pytest
import yaml

from evomerge.config.migrate_mergenetic import migrate_mergenetic
from evomerge.config.schema import parse_config
from evomerge.errors import ConfigError

STORED = {"path_to_store_config": "configs", "path_to_store_merged_model": "models"}
# The three forms of its experiments and of its wizard's configs.
ONE = STORED | {
    "run_id": "ro-math",
    "base_model": "org/ro-7b",
    "models": {"ro": "org/math-7b"},
    "langs": ["ro"],
    "tasks": {"search": {"ro": "gsm8k-ro", "base": "gsm8k-ro"}, "test": {"ro": "gsm8k-ro"}},
    "metric": "exact_match",
    "mode": "gmpirt",
    "bench": "gsm8k",
    "task_type": "FG_MATH",
    "dtype": "float16",
    "device": "cuda:2",
    "seed": 420,
    "n_samples": 10,
    "pop_size": 5,
    "n_iter": 4,
    "eval_batch_size": 64,
    "additional_templates_folder": "lm_tasks",
}
SEVERAL = ONE | {
    "base_model": "org/base-7b",
    "models": {"it": "org/it-7b", "de": "org/de-7b", "en": "org/base-7b"},
    "tasks": {
        "search": {"it": "arc_it", "de": "arc_de"},
        "test": {"it": "arc_it_test", "de": "arc_de"},
    },
}
LISTED = {
    "run_id": "multi",
    "base_model": "org/base-7b",
    "models": ["org/it-7b", "org/de-7b"],
    "tasks": ["arc_it", "arc_de"],
    "metric": "acc",
    "n_samples": 20,
    "load_in_4bit": True,
}


def migrate(tmp_path, body, tasks=()):
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump(body, sort_keys=False))
    found = migrate_mergenetic(file, tmp_path, name="x", tasks=list(tasks), evaluations=None)
    config = parse_config(yaml.safe_load(found.text(tmp_path, "mergenetic")), "test")
    return config, " ".join(found.all_remarks)


def test_one_model_is_slerped_with_the_base(tmp_path):
    (tmp_path / "lm_tasks").mkdir()
    config, remarks = migrate(tmp_path, ONE)
    assert (config.name, config.seed) == ("ro-math", 420)
    assert config.base_model.model == "org/ro-7b"
    assert [(m.name, m.model) for m in config.models] == [("ro", "org/math-7b")]
    assert config.merge["name"] == "slerp"
    assert config.merge["t"] == {"low": 0.0, "high": 1.0, "curve": 5}
    assert config.algorithm == {"name": "nsga2", "population_size": 5}
    assert config.budget.evaluations == 20
    (task,) = config.tasks
    assert task.evaluator | {"include_path": None} == {
        "name": "lm_eval",
        "task": "gsm8k-ro",
        "metric": "exact_match",
        "limit": 10,
        "batch_size": 64,
        "include_path": None,
    }
    assert str(tmp_path / "lm_tasks") == task.evaluator["include_path"]
    assert config.runtime.device == "cuda:2"
    assert "gmpirt estimated accuracy" in remarks
    assert "Tested on the rest of ro there" in remarks
    assert "path_to_store_config: left out" in remarks


def test_several_models_go_to_dare_ties_and_every_task_is_an_objective(tmp_path):
    config, remarks = migrate(tmp_path, SEVERAL)
    assert config.merge["name"] == "dare_ties"
    assert [(m.name, m.model) for m in config.models] == [("it", "org/it-7b"), ("de", "org/de-7b")]
    assert [task.name for task in config.tasks] == ["it", "de"]
    assert config.tasks[0].held_out == {"task": "arc_it_test"}
    assert config.objectives == []
    assert "there is no lm_tasks near old.yaml" in remarks


def test_lists_of_models_and_tasks_are_read_too(tmp_path):
    config, remarks = migrate(tmp_path, LISTED)
    assert [task.evaluator["task"] for task in config.tasks] == ["arc_it", "arc_de"]
    assert config.budget.evaluations == 200
    assert "load_in_4bit: not carried over" in remarks


def test_tasks_of_its_own_code_need_replacing(tmp_path):
    body = {key: value for key, value in ONE.items() if key != "tasks"}
    body["datasets"] = {"ro": "data/gsm8k.csv"}
    with pytest.raises(ConfigError, match="give --task FILE"):
        migrate(tmp_path, body)
    task = {"name": "own", "evaluator": {"name": "exact_match", "examples": "own.jsonl"}}
    config, _ = migrate(tmp_path, body, [task])
    assert [item.name for item in config.tasks] == ["own"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": None}, "expected a list or mapping of models"),
        ({"base_model": None}, "base_model is missing"),
        ({"models": ["org/ro-7b"]}, "there is none but the base"),
        ({"pop_size": "many"}, "pop_size is 'many', expected a number"),
        ({"tasks": {"test": {}}}, "expected a list, or mappings"),
        ({"tasks": {"search": {"base": "x"}}}, "names no task"),
    ],
)
def test_refusals_name_the_key(change, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        migrate(tmp_path, ONE | change)
