"""A task's examples are split by what they hold, and nothing leaks from part to part."""

import json
import sys

import numpy as np
import pytest

from evomerge.config.schema import SplitsConfig, parse_config
from evomerge.config.splits import split_task
from evomerge.config.tasks import build_tasks
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import evaluators, example_digests
from evomerge.evaluation.part import Part, whole_of

SPLITS = {"search": 0.5, "validation": 0.25, "test": 0.25}


def row(i, prompt="{} and"):
    return {"prompt": prompt.format(i), "options": ["a", "b"], "gold": i % 2}


@pytest.fixture
def build(tmp_path):
    def write(name, rows):
        text = "".join(json.dumps(item) + "\n" for item in rows)
        (tmp_path / name).write_text(text)

    write("e.jsonl", [row(i) for i in range(60)])
    write("backwards.jsonl", [row(i) for i in range(59, -1, -1)] + [row(3)] * 5)
    write("other.jsonl", [row(i, "so {}") for i in range(40)])

    def build(*tasks):
        items = []
        for i, (file, keys) in enumerate(tasks):
            evaluator = {"name": "multiple_choice", "examples": str(tmp_path / file)}
            held_out = keys.get("held_out")
            if held_out is not None:
                held_out = held_out | {"examples": str(tmp_path / held_out["examples"])}
                keys = keys | {"held_out": held_out}
            items.append({"name": f"t{i}", "evaluator": evaluator, **keys})
        body = {
            "name": "c", "models": ["m"], "merge": "linear", "algorithm": "random",
            "tasks": items, "budget": {"evaluations": 1},
        }  # fmt: skip
        return build_tasks(parse_config(body, "c.yaml"))

    return build


def test_every_example_is_in_one_part(build):
    tasks = build(("e.jsonl", {"splits": SPLITS}))
    parts = [tasks.search["t0"], tasks.validation["t0"], tasks.held_out["t0"]]
    digests = [set(part.example_digests()) for part in parts]
    assert sum(map(len, digests)) == len(set.union(*digests)) == 60
    assert tasks.sizes == {"t0": len(digests[0])}
    assert all(isinstance(part, Part) and whole_of(part) is whole_of(parts[0]) for part in parts)
    assert parts[0].auto_class == "AutoModelForCausalLM"
    assert parts[0].normalise == "none"
    assert not hasattr(parts[0], "meter")


def test_order_and_copies_do_not_move_an_example(build):
    one = build(("e.jsonl", {"splits": SPLITS}))
    other = build(("backwards.jsonl", {"splits": SPLITS}))
    for part in ("search", "validation", "held_out"):
        first, second = (getattr(tasks, part)["t0"] for tasks in (one, other))
        assert set(first.example_digests()) == set(second.example_digests())


def test_a_part_scores_what_the_whole_scores(build):
    part = build(("e.jsonl", {"splits": SPLITS})).search["t0"]
    asked = []

    class Whole:
        def evaluate(self, subject, positions):
            asked.append(positions.tolist())
            return positions.astype(np.float32)

    stand_in = Part(Whole(), part.kept)
    assert stand_in.evaluate(None).tolist() == part.kept.tolist()
    assert stand_in.evaluate(None, np.array([2, 0])).tolist() == [part.kept[2], part.kept[0]]
    with pytest.raises(IndexError):
        stand_in.evaluate(None, np.array([len(part.kept)]))


def test_without_splits_all_examples_are_searched_on(build):
    tasks = build(("e.jsonl", {}))
    assert (tasks.sizes, tasks.validation, tasks.held_out) == ({"t0": 60}, {}, {})


def test_held_out_beside_splits_is_the_test_set(build):
    splits = {"search": 0.6, "validation": 0.4}
    tasks = build(("e.jsonl", {"splits": splits, "held_out": {"examples": "other.jsonl"}}))
    assert tasks.held_out["t0"].n_examples() == 40
    with pytest.raises(ConfigError, match="two sets of test examples"):
        build(("e.jsonl", {"splits": SPLITS, "held_out": {"examples": "other.jsonl"}}))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        # rows of the split task's other parts
        (
            [("e.jsonl", {"splits": {"search": 0.5, "validation": 0.5},
                          "held_out": {"examples": "backwards.jsonl"}})],
            r"test examples of task 't0' are also in",
        ),
        # another task that searches on all of the same examples
        (
            [("e.jsonl", {"splits": {"search": 0.5, "test": 0.5}}), ("backwards.jsonl", {})],
            r"test examples of task 't0' are also in the search of task 't1'",
        ),
        # the same examples under other shares
        (
            [("e.jsonl", {"splits": SPLITS}),
             ("backwards.jsonl", {"splits": {"search": 0.2, "validation": 0.2, "test": 0.6}})],
            r"validation examples of task 't1' are also in the search of task 't0'",
        ),
    ],
)  # fmt: skip
def test_examples_that_leak_are_refused(build, tasks, message):
    with pytest.raises(ConfigError, match=message):
        build(*tasks)


def test_tasks_that_share_examples_may_share_splits(build):
    tasks = build(("e.jsonl", {"splits": SPLITS}), ("backwards.jsonl", {"splits": SPLITS}))
    assert set(tasks.validation) == {"t0", "t1"}


def test_validation_is_for_all_tasks(build):
    with pytest.raises(ConfigError, match=r"'t1' has no validation examples while 't0' has"):
        build(("e.jsonl", {"splits": SPLITS}), ("other.jsonl", {}))


def test_a_part_without_examples_is_refused(build):
    splits = {"search": 0.9999, "test": 0.0001}
    with pytest.raises(ConfigError, match=r"tasks\.0\.splits: none of 60 examples fell to 'test'"):
        build(("e.jsonl", {"splits": splits}))


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"search": 0.5, "test": 0.4}, "add up to 0.9"),
        ({"search": 0.0, "test": 1.0}, "search"),
        ({"validation": 0.5, "test": 0.5}, "search"),
        ({"search": 0.5, "tets": 0.5}, "tets"),
    ],
)
def test_wrong_shares_are_refused(build, splits, message):
    with pytest.raises(ConfigError, match=message):
        build(("e.jsonl", {"splits": splits}))


def test_an_evaluator_that_says_nothing_of_its_examples_cannot_be_split():
    class Silent:
        auto_class = "AutoModel"

        def n_examples(self):
            return 9

    with pytest.raises(ConfigError, match=r"^here: Silent has no example_digests.*held_out"):
        split_task("here", Silent(), SplitsConfig(**SPLITS))


def test_examples_that_prompts_may_show_are_no_test(build, monkeypatch):
    imported = "lm_eval" in sys.modules  # by another test of this process
    plain = evaluators.get("multiple_choice")
    shown = frozenset(example_digests(build(("e.jsonl", {})).search["t0"])[:30])
    monkeypatch.setattr(plain, "shown_digests", lambda self: shown, raising=False)
    with pytest.raises(ConfigError, match="few-shot"):
        build(("e.jsonl", {"splits": SPLITS}))
    assert ("lm_eval" in sys.modules) == imported


def test_a_header_without_splits_is_what_it_was(build):
    body = {
        "name": "c", "models": ["m"], "merge": "linear", "algorithm": "random",
        "tasks": [{"name": "t", "evaluator": "multiple_choice"}], "budget": {"evaluations": 1},
    }  # fmt: skip
    assert "splits" not in parse_config(body, "c").replay_part()["tasks"][0]
    body["tasks"][0]["splits"] = SPLITS
    assert parse_config(body, "c").replay_part()["tasks"][0]["splits"] == SPLITS
