"""`evomerge front`: as a table, CSV, and picked from."""

import csv
import io
import json

import pytest

from tests.cli.command import assert_one_line


def test_csv_has_the_values_of_the_json(place, evomerge):
    rows = json.loads(evomerge("front", "tiny", "--json").out)
    done = evomerge("front", "tiny", "--csv")
    assert (done.code, done.messages) == (0, [])
    read = list(csv.DictReader(io.StringIO(done.out)))
    assert list(read[0]) == ["candidate", "up", "down", "recipe", "origin", "parents"]
    assert [int(row["candidate"]) for row in read] == [row["candidate"] for row in rows]
    assert [float(row["up"]) for row in read] == [row["objectives"]["up"] for row in rows]


def test_every_value_has_its_n_its_interval_and_its_gain_on_the_best_parent(place, evomerge):
    rows = json.loads(evomerge("front", "tiny", "--json").out)
    for row in rows:
        assert set(row["n"]) == set(row["intervals"]) == set(row["gains"]) == {"up", "down"}
        for name, value in row["objectives"].items():
            low, high = row["intervals"][name]
            assert low <= value <= high
            gain = row["gains"][name]
            assert gain["interval"][0] <= gain["gain"] <= gain["interval"][1]
            parent = next((r for r in rows if r["candidate"] == gain["over"]), None)
            if parent is not None:
                assert gain["gain"] == pytest.approx(value - parent["objectives"][name])
    best = {name: max(row["gains"][name]["gain"] for row in rows) for name in ("up", "down")}
    assert min(best.values()) >= 0.0, "a front is nowhere below its parents"
    done = evomerge("front", "tiny")
    low, high = rows[0]["intervals"]["up"]
    assert f"{rows[0]['objectives']['up']:.4f} [{low:.4f}, {high:.4f}]" in done.out
    assert "up, n = 12  " in done.out.splitlines()[0]
    assert done.messages == []


def test_csv_has_the_constraints(place, evomerge):
    place.put("constraints", [{"task": "up", "at_least": 0.0}])
    place.write()
    assert evomerge("search", "c.yaml", "--run", "own").code == 0
    done = evomerge("front", "own", "--csv")
    row = next(csv.DictReader(io.StringIO(done.out)))
    assert row["feasible"] == "True"
    assert row["up >= 0"] == row["up"]


def test_a_limit_picks_one_of_the_front(place, evomerge):
    rows = json.loads(evomerge("front", "tiny", "--json").out)
    limit = sorted(row["objectives"]["down"] for row in rows)[len(rows) // 2]
    kept = [row for row in rows if row["objectives"]["down"] >= limit]
    best = max(kept, key=lambda row: row["objectives"]["up"])
    pick = f"max(up) s.t. down>={limit!r}"
    assert json.loads(evomerge("front", "tiny", "--pick", pick, "--json").out) == [best]
    done = evomerge("export", "tiny", "--pick", pick, "--out", "merged", "--json")
    assert json.loads(done.out)[0]["candidate"] == best["candidate"]
    knee = json.loads(evomerge("front", "tiny", "--pick", "knee", "--json").out)
    assert len(knee) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--pick", "max(up) s.t. down>=9"), "nothing on the front keeps the limits"),
        (("--pick", "candidate:999"), "candidate 999 does not exist (there are 0 to 5)"),
        (("--csv", "--json"), "give one of them"),
    ],
)
def test_refusals(options, says, place, evomerge):
    assert_one_line(evomerge("front", "tiny", *options), 2, (says,), "ConfigError")
