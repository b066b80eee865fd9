"""What a report says is what the run says."""

import base64
import json
import shutil

import numpy as np
import pytest

from evomerge.config.front_views import example_scores
from evomerge.config.results import RunResults
from evomerge.errors import RunError
from evomerge.report import candidates as shown_candidates
from evomerge.report import lineage as shown_lineage
from evomerge.report.data import report_data
from evomerge.storage.journal import GENESIS, encode_line
from evomerge.storage.run_store import RunFolder
from tests.report.synthetic import Plan, write_run


def test_the_front_and_everyone_else_are_shown_once(run, data):
    results = RunResults(run)
    shown = data["candidates"]
    front = [i for i, role in zip(shown["id"], shown["role"], strict=True) if role == "front"]
    assert sorted(front) == results.front().candidate_ids.tolist()
    assert sorted(shown["id"]) == sorted(int(event["id"]) for event in results.scored)
    for row, candidate_id in enumerate(shown["id"]):
        values = results.objectives_of(candidate_id)
        assert [column[row] for column in shown["objectives"]] == pytest.approx(
            list(values.values()), rel=1e-4
        )
    assert set(shown["models"]) == {"base", "maths-7b", "chat-7b"}


def test_picks_have_intervals_that_hold_their_values(data):
    picks = data["summary"]["picks"]
    assert [pick["label"] for pick in picks] == ["best: maths", "best: chat", "knee"]
    assert data["summary"]["columns"] == ["maths", "chat", "mean"]
    for pick in picks:
        for cell in pick["objectives"]:
            low, high = cell["interval"]
            assert low <= cell["value"] <= high
            low, high = cell["gain_interval"]
            assert low <= cell["gain"] <= high
            assert cell["parent"] in ("base", "maths-7b", "chat-7b")
    best = max(column[0] for column in zip(*data["candidates"]["objectives"][:1], strict=True))
    assert picks[0]["objectives"][0]["value"] == best


def test_history_ends_where_the_run_does(run, data):
    results, history = RunResults(run), data["history"]
    assert history["told"] == list(range(1, len(results.told) + 1))
    assert history["front"][-1] == len(results.front())
    assert history["hypervolume"][-1] == pytest.approx(results.hypervolume(), rel=1e-4)
    known = [value for value in history["hypervolume"] if value is not None]
    assert known == sorted(known)
    assert history["hypervolume"][:2] == [None, None], "three founders"
    for values in history["best"]:
        rising = [value for value in values if value is not None]
        assert rising == sorted(rising)
    assert history["seconds"][-1] > history["seconds"][0] > 0


