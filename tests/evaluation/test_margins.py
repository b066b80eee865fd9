"""Margins: leads of the right answers, from the same passes that score them."""

import json

import numpy as np
import pytest
import torch

from evomerge.evaluation.classification import Classification
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.margins import (
    UNRIVALLED,
    gives_margins,
    margin_of,
    score_with_margins,
)
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.part import Part
from evomerge.evaluation.subject import Subject

from . import tiny_models

CHOICES = [
    {"prompt": "the cat", "options": [" sat", " ran", " the"], "gold": 1},
    {"prompt": "a", "options": [" b", " c"], "gold": 0},
    {"prompt": "then", "options": [" xyz", " no", " or"], "gold": 2},
    {"prompt": "one of", "options": [" them", " us", " you", " all"], "gold": 0},
]
TEXTS = ["the cat sat", "a", "some longer text than that", "then the other"]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    model = tiny_models.make(
        "BertForSequenceClassification", "BertConfig", tiny_models.ENCODER | {"num_labels": 3}
    )
    folder = tiny_models.save(model, tmp_path_factory.mktemp("bert"))
    return Subject.load(folder, auto_class="AutoModelForSequenceClassification")


def test_multiple_choice_margins_are_differences_of_log_likelihoods(tmp_path, llama):
    evaluator = MultipleChoice(examples=jsonl(tmp_path / "d.jsonl", CHOICES), normalise="token")
    scores, margins = evaluator.evaluate_with_margins(llama)
    np.testing.assert_array_equal(scores, evaluator.evaluate(llama))
    said = iter(evaluator.probe(llama, np.arange(len(CHOICES))))
    for row, score, margin in zip(CHOICES, scores, margins, strict=True):
        values = [next(said) for _ in row["options"]]
        gold = values.pop(row["gold"])
        assert margin == pytest.approx(gold - max(values), abs=1e-5)
        assert (margin > 0) == (score == 1.0)


def test_classification_margins_are_differences_of_logits(tmp_path, encoder):
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(TEXTS)]
    path = jsonl(tmp_path / "d.jsonl", rows)
    scores, margins = Classification(examples=path).evaluate_with_margins(encoder)
    for row, score, margin in zip(rows, scores, margins, strict=True):
        with torch.inference_mode():
            logits = encoder.model(torch.tensor([list(encoder.encode(row["text"]))])).logits[0]
        others = torch.cat((logits[: row["label"]], logits[row["label"] + 1 :]))
        assert margin == pytest.approx(float(logits[row["label"]] - others.max()), abs=1e-5)
        assert (margin > 0) == (score == 1.0)


def test_parts_give_those_of_their_examples(tmp_path, llama):
    whole = MultipleChoice(examples=jsonl(tmp_path / "d.jsonl", CHOICES))
    part = Part(whole, np.array([3, 1, 0]))
    _, margins = whole.evaluate_with_margins(llama)
    assert gives_margins(part)
    scores, some = score_with_margins(part, llama, np.array([2, 0]))
    np.testing.assert_allclose(some, margins[[0, 3]], atol=1e-5)
    assert scores.shape == (2,)
    np.testing.assert_allclose(
        score_with_margins(part, llama, None)[1], margins[[3, 1, 0]], atol=1e-5
    )


def test_other_scores_have_none(tmp_path, llama, encoder):
    rows = [{"prompt": "a b", "answer": "c"}, {"prompt": "d", "answer": "e"}]
    match = ExactMatch(examples=jsonl(tmp_path / "m.jsonl", rows), max_new_tokens=2)
    assert not gives_margins(match)
    assert np.isnan(score_with_margins(match, llama, None)[1]).all()
    labels = jsonl(tmp_path / "c.jsonl", [{"text": "x", "label": 0}])
    graded = Classification(examples=labels, metric="probability")
    assert not gives_margins(graded)
    scores, margins = score_with_margins(graded, encoder, None)
    assert 0.0 < scores[0] < 1.0
    assert np.isnan(margins).all()


def test_a_lead_over_the_best_other_answer():
    values = np.array([-3.0, -1.0, -1.5])
    assert [margin_of(values, gold) for gold in range(3)] == [-2.0, 0.5, -0.5]
    assert margin_of(np.array([4.0]), 0) == UNRIVALLED
