"""The Python API: search, look, resume and export without the command line."""

import subprocess
import sys

import pytest
from rich.console import Console

import evomerge
from evomerge.api import Rows, Run, search
from evomerge.errors import ConfigError, RunError
from tests.e2e.tiny_run import journal


@pytest.fixture(scope="module")
def run(tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "run"
    return evomerge.search(tiny_models.config(budget={"evaluations": 8}), run=folder)


def test_a_search_leaves_a_run_that_can_be_opened(run):
    again = evomerge.Run.open(run.path)
    assert again == run
    assert again.objectives == ("up", "down")
    status = again.status()
    assert (status["state"], status["done"]) == ("done", 8)
    assert again.config.budget.evaluations == 8


def test_a_file_and_its_content_are_the_same_search(tiny_models, tmp_path, run):
    file = tiny_models.write(tmp_path / "c.yaml", budget={"evaluations": 2})
    of_file = search(file, run=tmp_path / "a", overrides=["budget.evaluations=8"])
    assert journal(of_file.path) == journal(run.path)


def test_the_same_call_goes_on(tiny_models, tmp_path):
    config = tiny_models.config()
    search(config, run=tmp_path / "r", overrides={"budget.evaluations": 3})
    assert (
        search(config, run=tmp_path / "r", overrides={"budget.evaluations": 5}).status()["done"]
        == 5
    )
    assert Run.open(tmp_path / "r").resume(evaluations=6).status()["done"] == 6
    assert config == tiny_models.config()


def test_fronts_and_candidates_are_rows(run):
    front = run.front()
    assert {row["candidate"] for row in front} <= {row["candidate"] for row in run.candidates()}
    assert [row["candidate"] for row in run.front("best:up")] == [front[0]["candidate"]]
    assert set(run.front(confident=0.9)[0]) == set(front[0])
    rows = run.candidates()
    assert len(rows) == 8
    assert {row["state"] for row in rows} == {"scored"}
    assert isinstance(rows[2:4], Rows)
    assert len(rows[2:4]) == 2


def test_rows_show_themselves(run):
    frame = run.candidates().to_pandas()
    assert list(frame[["up", "down"]].iloc[0]) == list(run.candidates()[0]["objectives"].values())
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(run.front(), run)
    console.file.close()
    assert "origin" in console.export_text()
    page = run.front()._repr_html_()
    assert page.count("<tr>") == len(run.front()) + 1
    assert "hypervolume" in run._repr_html_()
    assert "&lt;b&gt;" in Rows([{"name": "<b>"}])._repr_html_()


def test_an_export_is_what_was_scored(run, tmp_path):
    (done,) = run.export("knee", tmp_path / "model", verify=True)
    assert (tmp_path / "model" / "config.json").exists()
    assert done.rescored == 24
    with pytest.raises(ConfigError, match="adapter=True"):
        run.export("knee", tmp_path / "other", rank=4)


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        Run.open(tmp_path / "none")
    with pytest.raises(ConfigError, match="key 'models' is missing"):
        search({"name": "x", "merge": "linear", "algorithm": "random"})
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        evomerge.serach  # noqa: B018


def test_the_package_is_light_until_the_api_is_used():
    code = (
        "import sys, evomerge, evomerge.cli.main, evomerge.search\n"
        "assert 'torch' not in sys.modules and 'evomerge.api' not in sys.modules\n"
        "assert callable(evomerge.search) and evomerge.search is sys.modules['evomerge.search']\n"
        "from evomerge.search.loop import SearchLoop\n"
        "import evomerge.search.loop\n"
        "assert evomerge.search.loop.SearchLoop is SearchLoop and callable(evomerge.search)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
