"""Reading what OpenAI-compatible servers answer, with the quirks that are known of them."""

import math

import pytest

from evomerge.errors import EvaluationError, ExecutorError
from evomerge.evaluation.http_client import Client, GarbageError
from evomerge.evaluation.openai_api import Answer, Asker, Token, option_tokens
from evomerge.evaluation.server import Server

from .faulty_server import Faulty, running


def echo(*parts, offsets=()):
    """Return an echo of tokens whose n-th has the log-probability -n."""
    tokens = tuple(Token(text, -float(n) if n else None, {}) for n, text in enumerate(parts))
    return Answer("".join(parts), tokens, tuple(offsets))


def test_only_the_tokens_of_the_option_count():
    answer = echo("the", " cat", " sat", " down", "!")  # the last one was generated
    assert option_tokens(answer, "the cat sat down", 7) == [-2.0, -3.0]
    assert option_tokens(answer, "the cat sat down", 3) == [-1.0, -2.0, -3.0]


def test_a_special_token_in_front_shifts_nothing():
    """vLLM writes `<s>` as text and counts it in its offsets."""
    answer = echo("<s>", "the", " cat", " sat", offsets=[0, 3, 6, 10])
    assert option_tokens(answer, "the cat sat", 7) == [-3.0]


def test_parts_of_a_character_fall_back_on_the_servers_offsets():
    answer = echo("é is ", "bytes:\\xc3", "bytes:\\xa9", offsets=[0, 5, 5])
    assert option_tokens(answer, "é is é", 4) == [-1.0, -2.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer("the cat"), "no logprobs of the prompt"),
        (echo("something", " else"), "do not spell"),
        (echo("the cat sat"), "no logprobs of the option"),
        (echo("the", " cat"), "no logprobs of the option"),
    ],
)
def test_an_echo_that_does_not_line_up_is_garbage(answer, message):
    with pytest.raises(GarbageError, match=message):
        option_tokens(answer, "the cat" if "cat" in answer.text else "the dog", 7)


def completion(**changes):
    return {"model": "m", "choices": [{"text": "yes", "logprobs": None}], **changes}


@pytest.fixture
def asking():
    faulty = Faulty(lambda path, body: faulty.reply)
    with running(faulty):
        server = Server(url=faulty.url, attempts=2, first_wait_seconds=0.001)
        yield faulty, Client(server)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ([], "instead of a JSON object"),
        ("welcome", "instead of a JSON object"),
        (completion(model="other"), "model 'other' answered, not 'm'"),
        (completion(choices=[]), "no choices"),
        (completion(choices=["yes"]), "no choices"),
        (completion(choices=[{}]), "without text"),
        (completion(choices=[{"text": 3}]), "without text"),
        (completion(choices=[{"text": "", "logprobs": {"tokens": ["a"]}}]), "malformed logprobs"),
        (completion(choices=[{"text": "", "logprobs": [1]}]), "malformed logprobs"),
    ],
)
def test_malformed_answers_end_the_run_with_what_was_wrong(asking, reply, message):
    faulty, client = asking
    faulty.reply = reply
    with pytest.raises(ExecutorError, match=message):
        Asker(client, "m").ask("p", max_tokens=1)
    assert len(faulty.requests) == 2


def test_a_nan_is_the_candidates_failure(asking):
    faulty, client = asking
    logprobs = {"tokens": ["a"], "token_logprobs": [math.nan]}
    faulty.reply = completion(choices=[{"text": "a", "logprobs": logprobs}])
    with pytest.raises(EvaluationError, match="NaN; the merged weights"):
        Asker(client, "m").ask("p", max_tokens=1)


def test_requests_say_what_was_asked(asking):
    faulty, client = asking
    faulty.reply = completion(usage={"prompt_tokens": 7, "completion_tokens": None})
    asker = Asker(client, "m", request={"top_k": 3})
    answer = asker.ask("p", max_tokens=5, stop=["x"], logprobs=1, echo=True)
    assert answer == Answer("yes")
    assert faulty.requests == [
        (
            "/v1/completions",
            {
                "model": "m",
                "prompt": "p",
                "max_tokens": 5,
                "temperature": 0,
                "stop": ["x"],
                "logprobs": 1,
                "echo": True,
                "top_k": 3,
            },
        )
    ]
    assert client.meter.take().prompt_tokens == 7


def test_a_reasoning_model_that_ran_out_of_tokens_has_said_nothing(asking):
    faulty, client = asking
    faulty.reply = completion(choices=[{"message": {"content": None, "reasoning": "hm"}}])
    assert Asker(client, "m", "chat").ask("p", max_tokens=5).text == ""
