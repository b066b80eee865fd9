"""`status` says what the search itself would say."""

import json

import pytest

from evomerge.cli.search import closing_line
from evomerge.config.schema import RuntimeConfig
from evomerge.config.session import with_runtime
from evomerge.config.workers import read_run_config
from evomerge.storage.run_store import RunFolder
from tests.cli.command import assert_one_line
from tests.cli.test_bad_runs import rechained
from tests.e2e.tiny_run import journal


@pytest.fixture
def status(evomerge):
    return lambda run: json.loads(evomerge("status", run, "--json").out)


def test_a_warm_start_is_done_when_its_own_budget_is_spent_too(place, evomerge, status):
    place.config = place.models.config(budget={"evaluations": 4})
    place.write()
    done = evomerge("search", "c.yaml", "--run", "populations/warm", "--warm-start", "tiny")
    assert done.code == 0, done.err
    facts = status("warm")
    assert (facts["state"], facts["done"], facts["budget"]) == ("done", 10, 10)
    place.folder.joinpath("populations/tiny").rename(place.folder / "old")
    place.folder.joinpath("populations/warm").rename(place.run)
    rechained(lambda events: events.__delitem__(slice(-1, None)))(place)
    facts = status("tiny")
    assert (facts["state"], facts["done"], facts["budget"]) == ("interrupted", 9, 10)


@pytest.mark.parametrize("founders", ["all", "parents", "none"])
@pytest.mark.parametrize("evaluations", [2, 12])
def test_hypervolume_is_that_of_the_search(founders, evaluations, place, evomerge, status):
    place.put("search.founders", founders)
    place.put("budget.evaluations", evaluations)
    place.write()
    done = evomerge("search", "c.yaml", "--run", "own", "--json")
    assert done.code == 0, done.err
    volume = json.loads(done.out)["hypervolume"]
    assert status("own")["hypervolume"] == volume
    n_founders = journal(place.folder / "own")[0]["founders"]
    assert (volume is None) == (n_founders > evaluations)


def test_hypervolume_waits_for_founders_that_were_not_even_asked(place, status):
    rechained(lambda events: events.__delitem__(slice(3, None)))(place)  # two asked, none told
    assert status("tiny")["hypervolume"] is None
    assert status("tiny")["state"] == "interrupted"


def test_resume_elsewhere_takes_the_number_of_workers_there(place, evomerge, monkeypatch):
    monkeypatch.setattr(
        "evomerge.config.session.default_workers", lambda executor, _: 8 if executor == "ray" else 1
    )
    done = evomerge("resume", "tiny", "--executor", "ray")  # finished: no worker is started
    assert done.messages == ["warning: search.look_ahead is 6: at most 6 of 8 workers will be busy"]
    assert evomerge("resume", "tiny", "--executor", "ray", "--workers", "6").messages == []
    done = evomerge("resume", "tiny", "--executor", "ray", "--workers", "7", "--json")
    assert [json.loads(line) for line in done.messages][1:] == [
        {"warning": "search.look_ahead is 6: at most 6 of 7 workers will be busy"}
    ]


def test_a_number_of_workers_that_was_chosen_is_kept(place, monkeypatch):
    monkeypatch.setattr(
        "evomerge.config.session.default_workers", lambda executor, _: 8 if executor == "ray" else 1
    )
    stored = read_run_config(RunFolder(place.run))
    chosen = stored.model_copy(update={"runtime": RuntimeConfig(workers=4)})
    assert with_runtime(chosen, executor="ray", is_resolved=True).runtime.workers == 4
    assert with_runtime(stored, executor="ray", is_resolved=True).runtime.workers == 8
    assert with_runtime(stored, executor="in-process", is_resolved=True).runtime.workers == 1
    assert with_runtime(stored, executor="ray").runtime.workers == 1, "as the config file says"


def test_for_people_it_names_values_before_candidates_and_no_none(place, evomerge):
    best = evomerge("status", "tiny").out
    assert "candidate" in best.split("best", 1)[1]
    assert ", value" not in best
    row = json.loads(evomerge("status", "tiny", "--json").out)["best"]["up"]
    low, high = row["interval"]
    assert low <= row["value"] <= high
    assert f"up {row['value']:.4f} [{low:.4f}, {high:.4f}], n = 12 (candidate" in best
    rechained(lambda events: events.__delitem__(slice(3, None)))(place)  # two asked, none told
    assert "None" not in evomerge("status", "tiny").out


def test_scores_that_are_lost_leave_the_rest_of_the_status(place, evomerge, status):
    RunFolder(place.run).scores.write_bytes(b"")
    facts = status("tiny")
    assert "was altered; save what is whole: evomerge repair" in facts["damage"]
    assert set(facts["best"]["up"]) == {"candidate", "value"}
    assert "(candidate" in evomerge("status", "tiny").out


def test_the_last_line_of_a_race_names_candidates_and_their_cost():
    summary = {"run": "r", "evaluations": 1512, "failed": 0, "front": 3, "hypervolume": None}
    summary["best"] = {"a": {"candidate": 1, "value": 0.5}}
    assert closing_line(summary) == "r: 1512 evaluations, front of 3; best a 0.5000"
    none = summary | {"evaluations": 0, "front": 0, "best": {}}
    assert closing_line(none) == "r: 0 evaluations, front of 0"
    raced = closing_line(summary | {"cost": 150.1})
    assert raced == "r: 1512 candidates raced at the cost of 150.1, front of 3; best a 0.5000"


def test_what_a_stop_cut_off_is_not_in_flight(place, evomerge, status):
    rechained(lambda events: events.__delitem__(slice(3, None)))(place)  # two asked, none told
    facts = status("tiny")
    assert (facts["state"], facts["in_flight"], facts["unfinished"]) == ("interrupted", 0, 2)
    said = evomerge("status", "tiny").out
    assert "0 (2 cut off by the stop are scored again on resume)" in said
    assert said.splitlines()[-1].split(None, 1) == ["next", "evomerge resume populations/tiny"]
    assert evomerge("resume", "tiny").code == 0
    assert (status("tiny")["in_flight"], status("tiny")["unfinished"]) == (0, 0)
    assert "next" not in evomerge("status", "tiny").out


def test_a_finished_run_that_is_resumed_says_how_to_get_more(place, evomerge):
    hint = "its budget of 6 was spent before; for more:  evomerge resume populations/tiny"
    done = evomerge("resume", "tiny")
    assert done.code == 0
    assert f"{hint} --evaluations N\n" in done.out
    more = evomerge("resume", "tiny", "--evaluations", "8")
    assert more.code == 0
    assert "was spent before" not in more.out
    assert json.loads(evomerge("resume", "tiny", "--json").out)["evaluations"] == 8


@pytest.mark.parametrize("given", ["tiny", "populations/tiny"])
def test_search_of_a_run_says_resume(given, place, evomerge):
    refused = evomerge("search", given)
    says = f"{given}: is a run, not a config. Go on with it: evomerge resume populations/tiny"
    assert_one_line(refused, 2, (says,), "ConfigError")
    assert_one_line(evomerge("search", "populations"), 2, ("populations: cannot be read",))
