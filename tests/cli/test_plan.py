"""`evomerge plan`: measured on real warm-ups, and no run is left behind."""

import json

import pytest

from tests.cli.command import assert_one_line, tree


@pytest.fixture(scope="module")
def facts(tiny_models, tmp_path_factory):
    """Facts of the usual config, as `estimate` gives them."""
    from evomerge.config.plan_estimate import estimate
    from evomerge.config.plan_run import measure
    from evomerge.config.schema import parse_config

    body = tiny_models.config(budget={"evaluations": 100})
    return estimate(measure(parse_config(body, "test"), tmp_path_factory.mktemp("plan")), 0.01)


def test_costs_follow_from_the_second_warm_up(facts):
    last = facts["warm_ups"][-1]
    assert len(facts["warm_ups"]) == 2
    assert set(last["score_seconds"]) == {"up", "down"}
    seconds = last["merge_seconds"] + sum(last["score_seconds"].values())
    assert facts["seconds_per_candidate"] == pytest.approx(seconds)
    assert facts["budget"]["seconds"] == pytest.approx(facts["start_seconds"] + 100 * seconds)
    assert facts["budget"]["cpu_hours"] == pytest.approx(100 * seconds / 3600)
    assert facts["half_the_budget"]["cpu_hours"] == pytest.approx(50 * seconds / 3600)
    half = 100 * (seconds + last["merge_seconds"]) / 2 / 3600
    assert facts["half_the_examples"]["cpu_hours"] == pytest.approx(half)


def test_noise_is_that_of_the_differences(facts):
    row = facts["noise"]["up"]
    assert row["n"] == 12
    assert row["detectable"] == pytest.approx(2.801585 * row["spread"] / 12**0.5, rel=1e-6)
    assert row["detectable_with_half"] == pytest.approx(row["detectable"] * 2**0.5)
    assert row["examples_needed"] >= 12
    assert 0 < row["standard_error"] < 1


def test_disk_is_what_a_run_really_takes(facts, finished_run):
    n_bytes = sum((finished_run / name).stat().st_size for name in ("journal.jsonl", "scores.f32"))
    assert facts["disk"]["run_bytes"] / 100 == pytest.approx(n_bytes / 6, rel=0.6)
    assert facts["disk"]["export_bytes"] > 1000


def test_people_read_it_and_nothing_is_created(place, evomerge):
    place.write()
    before = tree(place.folder)
    done = evomerge("plan", "c.yaml", "--detect", "0.01")
    assert (done.code, done.messages) == (0, [])
    assert tree(place.folder) == before
    starts = [line.split()[0] for line in done.out.splitlines()]
    assert starts == [
        "per", "before", "budget", "disk", "noise", "noise", "detect", "detect", "half", "half", "next",
    ]  # fmt: skip
    assert "6 evaluations in" in done.out
    assert "80 % power, 95 % confidence" in done.out
    done = evomerge("plan", "c.yaml", "--json")
    assert "examples_needed" not in json.loads(done.out)["noise"]["up"]


def test_a_race_and_a_time_limit_are_pointed_out(place, evomerge):
    place.put("racing", {"name": "paired", "first": 4})
    place.put("budget.seconds", 0.001)
    place.write()
    said = evomerge("plan", "c.yaml").out
    assert "racing         scores fewer examples" in said
    assert "stops at budget.seconds, 1 ms" in said


@pytest.mark.parametrize("detect", ["0", "-0.1", "nan"])
def test_a_difference_must_be_positive(detect, place, evomerge):
    place.write()
    assert_one_line(evomerge("plan", "c.yaml", "--detect", detect), 2, ("must be above 0",))


def test_a_warm_up_that_fails_says_why(place, evomerge):
    place.put("tasks.0.evaluator.function", "tiny_scorer:fails")
    place.put("tasks.0.evaluator.arguments", {"n": 12})
    place.write()
    done = evomerge("plan", "c.yaml")
    assert_one_line(done, 3, ("this evaluator always fails",), "EvaluationError")
