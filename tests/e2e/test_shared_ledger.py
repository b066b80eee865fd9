"""Runs that share a ledger score nothing twice, and find what they would have found alone."""

import importlib.util
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from evomerge.config.schema import load_config
from evomerge.config.session import Session, create_run
from evomerge.config.shared_scores import SharedScores
from evomerge.config.workers import build_worker
from evomerge.errors import ConfigError
from evomerge.evaluation.harness import LmEval
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.packages import package_versions
from evomerge.evaluation.part import Part
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.runtime.worker import Scored
from evomerge.search.events import candidate_of
from evomerge.storage.run_store import RunFolder
from evomerge.storage.shared_ledger import SharedLedger


@pytest.fixture
def search(tiny_models, tmp_path):
    """Return a function that searches and returns (journal, examples scored)."""

    def run(name, *, ledger=None, n=12, tasks=("up", "down"), **changes):
        (tmp_path / f"{name}-marks").mkdir()
        targets = {"up": 0.1, "down": -0.1}
        config = tiny_models.write(
            tmp_path / f"{name}.yaml",
            name="same",
            tasks=[tiny_models.task(task, targets[task], n=n) for task in tasks],
            budget={"evaluations": 10},
            runtime={"workers": 1, "threads": 1} | ({"ledger": ledger} if ledger else {}),
            **changes,
        )
        folder = RunFolder(tmp_path / name)
        create_run(load_config(config), tmp_path, folder)
        with Session(folder) as session:
            session.run()
        recalled = [
            int(line.partition("recalled=")[2].split()[0])
            for line in folder.events.read_text().splitlines()
            if "recalled=" in line
        ]
        return folder.journal.read_bytes(), recalled

    return run


def test_a_second_run_scores_nothing_and_has_the_same_journal(search, tmp_path):
    alone, none = search("alone")
    first, new = search("first", ledger="shared")
    again, known = search("again", ledger="shared")
    assert (tmp_path / "shared" / "scores.sqlite").is_file()
    assert alone == first == again
    assert none == []
    assert new == [24], "two founders build the same model by different recipes"
    assert known == [24] * 10


def test_other_algorithms_share_the_founders(search):
    search("first", ledger="shared")
    _, known = search("other", ledger="shared", seed=6)
    assert 3 <= len(known) < 10
    assert set(known) == {24}


def test_another_task_is_scored_and_the_shared_one_is_not(search):
    search("first", ledger="shared", tasks=("up",))
    _, known = search("second", ledger="shared")
    assert sorted(known) == [12] * 9 + [24]


def test_other_settings_share_nothing(search):
    search("first", ledger="shared")
    _, known = search("other", ledger="shared", n=10)
    assert known == [20], "of the run's own"


def test_workers_in_other_processes_share_as_well(search, tmp_path):
    search("first", ledger="shared")
    worker = build_worker(tmp_path / "first", "cpu", 1, "elsewhere")
    events = RunFolder(tmp_path / "first").read_events()
    candidate = candidate_of(next(event for event in events if event["kind"] == "asked"), 5)
    outcome = worker.evaluate(candidate)
    assert outcome.detail == "recalled=24"
    part = worker.evaluate(replace(candidate, examples=np.array([0, 13, 20])))
    assert part.detail == "recalled=3"
    assert np.flatnonzero(~np.isnan(part.evaluation.flat_scores())).tolist() == [0, 13, 20]


def test_another_tokenizer_shares_nothing(tmp_path):
    """The same weights under another tokenizer file, chat template or package score anew."""
    rows = [{"prompt": f"{i} and", "options": [" a", " b"], "gold": 0} for i in range(4)]
    examples = tmp_path / "rows.jsonl"
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    donor = tmp_path / "donor"
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        donor.mkdir(exist_ok=True)
        (donor / name).write_text("{}")
    tasks = {"t": MultipleChoice(examples=examples)}

    def scores(evaluators=tasks):
        ledger = SharedLedger(tmp_path / "ledger")
        return SharedScores(ledger, evaluators, donor=donor, device="cpu", threads=1)

    scores().keep("ab" * 16, Scored(np.ones(4, np.float32), np.ones(4, np.float32)))
    assert scores().recall("ab" * 16).scores.tolist() == [1.0] * 4
    for name in ("tokenizer.json", "chat_template.jinja"):
        (donor / name).write_text('{"changed": true}')
        assert np.isnan(scores().recall("ab" * 16).scores).all()
        (donor / name).write_text("{}")
    assert scores().recall("ab" * 16).scores.tolist() == [1.0] * 4


def test_versions_of_what_a_task_uses_are_part_of_header_and_keys():
    class Own:
        packages = ("numpy", "pyyaml")

    class InVllm:
        engine = VllmEngine(name="vllm")

    found = package_versions([Own(), Part(Own(), np.array([0]))])
    assert found == {name: metadata.version(name) for name in ("numpy", "pyyaml")}
    assert package_versions([MultipleChoice(examples=Path("x.jsonl"))]) == {}
    assert LmEval.packages == ("datasets", "lm-eval")
    Own.packages = ("no-such-package",)
    with pytest.raises(ConfigError, match="evaluator Own needs the package no-such-package"):
        package_versions([Own()])
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(ConfigError, match=r"pip install 'evomerge\[vllm\]'"):
            package_versions([InVllm()])


def test_scores_without_margins_count_for_runs_that_keep_none(tmp_path):
    rows = [{"prompt": f"{i} and", "options": [" a", " b"], "gold": 0} for i in range(4)]
    examples = tmp_path / "rows.jsonl"
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"t": MultipleChoice(examples=examples)}

    def memory(*, needs_margins):
        ledger = SharedLedger(tmp_path / "ledger")
        place = {"donor": tmp_path, "device": "cpu", "threads": 1}
        return SharedScores(ledger, tasks, **place, needs_margins=needs_margins)

    none = np.full(4, np.nan, np.float32)
    memory(needs_margins=False).keep("ab" * 16, Scored(np.ones(4, np.float32), none))
    assert memory(needs_margins=False).recall("ab" * 16).scores.tolist() == [1.0] * 4
    assert np.isnan(memory(needs_margins=True).recall("ab" * 16).scores).all()
