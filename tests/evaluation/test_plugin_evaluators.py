"""Evaluators of other packages: found through the metadata that pip installs, and usable."""

import importlib
import sys
import textwrap

import pytest

from evomerge.config.construct import construct
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import evaluators
from evomerge.testing import check_evaluator

MODULE = '''
from dataclasses import dataclass
from pathlib import Path
import numpy as np

@dataclass(frozen=True, kw_only=True)
class Shout:
    """Score how many of the generated characters are upper case."""
    prompts: Path
    max_new_tokens: int = 4
    auto_class = "AutoModelForCausalLM"

    def n_examples(self):
        return len(self.prompts.read_text().splitlines())

    def evaluate(self, subject, positions=None):
        lines = self.prompts.read_text().splitlines()
        chosen = range(len(lines)) if positions is None else positions
        subject.require(self.auto_class)
        texts = subject.generate([lines[i] for i in chosen], max_new_tokens=self.max_new_tokens)
        return np.array([sum(c.isupper() for c in t) for t in texts], dtype=np.float32)
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Lay out what `pip install --target` leaves, and put the folder on sys.path."""
    target = tmp_path / "site"
    info = target / "shouting-1.0.dist-info"
    info.mkdir(parents=True)
    (target / "shouting_metric.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent(
            """
            [evomerge.evaluators]
            shout = shouting_metric:Shout
            broken = shouting_metric:NoSuchClass
            """
        )
    )
    monkeypatch.syspath_prepend(target)
    importlib.invalidate_caches()
    before = dict(evaluators._classes)
    yield target
    evaluators._classes.clear()
    evaluators._classes.update(before)
    sys.modules.pop("shouting_metric", None)


def test_an_installed_evaluator_is_listed_built_and_keeps_the_contract(installed, tmp_path, llama):
    assert "shout" in evaluators.names()
    (tmp_path / "prompts.txt").write_text("the cat\na dog\nwhat\n")
    body = {"name": "shout", "prompts": "prompts.txt"}
    built, resolved = construct(evaluators, body, "tasks.0.evaluator", tmp_path)
    assert resolved == {
        "name": "shout",
        "prompts": str(tmp_path / "prompts.txt"),
        "max_new_tokens": 4,
    }
    check_evaluator(built, llama)


def test_its_keys_are_checked_like_ours(installed, tmp_path):
    body = {"name": "shout", "prompts": "p", "max_tokens": 3}
    with pytest.raises(ConfigError, match="max_tokens is not a parameter of 'shout'"):
        construct(evaluators, body, "tasks.0.evaluator", tmp_path)


def test_a_broken_announcement_says_which_package(installed, tmp_path):
    with pytest.raises(ConfigError, match=r"'broken' of shouting 1\.0.*NoSuchClass"):
        construct(evaluators, {"name": "broken"}, "tasks.0.evaluator", tmp_path)


def test_it_is_gone_with_its_package():
    assert "shout" not in evaluators.names()
