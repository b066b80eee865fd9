"""The code of the guides does what they say."""

import doctest
import subprocess
import sys

import pytest
import yaml

from evomerge.api import search
from tests.docs.pages import GUIDES, ROOT, blocks, files_in
from tests.e2e import real_project as rp


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Small language models called base, x and y, and the files of both guides beside them."""
    folder = rp.save_family(tmp_path_factory.mktemp("guides"), rp.llama())
    for guide in ("custom-evaluator", "custom-operator"):
        for name, text in files_in(GUIDES / f"{guide}.md").items():
            (folder / name).write_text(text)
    return folder


def test_own_evaluators_and_methods_keep_the_contracts_and_are_searched(place):
    # In a process of its own: what is registered there stays there.
    code = (
        "import test_brevity, test_median\n"
        "test_brevity.test_brevity_keeps_the_contract()\n"
        "test_median.test_median_keeps_the_contract()\n"
        "import search_median\n"
        "assert search_median.run.status()['done'] == 3\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "objectives" in done.stdout


def test_the_config_with_a_function_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    (config,) = (yaml.safe_load(block) for block in blocks(GUIDES / "custom-evaluator.md", "yaml"))
    run = search(config, overrides={"budget.evaluations": 3, "search.founders": "none"})
    assert run.status()["done"] == 3
    assert set(run.candidates()[0]["objectives"]) == {"brief"}


def test_figures_of_the_faq_are_what_python_says():
    for block in blocks(GUIDES / "noise-and-overfitting.md", "python"):
        test = doctest.DocTestParser().get_doctest(block, {}, "faq", None, 0)
        assert test.examples
        assert doctest.DocTestRunner().run(test).failed == 0


def test_every_guide_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text()
    for guide in GUIDES.glob("*.md"):
        assert f"guides/{guide.stem}\n" in index
