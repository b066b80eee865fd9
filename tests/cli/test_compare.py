"""`evomerge compare`: only runs on the same examples, and differences with intervals."""

import json
import shutil

import pytest

from tests.cli.command import assert_one_line


@pytest.fixture
def other(place, evomerge):
    """A run of the same config with another seed."""
    place.put("seed", 11)
    place.put("budget.evaluations", 14)
    place.write()
    done = evomerge("search", "c.yaml", "--run", "populations/other")
    assert done.code == 0, done.err
    return place.folder / "populations" / "other"


def test_two_runs_side_by_side(place, evomerge, other):
    done = evomerge("compare", "tiny", "other", "--json")
    assert (done.code, done.messages) == (0, [])
    facts = json.loads(done.out)
    mine, theirs = facts["runs"]
    assert (mine["cost"], theirs["cost"]) == (6, 14)
    status = json.loads(evomerge("status", "tiny", "--json").out)
    assert {k: v["value"] for k, v in mine["best"].items()} == {
        k: v["value"] for k, v in status["best"].items()
    }
    assert [row["cost"] for row in mine["curve"]] == [1.5, 3, 4.5, 6]
    assert [row["cost"] for row in theirs["curve"]] == [1.5, 3, 4.5, 6, 14]
    volumes = [row["hypervolume"] for row in theirs["curve"]]
    assert volumes == sorted(volumes)
    for row in facts["differences"]:
        assert row["low"] <= row["difference"] <= row["high"]
    assert [row["what"] for row in facts["differences"]] == [
        "best up", "best down", "knee up", "knee down",
    ]  # fmt: skip
    assert evomerge("compare", "tiny", "other", "--json").out == done.out, "the same every time"
    text = evomerge("compare", "tiny", "other").out
    assert "hypervolume, over one reference point for both" in text
    assert "after 1.5 evaluations" in text
    assert "tiny minus other, with paired 95 % intervals" in text


def test_a_run_is_no_better_than_itself(place, evomerge):
    shutil.copytree(place.run, place.folder / "copy")
    facts = json.loads(evomerge("compare", "tiny", "copy", "--json").out)
    assert {(d["difference"], d["low"], d["high"]) for d in facts["differences"]} == {(0, 0, 0)}
    said = evomerge("compare", "tiny", "copy").out
    assert said.count("the same on every example") == 4
    shutil.copytree(place.run, place.folder / "elsewhere" / "tiny")
    said = evomerge("compare", "tiny", "elsewhere/tiny").out
    assert "populations/tiny minus elsewhere/tiny" in said, "names that tell them apart"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("tasks.0.evaluator.arguments.target", 0.2, "tasks.up.evaluator.arguments.target is 0.1"),
        ("tasks.1.name", "sideways", "tasks.down"),
        ("objectives", [{"name": "both", "tasks": {"up": 1.0, "down": 1.0}}], "objectives.both"),
    ],
)
def test_runs_on_other_examples_are_refused(key, value, says, place, evomerge):
    place.put(key, value)
    place.put("budget.evaluations", 2)
    place.write()
    assert evomerge("search", "c.yaml", "--run", "other").code == 0
    done = evomerge("compare", "tiny", "other")
    assert_one_line(done, 3, ("were not scored alike", says), "RunError")


def test_a_run_without_scores_is_refused(place, evomerge):
    (place.run / "journal.jsonl").unlink()
    done = evomerge("compare", "tiny", "tiny")
    assert_one_line(done, 3, ("no candidate has been scored yet",), "RunError")
