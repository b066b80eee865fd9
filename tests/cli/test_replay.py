"""`evomerge replay`: the journal's scores can be had again, and a difference is seen."""

import json

import pytest

from tests.cli.command import assert_one_line, tree
from tests.cli.test_bad_runs import rechained
from tests.e2e.tiny_run import journal


@pytest.mark.parametrize("candidate", [0, 5])
def test_a_candidate_comes_out_the_same(candidate, place, evomerge):
    before = tree(place.run)
    done = evomerge("replay", "tiny", "--candidate", candidate, "--json")
    assert (done.code, done.messages) == (0, [])
    facts = json.loads(done.out)
    assert facts["equal"]
    assert facts["weights"] == facts["recorded_weights"] != ""
    assert [(task["task"], task["n"]) for task in facts["tasks"]] == [("up", 12), ("down", 12)]
    assert tree(place.run) == before
    text = evomerge("replay", "tiny", "--candidate", candidate).out
    assert text.count("✓") == 3


def test_another_recipe_is_seen_in_weights_and_scores(place, evomerge):
    def swap(events):
        asked = {event["id"]: event for event in events if event["kind"] == "asked"}
        asked[3]["recipe"], asked[3]["digest"] = asked[2]["recipe"], asked[2]["digest"]

    rechained(swap)(place)
    done = evomerge("replay", "tiny", "--candidate", 3)
    assert done.code == 3
    assert done.out.startswith("✗ weights: ")
    assert "of 12 examples score otherwise, by up to" in done.out
    assert not json.loads(evomerge("replay", "tiny", "--candidate", 3, "--json").out)["equal"]


def test_a_race_s_candidate_is_scored_where_it_was(place, evomerge):
    place.put("racing", {"name": "paired", "first": 4, "growth": 2.0})
    place.put("budget.evaluations", 12)
    place.write()
    assert evomerge("search", "c.yaml", "--run", "raced").code == 0
    told = [event for event in journal(place.folder / "raced") if event["kind"] == "told"]
    part = next(event for event in told if "examples" in event)
    done = evomerge("replay", "raced", "--candidate", part["id"], "--json")
    assert done.code == 0, done.out
    assert sum(task["n"] for task in json.loads(done.out)["tasks"]) == part["examples"]


def test_what_has_no_scores_is_refused(place, evomerge):
    done = evomerge("replay", "tiny", "--candidate", 77)
    assert_one_line(done, 2, ("candidate 77 does not exist",), "ConfigError")
    place.put("tasks.0.evaluator.function", "tiny_scorer:fails")
    place.put("tasks.0.evaluator.arguments", {"n": 12})
    place.put("budget.evaluations", 2)
    place.write()
    evomerge("search", "c.yaml", "--run", "failing")
    done = evomerge("replay", "failing", "--candidate", 0)
    assert_one_line(done, 2, ("failed, so it has no scores",), "ConfigError")


def test_a_changed_model_is_refused(place, evomerge):
    place.write()
    assert evomerge("search", "c.yaml", "--run", "own").code == 0
    data = bytearray(place.weights("x").read_bytes())
    data[-1] ^= 1
    place.weights("x").write_bytes(data)
    done = evomerge("replay", "own", "--candidate", 0)
    assert_one_line(done, 3, (str(place.model("x")),), "SourceError")
