"""What a candidate scores depends on its weights alone, not on what was resident before."""

import itertools
import json

import numpy as np
import pytest
import torch

from evomerge.core.candidate import Candidate
from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.errors import ExecutorError
from evomerge.evaluation.classification import Classification
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.perplexity import Perplexity
from evomerge.evaluation.subject import Subject
from evomerge.merging.derived import Derived
from evomerge.merging.plan import build_operators, group_labels, tensor_keys
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.storage.model_folder import ModelFolder
from tests.evaluation import tiny_models
from tests.evaluation.tiny_models import CAUSAL, SEQUENCE

NAMES = ("base", "x", "y")
FAMILIES = {
    CAUSAL: ("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER),
    SEQUENCE: ("BertForSequenceClassification", "BertConfig", tiny_models.ENCODER),
}
WORDS = ("the cat", "a b c", "then there", "that is the one", "x", "another thing")


def evaluators(auto_class, folder):
    """Evaluators of a family: log-likelihoods over shared prefixes, texts with the KV cache, …"""
    rows = {
        "choice": [
            {"prompt": f"{words} and", "options": [" the", " x", " then some"], "gold": 0}
            for words in WORDS
        ],
        "text": [{"text": f"{words} {words}"} for words in WORDS],
        "match": [{"prompt": words, "answer": "th"} for words in WORDS],
        "label": [{"text": words, "label": i % 2} for i, words in enumerate(WORDS)],
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    if auto_class == SEQUENCE:
        file = folder / "label.jsonl"
        return {
            "label": Classification(examples=file, metric="probability"),
            "right": Classification(examples=file),
        }
    return {
        "choice": MultipleChoice(examples=folder / "choice.jsonl"),
        "match": ExactMatch(examples=folder / "match.jsonl", max_new_tokens=6),
        "text": Perplexity(examples=folder / "text.jsonl"),
    }


@pytest.fixture(scope="module", params=FAMILIES)
def make(request, tmp_path_factory):
    """Return a function that starts a fresh worker."""
    folder = tmp_path_factory.mktemp("swaps")
    class_name, config_name, settings = FAMILIES[request.param]
    for seed, name in enumerate(NAMES):
        model = tiny_models.make(class_name, config_name, settings, seed=seed)
        tiny_models.save(model, folder / name)
    sources = {name: ModelFolder(name, folder / name) for name in NAMES}
    space = align([source.header() for source in sources.values()], has_base=True)
    tasks = evaluators(request.param, folder)

    def worker():
        subject = Subject.load(folder / "base", auto_class=request.param)
        scored = {task: (evaluator, subject) for task, evaluator in tasks.items()}
        return Worker(MergeInputs(space, sources, Derived()), [subject], scored, device="cpu")

    return worker


def mixture(*weights):
    return Recipe("linear", NAMES, {"weights": [weights]}, settings={"normalize": False})


def by_layer(space):
    rng = np.random.default_rng(3)
    blank = Recipe("linear", NAMES, {"weights": [[0.0] * 3]}, "layer", None, {"normalize": False})
    rows = rng.normal(size=(len(group_labels(blank, space)), 3))
    return Recipe("linear", NAMES, {"weights": rows}, "layer", None, {"normalize": False})


def score(worker, recipe, number=0):
    evaluation = worker.evaluate(Candidate(number, recipe)).evaluation
    assert evaluation.error is None, evaluation.error
    return evaluation


def equal(one, other):
    return one.weights_digest == other.weights_digest and np.array_equal(
        one.flat_scores(), other.flat_scores()
    )


def test_a_candidate_scores_the_same_after_another_one(make):
    worker = make()
    first, second = mixture(0.2, 0.5, 0.3), mixture(0.1, 0.0, 0.9)
    before = score(worker, first)
    between = score(worker, second)
    assert not np.array_equal(before.flat_scores(), between.flat_scores())
    assert equal(score(worker, first), before)
    assert equal(score(make(), first), before)


def test_the_order_of_candidates_does_not_matter(make):
    worker = make()
    recipes = [mixture(1.0, 0.0, 0.0), mixture(0.0, 0.6, 0.4), by_layer(worker._inputs.space)]
    alone = [score(make(), recipe) for recipe in recipes]
    for order in itertools.permutations(range(3)):
        for i in order:
            assert equal(score(worker, recipes[i]), alone[i]), order


def test_a_model_that_is_not_the_recipes_ends_the_run(make):
    worker = make()
    recipes = [mixture(0.2, 0.5 + i / 100, 0.3) for i in range(60)]
    score(worker, recipes[0])
    install = worker.install

    def tampering(recipe):
        digest = install(recipe)
        with torch.no_grad():
            for parameter in worker._subjects[0].model.parameters():
                parameter.view(-1)[0] += 1.0
        return digest

    worker.install = tampering
    with pytest.raises(ExecutorError, match=r"candidate 1: 1 of \d+ elements of .* not what its"):
        score(worker, recipes[1], 1)


def test_a_shortcut_that_leaves_stale_tensors_is_caught(make):
    worker = make()
    score(worker, mixture(0.2, 0.5, 0.3))
    other, space = mixture(0.4, 0.4, 0.2), worker._inputs.space
    # As if the worker took what is resident for what the next recipe makes.
    worker._resident[0] = dict(tensor_keys(other, space, build_operators(other, space)))
    with pytest.raises(ExecutorError, match="not what its recipe gives"):
        worker.evaluate(Candidate(1, other))


def test_a_dead_candidate_is_a_failure_with_its_reason(make):
    evaluation = make().evaluate(Candidate(5, mixture(0.0, 0.0, 0.0))).evaluation
    assert evaluation.error is not None
    assert "candidate 5" in evaluation.error
