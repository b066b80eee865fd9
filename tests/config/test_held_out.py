"""Test examples that the search scores as well are refused."""

import json
import shutil
import sys

import pytest

from evomerge.config.schema import parse_config
from evomerge.config.tasks import build_tasks
from evomerge.errors import ConfigError

ROWS = [{"prompt": f"{i} and", "options": ["a", "b"], "gold": i % 2} for i in range(10)]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Build the tasks of a config whose first task has these search and held-out keys."""
    others = [row | {"prompt": f"{row['prompt']} else"} for row in ROWS]
    for name, rows in (("e", ROWS), ("other", others), ("shuffled", others[2:] + ROWS[3:4])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    shutil.copy(tmp_path / "e.jsonl", tmp_path / "copy.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "e.jsonl")
    (tmp_path / "book.txt").write_text("to be or not to be " * 100)
    (tmp_path / "held_out_scorer.py").write_text("def f(subject, **arguments): return [0.0]\n")
    monkeypatch.delitem(sys.modules, "held_out_scorer", raising=False)  # of an earlier folder

    def placed(keys):
        return {k: str(tmp_path / v) if k in ("examples", "path") else v for k, v in keys.items()}

    def build(evaluator, held_out, *more):
        items = [{"name": "t", "evaluator": placed(evaluator), "held_out": placed(held_out)}]
        items += [{"name": f"u{i}", "evaluator": placed(keys)} for i, keys in enumerate(more)]
        body = {
            "name": "c", "models": ["m"], "merge": "linear", "algorithm": "random",
            "tasks": items, "budget": {"evaluations": 1},
        }  # fmt: skip
        return build_tasks(parse_config(body, "c.yaml"))

    return build


CHOICE = {"name": "multiple_choice", "examples": "e.jsonl"}
BOOK = {"name": "perplexity", "examples": "book.txt", "window": 16}
CODE = {"name": "python", "function": "held_out_scorer:f", "n": 1, "path": "."}


@pytest.mark.parametrize(
    ("evaluator", "held_out", "shared"),
    [
        (CHOICE | {"rows": [0, 6]}, {"rows": [4, 10]}, "rows 4..5 of"),
        (CHOICE, {"rows": [8, 10]}, "rows 8..9 of"),
        (CHOICE | {"rows": [2, 3]}, {"rows": None}, "rows 2..2 of"),
        (CHOICE, {"batch_size": 4}, "rows 0..9 of"),
        (CHOICE, {"examples": "copy.jsonl"}, "rows 0..9 of"),
        (CHOICE, {"examples": "link.jsonl"}, "rows 0..9 of"),
        (BOOK | {"rows": [0, 4]}, {"rows": [3, 5]}, "rows 3..3 of"),
        (BOOK | {"rows": [0, 4]}, {"rows": [4, 8], "window": 8}, "rows 4..7 of"),
        (CODE | {"arguments": {"part": 1}}, {"arguments": {"part": 1}}, "the same arguments"),
        (CODE | {"arguments": {"part": 1}}, {"n": 2}, "the same arguments"),
    ],
)
def test_held_out_examples_of_the_search_are_refused(evaluator, held_out, shared, tasks):
    with pytest.raises(ConfigError, match=r"tasks\.0\.held_out: (shares|scores) ") as refused:
        tasks(evaluator, held_out)
    assert shared in str(refused.value)


@pytest.mark.parametrize(
    ("evaluator", "held_out"),
    [
        (CHOICE | {"rows": [0, 6]}, {"rows": [6, 10]}),
        (CHOICE, {"examples": "other.jsonl"}),
        (BOOK | {"rows": [0, 4]}, {"rows": [4, 8]}),
        (BOOK | {"rows": [0, 4]}, {"rows": [8, 10], "window": 8}),
        (CODE | {"arguments": {"part": 1}}, {"arguments": {"part": 2}}),
    ],
)
def test_other_examples_are_held_out(evaluator, held_out, tasks):
    assert set(tasks(evaluator, held_out).held_out) == {"t"}


def test_examples_of_another_task_are_searched_on_too(tasks):
    evaluator, held_out = CHOICE | {"rows": [0, 5]}, {"rows": [5, 10]}
    assert tasks(evaluator, held_out, CHOICE | {"rows": [0, 5]}).held_out
    with pytest.raises(ConfigError, match=r"shares rows 5\.\.6 of .* of task 'u0'"):
        tasks(evaluator, held_out, CHOICE | {"rows": [3, 7]})


def test_a_copy_of_an_example_in_another_file_is_refused(tasks):
    with pytest.raises(ConfigError, match=r"1 test examples .* search of task 't', such as n"):
        tasks(CHOICE, {"examples": "shuffled.jsonl"})


def test_an_empty_section_is_refused(tasks):
    with pytest.raises(ConfigError, match=r"tasks\.0\.held_out: is empty"):
        tasks(CHOICE, {})
