"""The client against a real server that is down, slow, busy, rude or talks nonsense."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from evomerge.errors import ConfigError, EvaluationError, ExecutorError
from evomerge.evaluation.http_client import (
    Client,
    GarbageError,
    Usage,
    logged_usage,
    usage_text,
)
from evomerge.evaluation.server import Server

from .faulty_server import Faulty, running


def number(body):
    if not isinstance(body, dict):
        raise GarbageError("no object")
    return body["number"]


def doubled(path, body):
    return {"number": 2 * body["number"] if body else 0}


@pytest.fixture
def faulty():
    with running(Faulty(doubled)) as server:
        yield server


def client_of(faulty, **settings):
    """Return a client that notes how long it would wait, and does not."""
    base = {"attempts": 4, "first_wait_seconds": 1.0, "timeout_seconds": 5.0}
    client = Client(Server(url=faulty.url, **{**base, **settings}))
    client.waits = []
    client._stopped.wait = client.waits.append
    return client


def ask(client, value=21):
    return client.ask("POST", "/number", {"number": value}, number)


def test_an_answer_comes_back(faulty):
    assert ask(client_of(faulty)) == 42
    assert faulty.requests == [("/number", {"number": 21})]


@pytest.mark.parametrize("move", [429, 500, 502, 503, 504, "drop", "garbage"])
def test_what_may_pass_is_tried_again(faulty, move):
    faulty.moves = [move, move]
    client = client_of(faulty)
    assert ask(client) == 42
    assert len(faulty.requests) == 3
    assert client.meter.take().retries == 2


def test_waits_double_with_a_seeded_jitter_up_to_the_longest(faulty):
    def waits(seed):
        faulty.moves = [503] * 7
        client = client_of(faulty, attempts=8, longest_wait_seconds=10.0)
        client._seed = seed
        ask(client)
        return client.waits

    first = waits(0)
    for wait, full in zip(first, (1, 2, 4, 8, 10, 10, 10), strict=True):
        assert full / 2 <= wait <= full
    assert waits(0) == first
    assert waits(1) != first


def test_retry_after_is_kept_in_seconds_and_as_a_date(faulty):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    faulty.moves = [(429, {"Retry-After": "7"}), (503, {"Retry-After": later})]
    client = client_of(faulty)
    assert ask(client) == 42
    assert 7 <= client.waits[0] <= 8
    assert 25 <= client.waits[1] <= 32


@pytest.mark.parametrize("value", ["soon", "-3", "nan", "1e400", ""])
def test_a_senseless_retry_after_is_passed_over(faulty, value):
    faulty.moves = [(429, {"Retry-After": value})]
    client = client_of(faulty)
    assert ask(client) == 42
    assert client.waits[0] <= 1


def test_a_server_that_asks_for_too_long_a_wait_ends_the_run(faulty):
    faulty.moves = [(429, {"Retry-After": "3600"})]
    with pytest.raises(
        ExecutorError, match=r"3600 s, more than longest_wait_seconds 60.*[Rr]esume"
    ):
        ask(client_of(faulty))
    assert len(faulty.requests) == 1


def test_a_server_that_is_down_ends_the_run_resumably():
    with running(Faulty(doubled)) as gone:
        pass
    with pytest.raises(ExecutorError, match=r"cannot be reached.*in 4 attempts.*resume"):
        ask(client_of(gone))


@pytest.mark.parametrize("move", ["slow", "drip"])
def test_a_slow_server_is_given_up(faulty, move):
    faulty.moves = [move] * 2
    with pytest.raises(ExecutorError, match=r"answer in 0.2 s, in 2 attempts"):
        ask(client_of(faulty, timeout_seconds=0.2, attempts=2))


def test_garbage_is_shown(faulty):
    faulty.moves = ["garbage"] * 4
    with pytest.raises(ExecutorError, match="answered garbage: no object"):
        ask(client_of(faulty))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_us_ends_the_run_at_once(faulty, status):
    faulty.moves, faulty.says = [status], "who are you"
    with pytest.raises(ExecutorError, match=f"HTTP {status}: who are you. Check url"):
        ask(client_of(faulty))
    assert len(faulty.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_the_candidates_failure(faulty, status):
    faulty.moves, faulty.says = [status], "prompt too long"
    with pytest.raises(EvaluationError, match="prompt too long"):
        ask(client_of(faulty))
    assert len(faulty.requests) == 1


def test_a_crash_that_lasts_is_the_candidates_failure_if_the_server_lives(faulty):
    faulty.moves = [500] * 4
    with pytest.raises(EvaluationError, match=r"HTTP 500.*while the server is alive"):
        ask(client_of(faulty))
    assert faulty.requests[-1] == ("/v1/models", None)
    faulty.moves = [500] * 5
    with pytest.raises(ExecutorError, match="HTTP 500"):
        ask(client_of(faulty))


def test_the_key_is_sent_and_never_shown(faulty, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-very-secret")
    client = client_of(faulty, api_key_env="TEST_KEY")
    assert ask(client) == 42
    assert faulty.keys == ["Bearer sk-very-secret"]
    faulty.moves, faulty.says = [401], "the key sk-very-secret is wrong"
    with pytest.raises(ExecutorError) as caught:
        ask(client)
    assert "sk-very-secret" not in str(caught.value)
    assert "***" in str(caught.value)
    assert "sk-very" not in repr(client.server)


def test_a_missing_key_or_address_names_the_variable(faulty, monkeypatch):
    monkeypatch.delenv("TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="'TEST_KEY' is not set"):
        ask(client_of(faulty, api_key_env="TEST_KEY"))
    with pytest.raises(ConfigError, match="'TEST_URL' is not set"):
        Server(url="$TEST_URL").root()
    monkeypatch.setenv("TEST_URL", faulty.url + "/v1/")
    assert Server(url="$TEST_URL").root() == faulty.url


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "expected http"),
        ({"url": "http://me:pw@host"}, "api_key_env"),
        ({"url": "http://host", "attempts": 0}, "attempts is 0"),
        ({"url": "http://host", "timeout_seconds": 0.0}, "timeout_seconds is 0"),
        ({"url": "http://host", "prompt_price": -1.0}, "negative"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Server(**settings)


def test_many_requests_keep_their_order_and_the_limit(faulty):
    faulty.pause = 0.01
    client = client_of(faulty, concurrency=3)
    values = list(range(30))
    assert client.map(lambda v: ask(client, v), values) == [2 * v for v in values]
    assert 1 < faulty.most_at_once <= 3
    assert client.map(lambda v: v, []) == []


def test_the_first_final_error_ends_the_others(faulty):
    faulty.moves = [None] * 5 + [401]
    client = client_of(faulty, concurrency=2)
    with pytest.raises(ExecutorError, match="HTTP 401"):
        client.map(lambda v: ask(client, v), list(range(200)))
    assert len(faulty.requests) < 200
    assert client.map(lambda v: ask(client, v), [1, 2]) == [2, 4], "the client can be used again"


def test_usage_is_summed_from_a_log(faulty):
    client = client_of(faulty)
    ask(client)
    client.meter.add(prompt_tokens=10, completion_tokens=3, cost=0.25)
    line = usage_text([client.meter])
    assert line == "usage requests=1 retries=0 prompt_tokens=10 completion_tokens=3 cost=0.250000"
    assert usage_text([client.meter]) == ""
    assert logged_usage(f"one {line}\ntwo {line}\n") == Usage(2, 0, 20, 6, 0.5)
    assert logged_usage("nothing of the kind") is None
