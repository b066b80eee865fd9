"""`track` and `optuna` write elsewhere, never into the run's own files."""

import json

import pytest

from tests.cli.command import assert_one_line, tree


def test_optuna_writes_a_study_and_adds_what_is_new(place, evomerge):
    before = tree(place.run)
    done = evomerge("optuna", "tiny", "--storage", "x.journal", "--study", "mine")
    assert done.code == 0, done.err
    assert done.out == "optuna: 6 results sent, 6 in all; study 'mine' in x.journal\n"
    done = evomerge("optuna", "tiny", "--storage", "x.journal", "--study", "mine", "--json")
    (row,) = json.loads(done.out)
    assert (row["sent"], row["has"], row["tracker"]) == (0, 6, "optuna")
    assert tree(place.run) == before
    assert evomerge("optuna", "tiny").code == 0
    assert set(tree(place.run)) - set(before) == {"trackers/optuna.journal"}
    done = evomerge("resume", "tiny", "--evaluations", "9", "--json")
    assert done.code == 0, done.err
    done = evomerge("optuna", "tiny", "--json")
    assert json.loads(done.out)[0]["sent"] == 3


def test_track_sends_to_the_named_tracker(place, evomerge):
    done = evomerge("track", "tiny", "--to", "optuna", "--set", "storage=y.journal")
    assert done.code == 0, done.err
    assert done.out.startswith("optuna: 6 results sent, 6 in all")
    assert (place.folder / "y.journal").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["track", "tiny"], 2, "has no `trackers:`"),
        (["track", "tiny", "--to", "tensorbored"], 2, "Did you mean 'tensorboard'?"),
        (["track", "tiny", "--to", "optuna", "--set", "file=x"], 2, "not a parameter of 'optuna'"),
        (["track", "tiny", "--set", "folder=x"], 2, "name it with --to"),
        (["track", "tiny", "--to", "optuna", "--set", "x"], 2, "--set x: expected KEY=VALUE"),
        (["track", "tinny"], 3, "Did you mean 'tiny'?"),
        (["optuna", "tiny", "--storage", "no/such/x.journal"], 2, "no folder no/such"),
        (["optuna", "tiny", "--storage", "nonsense://x"], 3, "cannot be opened"),
        (["optuna", "tiny", "--storage", "mysql://me:sesame@h/x"], 2, "holds a password"),
    ],
)
def test_what_cannot_be_sent(arguments, code, says, place, evomerge):
    done = evomerge(*arguments)
    assert_one_line(done, code, (says,))
    assert "sesame" not in done.err


def test_a_search_with_trackers_in_its_config(place, evomerge):
    place.put("name", "tracked")
    place.put("trackers", ["optuna"])
    place.write()
    done = evomerge("search", "c.yaml")
    assert done.code == 0, done.err
    assert done.messages == []
    done = evomerge("track", "tracked", "--json")
    (row,) = json.loads(done.out)
    assert (row["sent"], row["has"]) == (0, 6)


def test_a_tracker_that_fails_is_one_warning(place, evomerge):
    place.put("name", "tracked")
    place.put("trackers", [{"name": "optuna", "storage": "no/such/x.journal"}])
    place.write()
    done = evomerge("search", "c.yaml")
    assert done.code == 0
    (line,) = done.messages
    assert line.startswith("warning: tracker 'optuna' stopped, the search goes on: storage: there")
    events = place.folder.joinpath("populations/tracked/events.log").read_text()
    assert events.count("stopped, the search goes on") == 1


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ([{"name": "nothing"}], "trackers.0.name: 'nothing' is not a known tracker"),
        ([{"name": "optuna", "storage": "mysql://me:sesame@h/x"}], "write storage: $NAME"),
        ([{"name": "wandb", "mode": "sideways"}], "trackers.0.mode"),
    ],
)
def test_wrong_trackers_are_refused_by_check(section, says, place, evomerge):
    place.put("trackers", section)
    place.write()
    done = evomerge("check", "c.yaml", "--offline")
    assert done.code == 2
    assert says in done.out + done.err
    assert "sesame" not in done.out + done.err
