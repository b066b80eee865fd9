"""LLM-as-judge against a real HTTP server that plays the judge."""

import json

import numpy as np
import pytest

from evomerge.errors import ConfigError, DataError, EvaluationError
from evomerge.evaluation.evaluator import Probes
from evomerge.evaluation.judge import Judge
from evomerge.evaluation.server import Server
from evomerge.testing import check_evaluator

from .faulty_server import Faulty, running

RUBRIC = "Question: {prompt}\nAnswer: {answer}\nTruth: {reference}\nMark from 0 to 10."


class Writer:
    name = "candidate 1"

    def require(self, auto_class):
        pass

    def generate(self, prompts, **_):
        return [f"answer to {prompt}" for prompt in prompts]


@pytest.fixture
def files(tmp_path):
    rubric, examples = tmp_path / "rubric.txt", tmp_path / "rows.jsonl"
    rubric.write_text(RUBRIC)
    rows = [{"prompt": f"q{i}", "reference": "{answer}"} for i in range(4)]
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rubric, examples


@pytest.fixture
def judging():
    """A judge whose replies are what `reply` makes of (text, seed)."""

    def answer(path, body):
        assert path == "/v1/chat/completions"
        assert body["temperature"] == 0
        text = faulty.reply(body["messages"][0]["content"], body["seed"])
        choice = {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return {"model": "judge-1-2026", "choices": [choice], "usage": usage}

    faulty = Faulty(answer)
    with running(faulty):
        yield faulty


def judge(faulty, files, **changes):
    server = Server(url=faulty.url, prompt_price=1.0, completion_price=10.0)
    rubric, examples = files
    return Judge(server=server, model="judge-1", rubric=rubric, examples=examples, **changes)


def test_marks_are_read_from_the_last_line_and_scaled(judging, files):
    judging.reply = lambda text, _: f"Well.\nScore: 1\nNo:\nScore: {2.5 * int(text[11])}\n"
    found = judge(judging, files).evaluate(Writer())
    np.testing.assert_allclose(found, [0.0, 0.25, 0.5, 0.75])
    assert judge(judging, files).evaluate(Writer(), np.array([3, 0])).tolist() == [0.75, 0.0]


def test_the_rubric_is_filled_in_one_pass(judging, files):
    judging.reply = lambda *_: "Score: 1"
    judge(judging, files).evaluate(Writer())
    texts = {body["messages"][0]["content"] for _, body in judging.requests}
    assert "Question: q2\nAnswer: answer to q2\nTruth: {answer}\nMark from 0 to 10." in texts


def test_samples_have_their_own_seeds_and_are_averaged(judging, files):
    judging.reply = lambda _, seed: f"Score: {seed * 5}"
    found = judge(judging, files, samples=3).evaluate(Writer())
    np.testing.assert_allclose(found, [0.5] * 4)


def test_a_reply_without_a_score_is_asked_for_again_with_a_reminder(judging, files):
    judging.reply = lambda text, _: "Score: 10" if "nothing but" in text else "ten out of ten"
    assert judge(judging, files).evaluate(Writer()).tolist() == [1.0] * 4
    assert len(judging.requests) == 8


@pytest.mark.parametrize(
    "reply", ["ten", "Score: ten", "Score: 11", "Score: -1", "Score: 5 or so", "", "**Score: 5**"]
)
def test_a_judge_that_never_gives_a_score_fails_the_candidate(judging, files, reply):
    judging.reply = lambda *_: reply
    with pytest.raises(EvaluationError, match=r"judge-1 gave no score from 0 to 10 in 2 tries"):
        judge(judging, files, tries=2).evaluate(Writer())


def test_what_the_judge_cost_is_counted(judging, files):
    judging.reply = lambda *_: "Score: 1"
    made = judge(judging, files)
    made.evaluate(Writer())
    usage = made.meter.take()
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (4, 400, 40)
    assert usage.cost == pytest.approx((400 * 1.0 + 40 * 10.0) / 1e6)


def test_bad_rubrics_and_rows_are_named(judging, files):
    rubric, examples = files
    rubric.write_text("How good is it?")
    with pytest.raises(DataError, match=r"rubric.txt: has no \{answer\}"):
        judge(judging, files).n_examples()
    rubric.write_text(RUBRIC)
    before = judge(judging, files).example_digests()
    rubric.write_text(RUBRIC + " Be strict.")
    assert not set(before) & set(judge(judging, files).example_digests())
    examples.write_text('{"prompt": "q"}\n')
    with pytest.raises(DataError, match="'reference' is missing"):
        judge(judging, files).n_examples()
    with pytest.raises(ConfigError, match="is not below"):
        judge(judging, files, lowest=5.0, highest=5.0)


def test_a_canary_looks_at_what_is_written_and_asks_no_judge(judging, files):
    made = judge(judging, files)
    assert isinstance(made, Probes)
    assert made.probe(Writer(), np.array([2, 0])) == ["answer to q2", "answer to q0"]
    assert judging.requests == []


def test_it_keeps_the_contract_on_a_real_model(judging, files, llama):
    judging.reply = lambda text, _: f"Score: {len(text) % 10}"
    check_evaluator(judge(judging, files, max_new_tokens=4), llama)
