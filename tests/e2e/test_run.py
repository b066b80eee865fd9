"""The three things users do, through the command line, on tiny real models."""

import json
import os
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from .tiny_run import evomerge, journal, start


@pytest.fixture(scope="module")
def finished(tiny_models, tmp_path_factory):
    """One finished run that read-only tests share."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_models.write(folder / "c.yaml")
    done = evomerge("search", "c.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_search_writes_a_whole_run_folder(finished):
    run = finished / "populations" / "tiny"
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "sources.json",
        "manifest.json",
        "journal.jsonl",
        "scores.f32",
        "front.json",
        "events.log",
        "exports",
    }
    events = journal(run)
    assert events[0]["kind"] == "header"
    assert sum(e["kind"] == "told" for e in events) == 20
    assert (run / "scores.f32").stat().st_size == 20 * 24 * 4
    assert not list(run.rglob("*.pkl")) + list(run.rglob("*.pickle"))


def test_front_and_status_agree_with_the_journal(finished):
    front = json.loads(evomerge("front", "tiny", "--json", cwd=finished).stdout)
    saved = json.loads((finished / "populations/tiny/front.json").read_text())
    assert [m["candidate"] for m in front] == [m["candidate"] for m in saved]
    told = {e["id"]: e for e in journal(finished / "populations/tiny") if e["kind"] == "told"}
    points = [tuple(told[i]["objectives"]) for i in told]
    for member in front:
        mine = tuple(member["objectives"].values())
        assert not any(
            all(o >= m for o, m in zip(p, mine, strict=True)) and p != mine for p in points
        )
    status = json.loads(evomerge("status", "populations/tiny", "--json", cwd=finished).stdout)
    assert (status["state"], status["done"], status["failed"]) == ("done", 20, 0)
    assert status["hypervolume"] > 0


def test_searching_again_resumes_and_says_so(finished):
    before = (finished / "populations/tiny/journal.jsonl").read_bytes()
    again = evomerge("search", "c.yaml", cwd=finished)
    assert again.returncode == 0
    assert "resumed populations/tiny: 20 results kept" in again.stderr
    assert (finished / "populations/tiny/journal.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_larger_budget_continues_a_finished_run(finished, tmp_path):
    run = tmp_path / "longer"
    assert evomerge("search", finished / "c.yaml", "--run", run).returncode == 0
    assert evomerge("resume", run, "--evaluations", "26").returncode == 0
    assert sum(e["kind"] == "told" for e in journal(run)) == 26
    status = json.loads(evomerge("status", run, "--json").stdout)
    assert (status["done"], status["budget"], status["state"]) == (26, 26, "done")


@pytest.mark.parametrize(
    "pick",
    [
        "knee",
        pytest.param("best:up", marks=pytest.mark.slow),
        pytest.param("weights up=1,down=2", marks=pytest.mark.slow),
        pytest.param("candidate:3", marks=pytest.mark.slow),
    ],
)
def test_export_loads_and_is_what_was_scored(finished, tmp_path, pick):
    from transformers import AutoModelForImageClassification

    out = tmp_path / "out"
    done = evomerge(
        "export", "tiny", "--pick", pick, "--out", out, "--verify", "--json", cwd=finished
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)[0]
    told = {e["id"]: e for e in journal(finished / "populations/tiny") if e["kind"] == "told"}
    assert row["weights_digest"] == told[row["candidate"]]["weights"]
    assert row["rescored_examples"] == 24
    AutoModelForImageClassification.from_pretrained(out)
    names = {"recipe.json", "manifest.json", "README.md", "config.json"}
    assert names <= {p.name for p in out.iterdir()}
    manifest = json.loads((out / "manifest.json").read_text())
    searched = json.loads((finished / "populations/tiny/manifest.json").read_text())
    assert manifest["tensors"].keys() == searched["tensors"].keys()
    assert set(manifest["tensors"].values()) == {"merged"}


def test_export_all_writes_the_front_and_recipe_merges_to_the_same_bytes(finished, tmp_path):
    out = tmp_path / "front"
    assert evomerge("export", "tiny", "--pick", "all", "--out", out, cwd=finished).returncode == 0
    folders = sorted(out.iterdir())
    assert len(folders) == len(json.loads((finished / "populations/tiny/front.json").read_text()))
    again = tmp_path / "again"
    done = evomerge("merge", folders[0] / "recipe.json", "--out", again)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(f / "model.safetensors") for f in (folders[0], again))
    assert all((one[name] == two[name]).all() for name in one)


def test_export_never_overwrites(finished, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    done = evomerge("export", "tiny", "--out", tmp_path / "mine", cwd=finished)
    assert done.returncode == 2
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_two_runs_of_one_seed_have_identical_journals(finished, tmp_path):
    assert evomerge("search", finished / "c.yaml", "--run", tmp_path / "twin").returncode == 0
    for name in ("journal.jsonl", "scores.f32", "front.json"):
        assert (tmp_path / "twin" / name).read_bytes() == (
            finished / "populations/tiny" / name
        ).read_bytes()


def test_ctrl_c_drains_says_how_to_resume_and_exits_75(tiny_models, tmp_path):
    tasks = [tiny_models.task("up", 0.1, pause=0.1), tiny_models.task("down", -0.1)]
    tiny_models.write(tmp_path / "c.yaml", tasks=tasks, budget={"evaluations": 40})
    undisturbed = tmp_path / "whole"
    assert evomerge("search", tmp_path / "c.yaml", "--run", undisturbed).returncode == 0
    run = tmp_path / "run"
    process = start("search", tmp_path / "c.yaml", "--run", run, log=tmp_path / "log")
    wait_for(lambda: (run / "journal.jsonl").exists() and len(journal_lines(run)) > 12)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) == 75
    text = (tmp_path / "log").read_text()
    assert f"resume with:  evomerge resume {run}" in text
    assert sum(e["kind"] == "told" for e in journal(run)) < 40
    assert evomerge("resume", run).returncode == 0
    assert (run / "journal.jsonl").read_bytes() == (undisturbed / "journal.jsonl").read_bytes()


def test_a_second_driver_is_refused(tiny_models, tmp_path):
    tasks = [tiny_models.task("up", 0.1, pause=0.2)]
    tiny_models.write(tmp_path / "c.yaml", tasks=tasks, budget={"evaluations": 500})
    run = tmp_path / "run"
    process = start("search", tmp_path / "c.yaml", "--run", run, log=tmp_path / "log")
    try:
        wait_for(lambda: (run / "journal.jsonl").exists() and len(journal_lines(run)) > 3)
        second = evomerge("resume", run)
        assert second.returncode == 3
        assert f"process {process.pid} on" in second.stderr
        assert evomerge("status", run).returncode == 0, "readers may look meanwhile"
    finally:
        process.kill()
        process.wait()


def test_failing_candidates_are_recorded_and_the_search_goes_on(tiny_models, tmp_path):
    bad = tiny_models.task("up", 0.1)
    bad["evaluator"] |= {"function": "tiny_scorer:sometimes", "arguments": {"n": 12}}
    tiny_models.write(tmp_path / "c.yaml", tasks=[bad], budget={"evaluations": 16})
    done = evomerge("search", tmp_path / "c.yaml", "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    told = [e for e in journal(tmp_path / "run") if e["kind"] == "told"]
    errors = [e["error"] for e in told if "error" in e]
    assert len(told) == 16
    assert 0 < len(errors) < 16
    assert all("this evaluator fails on some" in error for error in errors)
    assert "Traceback" in (tmp_path / "run/events.log").read_text()


def test_a_search_in_which_all_fail_exits_3_and_says_why(tiny_models, tmp_path):
    bad = tiny_models.task("up", 0.1)
    bad["evaluator"] |= {"function": "tiny_scorer:fails", "arguments": {"n": 12}}
    tiny_models.write(tmp_path / "c.yaml", tasks=[bad], budget={"evaluations": 50})
    done = evomerge("search", tmp_path / "c.yaml", "--run", tmp_path / "run")
    assert done.returncode == 3
    assert "the last 10 candidates all failed" in done.stderr
    assert "this evaluator always fails" in done.stderr
    assert sum(e["kind"] == "told" for e in journal(tmp_path / "run")) == 10


def test_warm_start_takes_the_evaluations_over(finished, tiny_models, tmp_path):
    tiny_models.write(tmp_path / "c.yaml", algorithm={"name": "cma_es"}, budget={"evaluations": 14})
    run = tmp_path / "warm"
    done = evomerge(
        "search", tmp_path / "c.yaml", "--run", run, "--warm-start", finished / "populations/tiny"
    )
    assert done.returncode == 0, done.stderr
    old = [e for e in journal(finished / "populations/tiny") if e["kind"] == "told"]
    new = [e for e in journal(run) if e["kind"] == "told"]
    assert len(new) == 34
    assert [e["objectives"] for e in new[:20]] == [e["objectives"] for e in old]
    log = (run / "events.log").read_text()
    assert "candidate 3 scored" not in log, "taken over, not scored again"
    assert "candidate 20 scored" not in log, "a founder that was scored then"
    assert "candidate 33 scored" in log


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def journal_lines(run):
    return (run / "journal.jsonl").read_bytes().splitlines()


def _copy(tiny_models, tmp_path):
    from .tiny_run import TinyModels

    shutil.copytree(tiny_models.folder, tmp_path / "models")
    return TinyModels(tmp_path / "models")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["resume", "warm start"])
@pytest.mark.parametrize("change", ["donor config", "evaluator code"])
def test_scores_are_never_mixed_with_those_of_a_changed_world(tiny_models, tmp_path, change, verb):
    models = _copy(tiny_models, tmp_path)
    models.write(tmp_path / "c.yaml", budget={"evaluations": 6})
    run = tmp_path / "run"
    assert evomerge("search", tmp_path / "c.yaml", "--run", run).returncode == 0
    before = (run / "journal.jsonl").read_bytes()
    if change == "donor config":
        path = models.folder / "base" / "config.json"
        path.write_text(path.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    else:
        path = models.folder / "tiny_scorer.py"
        path.write_text(path.read_text().replace("* 20", "* 19"))
    if verb == "resume":
        done = evomerge("resume", run, "--evaluations", "9")
        assert "since the run began" in done.stderr
    else:
        done = evomerge(
            "search", tmp_path / "c.yaml", "--run", tmp_path / "new", "--warm-start", run
        )
        assert "cannot warm-start" in done.stderr
        assert not (tmp_path / "new").exists()
    assert done.returncode == 3, done.stderr
    assert (run / "journal.jsonl").read_bytes() == before
