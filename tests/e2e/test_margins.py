"""Runs that keep margins: told, stored, resumed, repaired, shared and chosen by."""

import json
import shutil

import numpy as np
import pytest
import yaml

from evomerge.config.champion import run_champion
from evomerge.config.export_run import choose
from evomerge.config.results import RunResults
from evomerge.config.schema import load_config
from evomerge.config.session import Session, create_run
from evomerge.core.margins import blur_of, blurred
from evomerge.storage.run_store import RunFolder
from evomerge.storage.salvage import salvage
from evomerge.storage.score_log import ScoreLog
from tests.e2e.tiny_run import evomerge
from tests.evaluation import tiny_models

WORDS = ("the cat", "a b c", "then there", "that is the one", "x", "another thing")
NAMES = ("base", "x", "y")
N = 2 * len(WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tiny Llamas and two tasks of options."""
    made = tmp_path_factory.mktemp("margins")
    for seed, name in enumerate(NAMES):
        model = tiny_models.make("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER, seed=seed)
        tiny_models.save(model, made / name)
    for task, options in {"first": [" the", " x"], "second": [" no", " it", " so"]}.items():
        rows = [{"prompt": f"{words} and", "options": options, "gold": 0} for words in WORDS]
        (made / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def searched(folder, name, *, evaluations=16, runtime=(), **changes):
    """Return the folder of a finished search."""
    body = {
        "name": "margins",
        "seed": 3,
        "base_model": str(folder / "base"),
        "models": [{"name": n, "model": str(folder / n)} for n in NAMES[1:]],
        "merge": {"name": "task_arithmetic"},
        "tasks": [
            {
                "name": task,
                "evaluator": {"name": "multiple_choice", "examples": str(folder / f"{task}.jsonl")},
            }
            for task in ("first", "second")
        ],
        "budget": {"evaluations": evaluations},
        "runtime": {"workers": 1, "threads": 1, **dict(runtime)},
        **changes,
    }
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(body))
    run = RunFolder(folder / name)
    create_run(load_config(config), folder, run)
    with Session(run) as session:
        session.run()
    return run


@pytest.fixture(scope="module")
def whole(folder):
    return searched(folder, "whole")


def rows_of(run):
    """Return (P, N) scores and margins of a run's results."""
    log = ScoreLog.of(run.scores, run.header())
    told = [e for e in run.read_events() if e["kind"] == "told"]
    return np.stack([log.read_both(e["row"], e["scores"]) for e in told], axis=1)


def test_auto_keeps_margins_that_agree_with_the_scores(whole):
    assert whole.header()["margins"] is True
    assert whole.scores.stat().st_size == 16 * 2 * N * 4
    scores, margins = rows_of(whole)
    np.testing.assert_array_equal(scores == 1.0, margins > 0.0)
    assert np.unique(margins, axis=0).shape[0] > 8


def test_other_algorithms_keep_none(folder):
    run = searched(folder, "plain", evaluations=6, algorithm={"name": "random"})
    assert "margins" not in run.header()
    assert run.scores.stat().st_size == 6 * N * 4


@pytest.mark.parametrize("cut", [3, 9, 17])
def test_a_run_cut_off_goes_on_to_the_same_end(folder, whole, cut, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run", ignore=shutil.ignore_patterns("lock", "lease*"))
    run = RunFolder(tmp_path / "run")
    lines = run.journal.read_bytes().splitlines(keepends=True)
    run.journal.write_bytes(b"".join(lines[:cut]))
    with Session(run) as session:
        session.run()
    assert run.journal.read_bytes() == whole.journal.read_bytes()
    assert run.scores.read_bytes() == whole.scores.read_bytes()


def test_margins_that_were_altered_are_found(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run", ignore=shutil.ignore_patterns("lock", "lease*"))
    run = RunFolder(tmp_path / "run")
    data = bytearray(run.scores.read_bytes())
    data[-3] ^= 1
    run.scores.write_bytes(data)
    done = evomerge("resume", str(run.path))
    assert done.returncode != 0
    assert "was altered" in done.stderr
    assert "Traceback" not in done.stderr


def test_repair_saves_margins_in_front_of_and_behind_the_damage(whole, tmp_path):
    shutil.copytree(whole.path, tmp_path / "run", ignore=shutil.ignore_patterns("lock", "lease*"))
    lines = whole.journal.read_bytes().splitlines(keepends=True)
    lines[8] = b"damaged\n"
    (tmp_path / "run" / "journal.jsonl").write_bytes(b"".join(lines))
    saved = salvage(RunFolder(tmp_path / "run"))
    repaired = RunFolder(tmp_path / "repaired")
    repaired.create(dict(saved.files))
    with Session(repaired) as session:
        session.run()
    assert repaired.scores.read_bytes() == whole.scores.read_bytes()


def test_a_run_from_before_margins_goes_on_without(folder, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("evomerge.config.build.gives_margins", lambda _: False)
        old = searched(folder, "old", evaluations=9)
    assert "margins" not in old.header()
    done = evomerge("resume", str(old.path), "--evaluations", "12")
    assert done.returncode == 0, done.stderr
    assert old.scores.stat().st_size == 12 * N * 4


def test_the_shared_ledger_gives_margins_back(folder, whole):
    ledger = {"ledger": "shared"}
    first = searched(folder, "first", runtime=ledger)
    again = searched(folder, "again", runtime=ledger)
    assert "recalled=12" in again.events.read_text()
    for run in (first, again):
        assert run.journal.read_bytes() == first.journal.read_bytes()
        assert run.scores.read_bytes() == whole.scores.read_bytes()


def test_a_warm_start_takes_margins_over(folder, whole, tmp_path):
    config = folder / "warm.yaml"
    config.write_text((folder / "whole.yaml").read_text().replace("seed: 3", "seed: 4"))
    run = RunFolder(tmp_path / "warm")
    create_run(load_config(config), folder, run, warm_start=whole.path)
    with Session(run) as session:
        session.run()
    before, after = rows_of(whole)[1], rows_of(run)[1]
    np.testing.assert_array_equal(after[: len(before)], before)


def test_the_champion_has_the_best_blurred_mean(whole):
    results = RunResults(whole)
    margins = rows_of(whole)[1]
    ids = [e["id"] for e in whole.read_events() if e["kind"] == "told"]
    parts = np.split(margins.astype(np.float64), 2, axis=1)
    wanted = np.mean([blurred(own, blur_of(own)).mean(axis=1) for own in parts], axis=0)
    assert choose(results, " champion ") == [run_champion(results)]
    assert run_champion(results) == ids[int(wanted.argmax())]


def test_without_margins_the_champion_has_the_best_mean(folder):
    run = searched(folder, "counted", evaluations=8, algorithm={"name": "random"})
    means = rows_of(run)[0].reshape(8, 2, -1).mean(axis=2).mean(axis=1)
    assert run_champion(RunResults(run)) == int(means.argmax())
