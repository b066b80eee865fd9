"""Search on one part, choose by the second, measure on the third: once each, and kept."""

import json
import os
import shutil

import pytest
import yaml

from evomerge.config.export_run import Exporter
from evomerge.config.finalists import best_parents, finalists
from evomerge.config.held_out import score_held_out
from evomerge.config.results import RunResults
from evomerge.config.schema import load_config
from evomerge.config.session import Session, create_run
from evomerge.core.picking import pick
from evomerge.errors import ReplayError, RunError, SourceError
from evomerge.report.data import report_data
from evomerge.runtime.worker import Worker
from evomerge.storage.run_store import RunFolder
from tests.e2e.tiny_run import evomerge

SPLITS = {"search": 0.5, "validation": 0.25, "test": 0.25}


def write_config(tiny_models, path, splits=SPLITS, **changes):
    tasks = [
        tiny_models.task(name, target, n=60) | ({"splits": dict(splits)} if splits else {})
        for name, target in (("up", 0.1), ("down", -0.1))
    ]
    return tiny_models.write(path, tasks=tasks, **{"budget": {"evaluations": 14}, **changes})


@pytest.fixture(scope="module")
def finished(tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    config = write_config(tiny_models, folder / "c.yaml")
    run = RunFolder(folder / "run")
    create_run(load_config(config), folder, run)
    with Session(run) as session:
        assert session.run() == "budget"
    return run


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def installs(monkeypatch):
    """Count what is merged to be scored."""
    seen = []
    install = Worker.install

    def counting(self, recipe):
        seen.append((self.name, recipe.digest()))
        return install(self, recipe)

    monkeypatch.setattr(Worker, "install", counting)
    return seen


def test_the_search_scores_the_search_part_only(run):
    sizes = RunResults(run).header["tasks"]
    assert 0 < sizes["up"] < 45
    assert sum(sizes.values()) < 120


def test_finalists_are_scored_once_and_choose(run, installs):
    exporter = Exporter(run)
    ids = finalists(exporter.results)
    front = set(exporter.results.front().candidate_ids.tolist())
    assert front | set(best_parents(exporter.results).values()) <= set(ids)
    chosen = exporter.choose("knee")
    assert len(installs) == len(ids)
    figures = json.loads((run.path / "validation.json").read_text())
    assert set(figures["candidates"]) == set(map(str, ids))
    assert chosen == pick(exporter.validation.front(ids), ("up", "down"), "knee")
    again = Exporter(run)
    assert again.choose("knee") == chosen
    assert again.choose("candidate:0") == [0]
    assert len(installs) == len(ids)
    assert not (run.path / "test.json").exists()


def test_an_interrupted_validation_goes_on(run, installs, monkeypatch):
    exporter = Exporter(run)
    ids = finalists(exporter.results)

    def stop(done, total, candidate):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exporter.choose("knee", stop)
    Exporter(run).choose("knee")
    assert len(installs) == len(ids)


def test_the_card_and_the_record_say_what_was_measured(run, installs, tmp_path):
    exporter = Exporter(run)
    (chosen,) = exporter.choose("best:up")
    n = len(installs)
    done = exporter.export(chosen, tmp_path / "out", verify=True)
    parents = set(best_parents(exporter.results).values())
    tested = [name for name, _ in installs[n:]].count("test")
    assert tested == len({chosen, *parents})
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| objective | search score | n | validation score | n | test score | n |" in text
    assert "search minus validation" in text
    assert "shrunken for the choice" in text
    assert "in two steps" in text
    record = json.loads((tmp_path / "out" / "recipe.json").read_text())["scores"]
    assert [row["name"] for row in record] == ["up", "down"]
    (recipe,) = [exporter.results.candidate(chosen).recipe]
    (expected,) = score_held_out(run, [recipe])
    assert record[0]["held_out"] == pytest.approx(float(expected["up"].mean()))
    assert record[0]["n_held_out"] == len(expected["up"])
    low, high = record[0]["held_out_interval"]
    assert low <= record[0]["held_out"] <= high
    assert done.held_out["up"] == pytest.approx(record[0]["held_out"])
    if chosen not in parents:
        assert record[0]["gain"]["on"] == "test"
        assert "over the best parent" in text
    n = len(installs)
    Exporter(run).export(chosen, tmp_path / "again", verify=False)
    assert [name for name, _ in installs[n:]] == []


def test_the_report_reads_the_figures(run):
    assert report_data(RunResults(run))["validation"] is None
    exporter = Exporter(run)
    exporter.choose("all")
    found = report_data(RunResults(run))["validation"]
    assert found["id"] == finalists(exporter.results)
    assert None not in found["validation"][0] + found["shrunken"][1]
    assert found["n"] == [exporter.validation.sizes["up"], exporter.validation.sizes["down"]]


def test_kept_scores_of_other_examples_or_damaged_ones_are_refused(run):
    Exporter(run).choose("knee")
    path = run.path / "validation.json"
    body = json.loads(path.read_text())
    body["scores"]["examples"] = "0" * 16
    path.write_text(json.dumps(body))
    with pytest.raises(RunError, match=r"validation\.json: holds scores of other examples"):
        Exporter(run)
    path.write_text("{")
    with pytest.raises(RunError, match=r"validation\.json: cannot be read"):
        Exporter(run)


@pytest.mark.slow
def test_the_verb_prints_what_it_found(run):
    done = evomerge("validate", run.path, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["finalists"]
    assert [row["candidate"] for row in rows] == finalists(RunResults(run))
    plain = evomerge("validate", run.path)
    assert "search minus validation" in plain.stdout
    gain = next(row["gain"]["up"] for row in rows if "up" in row["gain"])
    low, high = gain["interval"]
    assert f"{gain['gain']:+.4f} [{low:+.4f}, {high:+.4f}]" in plain.stdout
    out = run.path.parent / "out"
    exported = evomerge("export", run.path, "--pick", "best:up", "--out", out, "--json")
    assert exported.returncode == 0, exported.stderr
    (row,) = json.loads(exported.stdout)
    assert set(row["validation"]) == set(row["held_out"]) == {"up", "down"}
    assert "on the front of the validation scores" in plain.stdout
    assert "validated" not in plain.stderr, "nothing is scored twice"
    assert "picked by search scores" in evomerge("front", run.path, "--pick", "knee").stderr
    assert evomerge("front", run.path).stderr == ""


@pytest.mark.slow
def test_an_export_says_once_that_it_chooses_on_validation(run):
    done = evomerge("export", run.path, "--pick", "best:up", "--out", run.path.parent / "out")
    assert done.returncode == 0, done.stderr
    n = len(finalists(RunResults(run)))
    said = [line for line in done.stderr.splitlines() if "finalist" in line]
    assert said == [f"scoring {n} finalists on the validation examples, once for this run"]
    assert "; test up " in done.stdout, "the words of the splits"


@pytest.mark.slow
def test_a_run_without_validation_examples_says_what_to_do(tiny_models, tmp_path):
    config = write_config(tiny_models, tmp_path / "c.yaml", None, budget={"evaluations": 8})
    evomerge("search", config, "--run", tmp_path / "run")
    done = evomerge("validate", tmp_path / "run")
    assert done.returncode == 2
    assert "no validation examples" in done.stderr


def scored_by_a_file(tiny_models, tmp_path, module):
    """Return a run whose evaluator is a file of its own, and that file."""
    (tmp_path / "code").mkdir()
    shutil.copy(tiny_models.folder / "tiny_scorer.py", tmp_path / "code" / f"{module}.py")
    task = tiny_models.task("up", 0.1)
    task["evaluator"] |= {"path": "code", "function": f"{module}:closeness"}
    config = tiny_models.write(tmp_path / "c.yaml", tasks=[task], budget={"evaluations": 8})
    assert yaml.safe_load(config.read_text())["tasks"][0]["evaluator"]["path"] == "code"
    run = RunFolder(tmp_path / "run")
    create_run(load_config(config), tmp_path, run)
    return run, tmp_path / "code" / f"{module}.py"


def test_data_that_changes_during_a_search_stops_it_and_is_put_back(tiny_models, tmp_path):
    run, file = scored_by_a_file(tiny_models, tmp_path, "changing_scorer")
    before = file.read_text()
    with Session(run) as session:
        file.write_text(before + "# changed\n")
        with pytest.raises(SourceError, match=r"changing_scorer\.py: was changed or replaced whi"):
            session.run()
        assert session.loop.n_told == 0
    with pytest.raises(ReplayError, match="data"):
        Session(run)
    file.write_text(before)
    with Session(run) as session:
        assert session.run() == "budget"
        assert (session.loop.n_told, session.loop.population.failures) == (8, 0)


def test_data_that_changes_unseen_stops_the_search_at_its_end(tiny_models, tmp_path):
    run, file = scored_by_a_file(tiny_models, tmp_path, "quiet_scorer")
    then, text = file.stat(), file.read_text()
    with Session(run) as session:
        file.write_text(text[:-1] + " ")  # as many bytes, in place
        os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns))
        with pytest.raises(RunError, match=r"quiet_scorer\.py: was changed while the search"):
            session.run()
