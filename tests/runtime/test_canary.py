"""The canary: the base model has to say what it said, or the run ends with the reason."""

import json

import numpy as np
import pytest
import torch

from evomerge.config.models import open_sources
from evomerge.config.schema import ModelConfig, parse_config
from evomerge.config.workers import CANARY_EVERY, equip, worker_of
from evomerge.core.candidate import Candidate
from evomerge.core.recipe import Recipe
from evomerge.errors import UnavailableError
from evomerge.evaluation.classification import Classification
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.part import Part
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.merging.derived import Derived
from evomerge.runtime.in_process import InProcessExecutor
from evomerge.runtime.scorer_actor import Reply, ScorerActor
from evomerge.runtime.worker import MergeInputs, Scored
from tests.evaluation import tiny_models

WORDS = ("the cat", "a b c", "then there", "that is the one", "x", "another thing")
NAMES = ("base", "x", "y")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canary")
    for seed, name in enumerate(NAMES):
        model = tiny_models.make("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER, seed=seed)
        tiny_models.save(model, folder / name)
    rows = [
        {"prompt": f"{words} and", "options": [" the", " x"], "gold": 0, "answer": "th"}
        for words in WORDS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refs = [ModelConfig(name=name, model=str(folder / name)) for name in NAMES]
    return folder, open_sources(refs[0], refs[1:])


def worker(opened, evaluators=None):
    folder, models = opened
    rows = folder / "rows.jsonl"
    evaluators = evaluators or {
        "choice": MultipleChoice(examples=rows),
        "match": ExactMatch(examples=rows, max_new_tokens=8),
    }
    inputs = MergeInputs(models.space, models.sources, Derived())
    return worker_of(inputs, models, evaluators, device="cpu", threads=1)


def candidate(number, x=None):
    weights = np.array([[0.1, 0.9 if x is None else x, number / 10]])
    recipe = Recipe("linear", NAMES, {"weights": weights}, settings={"normalize": False})
    return Candidate(number, recipe)


def test_it_changes_no_score_and_looks_when_it_is_time(opened):
    plain, watched = worker(opened), worker(opened)
    watched.watch(2)
    looked = []
    install = watched._canary._install
    watched._canary._install = lambda recipe: looked.append(number) or install(recipe)
    for number in range(5):
        found, wanted = (w.evaluate(candidate(number)).evaluation for w in (watched, plain))
        assert found.error is None
        assert found.weights_digest == wanted.weights_digest
        np.testing.assert_array_equal(found.flat_scores(), wanted.flat_scores())
    assert looked == [0, 0, 2, 2, 4, 4]  # the base and the first expert


def test_a_state_beside_the_weights_that_changed_is_caught(opened):
    watched = worker(opened)
    watched.watch(2)
    for number in range(2):
        assert watched.evaluate(candidate(number)).evaluation.error is None
    with torch.no_grad():  # no weight, so no check of weights sees it
        watched._subjects[0].model.model.rotary_emb.inv_freq.mul_(1.5)
    with pytest.raises(UnavailableError, match=r"of task 'choice' differ, one was -\d") as e:
        watched.evaluate(candidate(2))
    assert "candidates 0 to 1 of this worker may be wrong" in str(e.value)


def test_what_came_after_the_last_look_is_looked_at_when_the_search_ends(opened):
    watched = worker(opened)
    watched.watch(100)
    executor = InProcessExecutor(watched)
    executor.last_look()  # nothing was scored yet
    for number in range(2):
        assert watched.evaluate(candidate(number)).evaluation.error is None
    executor.last_look()
    for number in range(2, 4):
        assert watched.evaluate(candidate(number)).evaluation.error is None
    with torch.no_grad():
        watched._subjects[0].model.model.rotary_emb.inv_freq.mul_(1.5)
    actor = ScorerActor({})
    assert actor.last_look() == Reply()
    actor._scorer = watched
    assert "candidates 2 to 3 of this worker" in actor.last_look().unavailable
    with pytest.raises(UnavailableError, match="candidates 2 to 3 of this worker may be wrong"):
        executor.last_look()


class Kept:
    """What other runs would be told."""

    def __init__(self):
        self.weights = []

    def recall(self, weights):
        return Scored(*np.full((2, 2 * len(WORDS)), np.nan, np.float32))

    def keep(self, weights, scored):
        assert not np.isnan(scored.scores).any()
        self.weights.append(weights)


def test_scores_reach_the_shared_ledger_once_the_canary_confirms_them(opened):
    watched = worker(opened)
    watched.watch(2)
    watched.memory = kept = Kept()
    made = [watched.evaluate(candidate(n)).evaluation.weights_digest for n in range(2)]
    assert kept.weights == []
    made.append(watched.evaluate(candidate(2)).evaluation.weights_digest)
    assert kept.weights == made[:2]
    watched.last_look()
    assert kept.weights == made
    watched.last_look()
    assert kept.weights == made, "each once"


def test_scores_before_a_dead_canary_never_reach_the_shared_ledger(opened):
    watched = worker(opened)
    watched.watch(2)
    watched.memory = kept = Kept()
    for number in range(2):
        assert watched.evaluate(candidate(number)).evaluation.error is None
    with torch.no_grad():
        watched._subjects[0].model.model.rotary_emb.inv_freq.mul_(1.5)
    with pytest.raises(UnavailableError, match="candidates 0 to 1"):
        watched.evaluate(candidate(2))
    with pytest.raises(UnavailableError, match="candidates 0 to 1"):
        watched.last_look()
    assert kept.weights == []


def test_without_a_canary_scores_reach_the_shared_ledger_at_once(opened):
    plain = worker(opened)
    plain.memory = kept = Kept()
    made = plain.evaluate(candidate(0)).evaluation.weights_digest
    assert kept.weights == [made]


def test_parts_and_evaluators_of_scores_only_are_watched(opened):
    folder, _ = opened
    whole = MultipleChoice(examples=folder / "rows.jsonl")
    seen = []

    class Scores:
        auto_class = "AutoModelForCausalLM"

        def n_examples(self):
            return 3

        def evaluate(self, subject, positions=None):
            seen.append(list(positions))
            return np.array([float(subject.model.lm_head.weight[0, i]) for i in positions])

    watched = worker(opened, {"part": Part(whole, np.array([4, 1])), "scores": Scores()})
    watched.watch(1)
    watched._canary.look(0)
    first = watched._canary._first["base"]
    assert len(first["part"]) == 2 * 2
    assert len(first["scores"]) == 3
    assert seen == [[0, 1, 2], [0, 1, 2]]
    watched._canary.look(1)
    assert watched._canary._since == [1]


def config(**runtime):
    return parse_config(
        {
            "name": "c",
            "models": ["x"],
            "merge": "linear",
            "tasks": [{"name": "t", "evaluator": "multiple_choice"}],
            "budget": {"evaluations": 1},
            "runtime": runtime,
        },
        "c.yaml",
    )


@pytest.mark.parametrize(
    ("runtime", "engine", "every"),
    [
        ({}, None, None),
        ({}, VllmEngine(name="vllm"), CANARY_EVERY),
        ({"canary_every": 7}, None, 7),
        ({"canary_every": 0}, VllmEngine(name="vllm"), None),
    ],
)
def test_it_is_on_where_an_engine_keeps_more_than_weights(opened, runtime, engine, every):
    folder, models = opened
    plain = worker(opened)
    asked = MultipleChoice(examples=folder / "rows.jsonl", engine=engine)
    equip(plain, config(**runtime), models, {"t": asked}, threads=1)
    assert (plain._canary._every if plain._canary else None) == every


def test_encoders_are_watched_too(tmp_path):
    for seed, name in enumerate(NAMES):
        settings = tiny_models.ENCODER
        model = tiny_models.make("BertForSequenceClassification", "BertConfig", settings, seed=seed)
        tiny_models.save(model, tmp_path / name)
    rows = [{"text": words, "label": i % 2} for i, words in enumerate(WORDS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refs = [ModelConfig(name=name, model=str(tmp_path / name)) for name in NAMES]
    models = open_sources(refs[0], refs[1:])
    task = Classification(examples=tmp_path / "rows.jsonl", metric="probability")
    watched = worker((tmp_path, models), {"label": task})
    watched.watch(1)
    for number in range(3):
        assert watched.evaluate(candidate(number)).evaluation.error is None


@pytest.mark.parametrize("margins", [np.full(6, 1e300), np.ones(5), np.array([np.inf] * 6)])
def test_margins_that_are_no_numbers_fail_the_candidate(opened, margins):
    class Odd:
        auto_class = "AutoModelForCausalLM"
        has_margins = True

        def n_examples(self):
            return len(WORDS)

        def evaluate(self, subject, positions=None):
            return np.ones(len(WORDS), np.float32)

        def evaluate_with_margins(self, subject, positions=None):
            return self.evaluate(subject), margins

    found = worker(opened, {"odd": Odd()}).evaluate(candidate(0)).evaluation
    assert "task 'odd': margins must be 6 numbers" in found.error
