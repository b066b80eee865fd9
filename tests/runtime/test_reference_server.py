"""The reference server answers as the model in this process does, and to nobody without the token."""

import threading

import httpx2
import numpy as np
import pytest

from evomerge.core.ancestry import ancestor_name
from evomerge.core.model_space import align
from evomerge.core.noise import noise_name
from evomerge.core.recipe import Recipe
from evomerge.errors import EvaluationError, ExecutorError
from evomerge.evaluation.http_client import Client
from evomerge.evaluation.installs import RecipeInstall
from evomerge.evaluation.served_subject import ServedModel, ServedSubject
from evomerge.evaluation.server import ServedCandidate, Server
from evomerge.evaluation.subject import Subject
from evomerge.merging.derived import Derived
from evomerge.runtime.reference_server import ReferenceServer
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.storage.open_source import open_source
from tests.evaluation import tiny_models

TOKEN = "the-token"
PROMPTS = ["the cat", "a dog", "what is this"]
OPTIONS = [[" the", " a", " of"], ["x", " yz"], [" one", " two", " three"]]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}>{% endfor %}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A server, its address, and a worker of our own over the same models."""
    folder = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("base", "x", "y")):
        model = tiny_models.make("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER, seed)
        tiny_models.save(model, folder / name)
    sources = {name: open_source(name, folder / name) for name in ("base", "x", "y")}
    space = align([source.header() for source in sources.values()], has_base=True)
    inputs = MergeInputs(space, sources, Derived())
    digests = {name: f"digest-{name}" for name in sources}

    def worker():
        subject = Subject.load(folder / "base", auto_class="AutoModelForCausalLM")
        return Worker(inputs, [subject], {}, device="cpu"), subject

    served, held = worker()
    server = ReferenceServer(served, held, sources=digests, token=TOKEN)
    held.tokenizer.chat_template = TEMPLATE
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.url, digests, *worker()
    server.close()
    thread.join()


def recipe(x, y):
    params = {"weights": np.array([[x, y]]), "lambda_": np.ones(1)}
    return Recipe("task_arithmetic", ("base", "x", "y"), params)


@pytest.fixture
def connected(world, monkeypatch):
    monkeypatch.setenv("TEST_TOKEN", TOKEN)
    url, digests, worker, subject = world
    server = Server(url=url, api_key_env="TEST_TOKEN", attempts=2, first_wait_seconds=0.01)
    client = Client(server)
    return ServedModel(client, RecipeInstall(client, digests)), server, worker, subject


def test_text_options_and_digests_are_those_of_the_model_here(connected):
    model, server, worker, subject = connected
    served = ServedSubject(model, ServedCandidate(server=server, install="recipe"))
    seen = set()
    for weights in ((0.5, 0.1), (0.2, 0.7), (0.5, 0.1)):
        assert model.install(recipe(*weights)) == worker.install(recipe(*weights))
        for stop in ((), ("t",)):
            texts = served.generate(PROMPTS, max_new_tokens=5, stop=stop)
            assert texts == subject.generate(PROMPTS, max_new_tokens=5, stop=stop)
        for normalise in ("none", "token", "char"):
            found = served.option_logprobs(PROMPTS, OPTIONS, normalise=normalise)
            own = subject.option_logprobs(PROMPTS, OPTIONS, normalise=normalise)
            np.testing.assert_allclose(found, own, atol=1e-4)
        seen.add(found.tobytes())
    assert len(seen) == 2, "the same candidate twice answers alike, another one does not"
    usage = model.client.meter.take()
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0


def test_ancestors_are_sent_along(connected):
    model, _, worker, _ = connected

    def descendant(x: str, depth: int = 3) -> Recipe:
        weights, settings = {"weights": np.full((1, 3), 0.3)}, {"normalize": False}
        made = Recipe("linear", ("base", x, noise_name(1)), weights, settings=settings)
        for _ in range(depth):
            name = ancestor_name(made.digest())
            made = Recipe(
                "linear", ("base", "y", name), weights, settings=settings, ancestors={name: made}
            )
        return made

    digest = model.install(descendant("x"))
    assert digest == worker.install(descendant("x"))
    assert digest != model.install(descendant("x", depth=2))
    with pytest.raises(EvaluationError, match="source 'z' is not held here"):
        model.install(descendant("z"))


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_first_tokens_are_compared_where_nothing_is_echoed(connected, api):
    model, server, _, _ = connected
    model.install(recipe(0.3, 0.3))
    how = ServedCandidate(server=server, install="recipe", api=api, choose="first_token")
    table = ServedSubject(model, how).option_logprobs(["the"], [["zzzz", "\x00", *"abcdefgh"]])
    assert table.shape == (1, 10)
    assert np.isfinite(table).all()
    assert (table <= 0).all()


def test_chat_goes_through_the_template(connected):
    model, server, worker, subject = connected
    model.install(recipe(0.3, 0.3))
    worker.install(recipe(0.3, 0.3))
    for system in (None, "be brief"):
        how = ServedCandidate(server=server, install="recipe", api="chat", system_prompt=system)
        texts = ServedSubject(model, how).generate(PROMPTS, max_new_tokens=4)
        first = "" if system is None else f"{system}>"
        prompts = [f"{first}{prompt}>" for prompt in PROMPTS]
        assert texts == subject.generate(prompts, max_new_tokens=4)


def test_another_client_that_installs_in_between_is_noticed(connected):
    model, server, _, _ = connected
    other = ServedModel(model.client, RecipeInstall(Client(server), {}))
    model.install(recipe(0.1, 0.2))
    other.install(recipe(0.9, 0.2))
    served = ServedSubject(model, ServedCandidate(server=server, install="recipe"))
    with pytest.raises(ExecutorError, match="is installed"):
        served.generate(PROMPTS, max_new_tokens=2)


def test_other_models_than_ours_are_refused(connected):
    _, server, _, _ = connected
    client = Client(server)
    with pytest.raises(ExecutorError, match="'x' is digest-x, this run's is another"):
        RecipeInstall(client, {"base": "digest-base", "x": "another"})(recipe(1, 0))
    with pytest.raises(ExecutorError, match="'z' is missing"):
        RecipeInstall(client, {"z": "digest-z"})(recipe(1, 0))


def test_a_recipe_that_cannot_be_merged_fails_its_candidate_and_leaves_no_model(connected):
    model, _, _, _ = connected
    model.install(recipe(0.1, 0.2))
    for bad in (
        Recipe("no_such_method", ("base", "x", "y"), {"weights": np.ones((1, 2))}),
        Recipe("task_arithmetic", ("base", "x", "z"), {"weights": np.ones((1, 2))}),
    ):
        with pytest.raises(EvaluationError, match="HTTP 422"):
            model.install(bad)
        with pytest.raises(EvaluationError, match="no candidate is installed"):
            _ = model.version


@pytest.fixture
def http(connected):
    model, server, _, _ = connected
    model.install(recipe(0.1, 0.2))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx2.Client(base_url=server.url, headers=headers) as client:
        client.version = model.version
        yield client


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": ""}])
@pytest.mark.parametrize("path", ["/evomerge/v1/version", "/v1/models", "/nothing"])
def test_nobody_gets_in_without_the_token(world, given, path):
    with httpx2.Client(base_url=world[0], headers=given) as client:
        assert client.get(path).status_code == 401
        assert client.post(path, json={"recipe": {}}).status_code == 401


def test_an_empty_token_is_refused(world):
    with pytest.raises(ValueError, match="token is empty"):
        ReferenceServer(world[2], world[3], sources={}, token="")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "a" * 100, "logprobs": 1, "max_tokens": 1}, "takes 1 to 64"),
        ({"temperature": 0.7}, "greedy"),
        ({"n": 3}, "n are not offered"),
        ({"stream": True}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 99}, "logprobs must be"),
        ({"logprobs": 1}, "max_tokens must be 1"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_what_is_not_offered_is_refused(http, change, message):
    body = {"model": http.version, "prompt": "the", "temperature": 0, "max_tokens": 3, **change}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_malformed_requests_get_an_answer_and_the_server_lives_on(http):
    assert http.get("/v1/nothing").status_code == 404
    assert http.post("/v1/completions", json=[1]).status_code == 400
    assert http.post("/v1/completions", content=b"{").status_code == 400
    assert http.post("/v1/completions", content=iter([b"{}"])).status_code == 413  # no length
    assert http.post("/evomerge/v1/install", json={}).status_code == 422
    assert http.post("/evomerge/v1/install", json={"recipe": [1]}).status_code == 422
    body = {"model": "another", "prompt": "a", "temperature": 0}
    assert http.post("/v1/completions", json=body).status_code == 409
    assert http.post("/v1/chat/completions", json=body | {"messages": []}).status_code == 409
    assert http.get("/evomerge/v1/version").json()["version"] is None
