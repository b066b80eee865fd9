import json

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError, DataError, EvaluationError
from evomerge.evaluation.embedding import EmbeddingSimilarity
from evomerge.evaluation.subject import Subject
from evomerge.testing import check_evaluator

from . import tiny_models

ROWS = [
    {"first": "the cat sat", "second": "the cat", "score": 5.0},
    {"first": "a", "second": "some longer text than that", "score": 0},
    {"first": "then the other one", "second": "xyz", "score": 2.5},
    {"first": "no", "second": "no", "score": 4},
    {"first": "ab" * 60, "second": "the cat", "score": 1},
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    model = tiny_models.make("BertModel", "BertConfig", tiny_models.ENCODER)
    folder = tiny_models.save(model, tmp_path_factory.mktemp("bert"))
    return Subject.load(folder, auto_class="AutoModel")


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    return file


def embed(subject, text, pooling):
    ids = subject.tokenizer(text, truncation=True, max_length=64)["input_ids"]
    with torch.inference_mode():
        states = subject.model(torch.tensor([ids])).last_hidden_state[0].double()
    vector = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_both_metrics_equal_one_text_at_a_time(bert, path, pooling):
    first = [embed(bert, row["first"], pooling) for row in ROWS]
    second = [embed(bert, row["second"], pooling) for row in ROWS]
    cosines = np.array(first) @ np.array(second).T
    close = EmbeddingSimilarity(examples=path, pooling=pooling, score_range=(0, 5))
    gold = np.array([row["score"] for row in ROWS]) / 5
    wanted = np.maximum(1 - np.abs(np.diag(cosines) - gold), -1)
    np.testing.assert_allclose(close.evaluate(bert), wanted, atol=1e-5)
    check_evaluator(close, bert)
    found = EmbeddingSimilarity(examples=path, pooling=pooling, metric="retrieval")
    nearest = np.diag(cosines) >= cosines.max(axis=1) - 1e-5
    np.testing.assert_array_equal(found.evaluate(bert), nearest)
    assert found.evaluate(bert)[3] == 1.0  # the very same text
    check_evaluator(found, bert)


def test_a_decoder_without_head_can_embed(tmp_path, path, llama_folder):
    subject = Subject.load(llama_folder, auto_class="AutoModel")
    evaluator = EmbeddingSimilarity(examples=path, pooling="last", score_range=(0, 5))
    check_evaluator(evaluator, subject)


def test_the_other_texts_are_part_of_a_retrieval_examples_digest(tmp_path, path):
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(json.dumps(row) for row in ROWS[:2]))
    digests = [
        EmbeddingSimilarity(examples=file, metric=metric, score_range=(0, 5)).example_digests()[0]
        for metric in ("retrieval", "closeness")
        for file in (path, other)
    ]
    assert digests[0] != digests[1]
    assert digests[2] == digests[3]


def test_bad_rows_settings_and_weights_are_errors(tmp_path, path, bert):
    with pytest.raises(DataError, match=r"d.jsonl:1: 'score' is 5.0, expected 0.0 to 1.0"):
        EmbeddingSimilarity(examples=path).n_examples()
    with pytest.raises(ConfigError, match="low < high"):
        EmbeddingSimilarity(examples=path, score_range=(1, 1))
    with pytest.raises(ConfigError, match="pooling is 'cls'"):
        EmbeddingSimilarity(examples=path, pooling="cls")
    broken = Subject.load(bert.folder, auto_class="AutoModel")
    with torch.no_grad():
        broken.model.encoder.layer[-1].output.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="is not finite"):
        EmbeddingSimilarity(examples=path, score_range=(0, 5)).evaluate(broken)
