"""`evomerge init` writes configs that `check` accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from evomerge.cli.init import asked
from evomerge.config.starter import Answers
from evomerge.errors import ConfigError
from tests.cli.command import assert_one_line

EVOLVE = """
genome: {models: [org/a, org/b], merge_method: ties, base_model: org/base, layer_granularity: 8}
tasks: [{name: arc_easy, weight: 2.0}, my_task]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current folder with two kinds of examples."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(10)]
    Path("math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"{i}?", "options": ["a", "b"], "gold": 0} for i in range(600)]
    Path("choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_options_become_a_commented_config(evomerge):
    done = evomerge(
        "init", "--base", "./base", "--model", "./math", "--model", "org/chat",
        "--task", "math.jsonl", "--task", "choice.jsonl", "--task", "arc_easy",
        "--evaluations", 60, "--out", "configs/first.yaml",
    )  # fmt: skip
    assert (done.code, done.err, done.out) == (
        0,
        "",
        "config -> configs/first.yaml\nnext: evomerge check configs/first.yaml\n",
    )
    text = Path("configs/first.yaml").read_text()
    assert text.count("# ") >= 7
    config = yaml.safe_load(text)
    assert config["name"] == "first"
    assert config["base_model"] == "../base"
    assert config["models"] == [{"model": "../math"}, {"model": "org/chat"}]
    assert config["merge"]["name"] == "task_arithmetic"
    assert config["algorithm"] == {"name": "auto", "front_share": 0.25}
    assert config["budget"] == {"evaluations": 60}
    math, choice, arc = config["tasks"]
    examples = "../math.jsonl"
    assert math["evaluator"] == {"name": "exact_match", "examples": examples, "rows": [0, 5]}
    assert math["held_out"] == {"rows": [5, 10]}
    assert choice["evaluator"]["name"] == "multiple_choice"
    assert (choice["evaluator"]["rows"], choice["held_out"]["rows"]) == ([0, 200], [200, 600])
    assert arc["evaluator"] == {"name": "lm_eval", "task": "arc_easy", "limit": 200}
    assert evomerge("check", "configs/first.yaml", "--offline").code == 0


def test_a_default_that_is_given_changes_nothing(evomerge):
    given = (
        "init",
        "--model",
        "a/a",
        "--model",
        "b/b",
        "--task",
        "math.jsonl",
        "--task",
        "arc_easy",
    )
    assert evomerge(*given, "--algorithm", "auto", "--out", "-") == evomerge(*given, "--out", "-")


def test_defaults_without_a_base_and_with_one_task(evomerge):
    done = evomerge(
        "init", "--model", "a/a", "--model", "b/b", "--task", "math.jsonl", "--out", "-"
    )
    config = yaml.safe_load(done.out)
    assert (config["merge"]["name"], config["algorithm"]["name"]) == ("linear", "auto")
    assert config["name"] == "search"
    assert list(Path().glob("*.yaml")) == []


def test_json_says_what_was_written(evomerge):
    done = evomerge("init", "--base", "b/b", "--model", "a/a", "--task", "arc_easy", "--json")
    assert json.loads(done.out) == {"file": "search.yaml", "remarks": []}
    assert done.err == ""


def test_an_existing_file_stays(evomerge):
    Path("search.yaml").write_text("mine")
    done = evomerge("init", "--base", "b/b", "--model", "a/a", "--task", "arc_easy")
    assert_one_line(done, 2, ("search.yaml: exists already",), "ConfigError")
    assert Path("search.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "give --model twice or more, or once with --base"),
        (("--model", "a/a"), "give --model twice"),
        (("--base", "b/b", "--model", "a/a"), "give at least one --task"),
        (("--base", "b/b", "--model", "a/a", "--task", "no.jsonl"), "there is no such file"),
        (
            ("--base", "b/b", "--model", "a/a", "--task", "x", "--merge", "tie"),
            "Did you mean 'ties'",
        ),
        (("--model", "a/a", "--model", "b/b", "--task", "x", "--merge", "ties"), "base_model"),
        (("--base", "b/b", "--model", "a/a", "--task", "x", "--algorithm", "cma"), "cma_es"),
        (("--base", "b/b", "--model", "a/a", "--task", "odd.jsonl"), "suggests no evaluator"),
        (("--layers", "4"), "--layers belongs to"),
        (("--json", "--out", "-"), "--out - writes nothing"),
        (("--from-mergenetic", "e.yml", "--from-mergekit-evolve", "e.yml"), "give one of them"),
        (("--from-mergekit-evolve", "e.yml", "--merge", "ties"), "--merge: come from the file"),
        (("--from-mergekit-evolve", "none.yml"), "none.yml: cannot be read"),
        (("--from-mergenetic", "e.yml"), "is this a mergenetic"),
    ],
)
def test_refusals_write_nothing(options, says, evomerge):
    Path("odd.jsonl").write_text("not json\n")
    Path("e.yml").write_text(EVOLVE)
    assert_one_line(evomerge("init", *options), 2, (says,), "ConfigError")
    assert not Path("search.yaml").exists()


def test_conversion_says_in_file_and_on_stderr_what_is_different(evomerge):
    Path("e.yml").write_text(EVOLVE)
    convert = ("init", "--from-mergekit-evolve", "e.yml", "--layers", 32)
    done = evomerge(*convert, "--out", "new.yaml")
    assert (done.code, done.out) == (
        0,
        "config -> new.yaml\nnext: evomerge check new.yaml\n",
    )
    text = Path("new.yaml").read_text()
    said = [line.removeprefix("! ") for line in done.messages]
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert len(said) > 3
    assert all(line in comments for line in said)
    assert yaml.safe_load(text)["name"] == "e"
    assert evomerge("check", "new.yaml", "--offline").code == 0
    done = evomerge(*convert, "--out", "other.yaml", "--json", "--name", "mine")
    assert json.loads(done.out)["remarks"] == said
    assert yaml.safe_load(Path("other.yaml").read_text())["name"] == "mine"


def test_a_terminal_is_asked_for_what_is_missing():
    typed = iter(["./base", "./a ./b", "arc_easy math.jsonl", "50"])
    answers = asked(Answers(), lambda _: next(typed))
    assert answers == Answers(
        base="./base", models=("./a", "./b"), tasks=("arc_easy", "math.jsonl"), evaluations=50
    )
    assert asked(answers, lambda _: pytest.fail("nothing is missing")) == answers
    typed = iter(["x", "many"])
    with pytest.raises(ConfigError, match="no number of evaluations"):
        asked(Answers(models=("a", "b")), lambda _: next(typed))
