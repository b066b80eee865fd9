"""The budget of tokens with real evaluators: what fits is found once, and no score changes."""

import json

import numpy as np
import pytest

from evomerge.evaluation.batching import TokenBudget
from evomerge.evaluation.classification import Classification
from evomerge.evaluation.embedding import EmbeddingSimilarity
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.perplexity import Perplexity
from evomerge.evaluation.subject import Subject

from . import tiny_models
from .tiny_models import CAUSAL, SEQUENCE

HEADER = "the quick fox and the dog say "
TEXTS = [HEADER + rest for rest in ("a", "so it is", "x y z and more", "then", "no", "that")] * 6
ROWS = [
    {
        "prompt": text,
        "options": [" a", " bcd"],
        "gold": 0,
        "answer": "a",
        "text": text,
        "label": i % 2,
        "first": text,
        "second": text[::-1],
        "score": 0.5,
    }
    for i, text in enumerate(TEXTS)
]
CASES = {
    "choice": (CAUSAL, MultipleChoice, {}),
    "match": (CAUSAL, ExactMatch, {"max_new_tokens": 4}),
    "text": (CAUSAL, Perplexity, {}),
    "label": (SEQUENCE, Classification, {"metric": "probability"}),
    "embedding": (CAUSAL, EmbeddingSimilarity, {"auto_class": "AutoModel"}),
}
ROOM = 240  # tokens of a forward pass; encoders take four rows at least, see `filled`


@pytest.fixture(params=CASES)
def case(request, tmp_path, llama_folder):
    auto_class, kind, settings = CASES[request.param]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder = llama_folder
    if auto_class == SEQUENCE:
        made = ("BertForSequenceClassification", "BertConfig", tiny_models.ENCODER)
        folder = tiny_models.save(tiny_models.make(*made), tmp_path / "bert")
    auto_class = settings.pop("auto_class", auto_class)
    subject = Subject.load(folder, auto_class=auto_class)
    return subject, kind(examples=tmp_path / "rows.jsonl", **settings)


def test_what_fits_is_found_once_and_no_score_changes(case, monkeypatch):
    subject, evaluator = case
    whole = evaluator.evaluate(subject)
    subject.budget = TokenBudget(subject.device, subject.n_token_rows)
    inner, refused, largest = subject.model.forward, [], []

    def small(*args, **inputs):
        ids = inputs["input_ids"] if "input_ids" in inputs else args[0]
        if ids.numel() > ROOM:
            refused.append(ids.numel())
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        largest.append(ids.numel())
        return inner(*args, **inputs)

    monkeypatch.setattr(subject.model, "forward", small)
    np.testing.assert_array_equal(evaluator.evaluate(subject), whole)
    assert refused, "else nothing is shown"
    assert subject.budget.cap is not None
    refused.clear()
    np.testing.assert_array_equal(evaluator.evaluate(subject), whole)
    assert refused == [], "found once"
    assert max(largest) > ROOM / 3, "and not smaller than it has to be"