def test_a_lost_log_leaves_costs_out(run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    copy.events.unlink()
    history = report_data(RunResults(copy))["history"]
    assert set(history["seconds"]) == {None}


def test_niches_are_the_scores_of_the_front(run, data):
    results, niches = RunResults(run), data["niches"]
    tables = example_scores(results, np.array(niches["members"]))
    for task in niches["tasks"]:
        cells = np.frombuffer(base64.b64decode(task["cells"]), np.uint8)
        cells = cells.reshape(len(niches["members"]), len(task["examples"])) / 255
        scores = task["low"] + cells * (task["high"] - task["low"])
        assert scores == pytest.approx(tables[task["task"]][:, task["examples"]])
        assert task["alike"] + len(task["examples"]) + task["left_out"] == task["n"] == 40


def test_lineage_goes_from_parents_to_children(run, data):
    results, tree = RunResults(run), data["lineage"]
    depth = {node["id"]: node["depth"] for node in tree["nodes"]}
    assert set(results.front().candidate_ids.tolist()) <= set(depth)
    assert all(depth[parent] < depth[child] for parent, child in tree["edges"])
    for parent, child in tree["edges"]:
        assert parent in results.asked[child]["parents"]
    assert len({(node["depth"], node["lane"]) for node in tree["nodes"]}) == len(depth)
    assert tree["left_out"] == 0


def test_coefficients_are_those_of_the_recipe(run, data):
    results, found = RunResults(run), data["recipes"]
    assert {int(i) for i in found["maps"]} == set(results.front().candidate_ids.tolist())
    for candidate_id, item in found["maps"].items():
        recipe = results.candidate(int(candidate_id)).recipe
        assert item["columns"] == ["lambda_", "weights: maths-7b", "weights: chat-7b"]
        values = np.array(item["values"])
        assert values[:, 1:] == pytest.approx(recipe.params["weights"], rel=1e-4)
        assert found["labels"][item["labels"]] == [f"layer.{i}" for i in range(4)]
    assert set(found["summaries"]) >= {str(i) for i in data["candidates"]["id"]}


def test_failures_are_counted_by_kind(run, data):
    results, found = RunResults(run), data["failures"]
    assert found["total"] == results.n_failed > 3
    assert [kind["error"] for kind in found["kinds"]] == ["no luck: crossover"]
    assert found["kinds"][0]["candidates"][0] == 12


def test_the_environment_names_versions_sources_and_machines(run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    with copy.events.open("a") as log:
        log.write("2026-01-01T00:00:00Z machine Linux, 8 CPUs\n" * 2)
        log.write("2026-01-01T00:00:00Z candidate 3: attempt 1 lost on worker-1: it died\n")
    data = report_data(RunResults(copy))
    found = data["environment"]
    assert found["seed"] == 3
    assert found["machines"] == ["Linux, 8 CPUs"]
    assert [source["id"] for source in found["sources"]] == ["base", "maths-7b", "chat-7b"]
    assert all(len(source["digest"]) == 32 for source in found["sources"])
    assert found["versions"]["evomerge"] == "0.1.0"
    assert sum(found["workers"].values()) == 80
    assert data["failures"]["lost"] == [
        "2026-01-01T00:00:00Z candidate 3: attempt 1 lost on worker-1: it died"
    ]


def test_the_same_run_gives_the_same_figures(run, data):
    again = report_data(RunResults(run))
    assert {**again, "made": ""} == {**data, "made": ""}


def test_what_is_shown_does_not_grow_with_the_run(run, data, monkeypatch):
    monkeypatch.setattr(shown_candidates, "MAX_FRONT", 5)
    monkeypatch.setattr(shown_candidates, "MAX_OTHERS", 10)
    monkeypatch.setattr(shown_lineage, "MAX_NODES", 20)
    small = report_data(RunResults(run))
    roles = small["candidates"]["role"]
    assert roles.count("front") == 5
    assert roles.count("other") == 10
    assert small["candidates"]["total"] == data["candidates"]["total"]
    assert small["candidates"]["front_left_out"] == len(RunResults(run).front()) - 5
    assert len(small["lineage"]["nodes"]) == 20
    total = len(data["lineage"]["nodes"])
    assert small["lineage"]["left_out"] == total - 20
    summarised = {int(i) for i in small["recipes"]["summaries"]}
    assert summarised >= set(small["candidates"]["id"])


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_run_that_has_hardly_begun(kept, run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    chain, lines = GENESIS, b""
    for event in RunFolder(run.path).read_events()[:kept]:
        chain, line = encode_line(chain, event)
        lines += line
    copy.journal.write_bytes(lines)
    data = report_data(RunResults(copy))
    json.dumps(data, allow_nan=False)
    assert data["candidates"]["total"] == (1 if kept == 3 else 0)
    assert (data["niches"] is None) == (kept < 3)
    copy.journal.unlink()
    with pytest.raises(RunError, match="nothing was evaluated yet"):
        report_data(RunResults(copy))


def test_partly_scored_candidates_are_neither_shown_nor_failed(run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    chain, lines = GENESIS, b""
    for event in run.read_events():
        if event["kind"] == "told" and event["id"] == 20:
            event = {k: v for k, v in event.items() if k != "objectives"} | {"examples": 7}
        chain, line = encode_line(chain, event)
        lines += line
    copy.journal.write_bytes(lines)
    data = report_data(RunResults(copy))
    assert 20 not in data["candidates"]["id"]
    assert data["failures"]["total"] == RunResults(run).n_failed
    assert data["history"]["told"][-1] == 80


@pytest.mark.parametrize("names", [("only",), ("a", "b", "c", "d", "e")])
def test_one_objective_and_many(names, tmp_path):
    run = write_run(tmp_path / "run", Plan(n=40, names=names))
    data = report_data(RunResults(run))
    assert len(data["summary"]["picks"]) == len(names) + 1
    assert len(data["candidates"]["objectives"]) == len(data["history"]["best"]) == len(names)
    assert data["history"]["hypervolume"][-1] > 0


def test_validation_figures_are_shown_where_there_are_any(run, tmp_path, data):
    assert data["validation"] is None
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    file = copy.path / "validation.json"
    chosen = data["candidates"]["id"][:2]
    body = {"n": {"maths": 50, "chat": 60}, "candidates": {chosen[0]: {"maths": 0.5, "chat": 0.25},
            chosen[1]: {"maths": 0.4}, 999: {"maths": 1.0}},
            "intervals": {chosen[0]: {"maths": [0.4, 0.6]}}, "gains": {chosen[0]: {"maths":
            {"over": 1, "gain": 0.1, "interval": [-0.05, 0.25], "p": 0.125}}}}  # fmt: skip
    file.write_text(json.dumps(body))
    found = report_data(RunResults(copy))["validation"]
    assert found["n"] == [50, 60]
    assert found["id"] == sorted(chosen)
    at = found["id"].index(chosen[0])
    assert [column[at] for column in found["validation"]] == [0.5, 0.25]
    assert found["validation"][1][1 - at] is None
    assert (found["intervals"][0][at], found["intervals"][0][1 - at]) == ([0.4, 0.6], None)
    assert found["gains"][0][at] == {"over": 1, "gain": 0.1, "interval": [-0.05, 0.25], "p": 0.125}
    assert found["gains"][1] == [None, None]
    assert found["search"][0][at] == data["candidates"]["objectives"][0][0]
    file.write_text('{"n": []}')
    with pytest.raises(RunError, match=r"validation\.json: cannot be read"):
        report_data(RunResults(copy))


def test_a_damaged_manifest_is_named(run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    copy.manifest.write_text("[]")
    with pytest.raises(RunError, match=r"manifest\.json: cannot be read"):
        report_data(RunResults(copy))
    copy.manifest.unlink()
    found = report_data(RunResults(copy))["recipes"]
    assert next(iter(found["labels"].values())) == [f"group {i}" for i in range(4)]
