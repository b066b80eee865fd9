from __future__ import annotations

import json

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.evaluation.classification import Classification
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.part import Part
from evomerge.evaluation.perplexity import Perplexity
from evomerge.evaluation.vote import majority, marks_of, require_votes


def test_most_answers_win_and_ties_go_to_the_first_member():
    ballots = [["a", "a", None, None, 3], ["b", "b", "b", None, 4], ["b", "c", None, None, 4]]
    assert majority(ballots) == ["b", "a", "b", None, 4]
    assert majority([["a"], ["b"]]) == ["a"]


def exact(tmp_path, **settings):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "1+1=", "answer": "so 2"}, {"prompt": "2+2=", "answer": "4.0"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ExactMatch(examples=path, filters=("last_number",), **settings)


def test_voted_answers_are_marked_as_single_ones_are(tmp_path):
    whole = exact(tmp_path)
    assert marks_of(whole, ["2", "4"]).tolist() == [1.0, 1.0]
    assert marks_of(whole, [None, "2"]).tolist() == [0.0, 0.0]
    assert marks_of(Part(whole, np.array([1])), ["4"]).tolist() == [1.0]


def test_what_cannot_be_voted_on_is_refused_with_the_reason(tmp_path):
    require_votes("t", Part(exact(tmp_path), np.array([0])))
    images = tmp_path / "images.npz"
    require_votes("t", Classification(examples=images))
    with pytest.raises(ConfigError, match=r"task 't' .* it is scored by probability"):
        require_votes("t", Classification(examples=images, metric="probability"))
    with pytest.raises(ConfigError, match=r"task 't' .* gives scores only"):
        require_votes("t", Perplexity(examples=tmp_path / "rows.jsonl"))
