"""The adapter to vLLM, against an engine that fails on misuse; the real one is in test_vllm."""

import json

import numpy as np
import pytest
import torch

from evomerge.config.engines import engine_of
from evomerge.core.candidate import Candidate
from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.errors import EvaluationError, ExecutorError, UnavailableError
from evomerge.evaluation.code_execution import CodeExecution
from evomerge.evaluation.empty_model import empty_model
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.judge import Judge
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.perplexity import Perplexity
from evomerge.evaluation.server import Server
from evomerge.evaluation.subject import Subject
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.evaluation.vllm_subject import VllmSubject
from evomerge.merging.derived import Derived
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.storage.model_folder import ModelFolder

from . import tiny_models
from .fake_vllm import FakeLLM, MisuseError
from .tiny_models import CAUSAL

NAMES = ("base", "x", "y")
WORDS = ("the cat", "a b c", "then there", "that is the one", "x", "another thing")
PROMPTS = [f"{words} and all of the rest" for words in WORDS]
OPTIONS = [[" the", " x", " then some"]] * len(PROMPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    for seed, name in enumerate(NAMES):
        model = tiny_models.make("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER, seed=seed)
        tiny_models.save(model, folder / name)
    rows = {
        "choice": [{"prompt": p, "options": OPTIONS[0], "gold": 0} for p in PROMPTS],
        "match": [{"prompt": p, "answer": "th"} for p in PROMPTS],
        "text": [{"text": p} for p in PROMPTS],
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    return folder


def tensors(folder, name="x"):
    return tiny_models.file_tensors(folder / name)


def started(folder, **settings):
    """Return a subject and the engine it runs on."""
    llm = FakeLLM(folder / "base", **settings)
    loaded = empty_model(folder / "base", auto_class=CAUSAL, trust_remote_code=False)
    return VllmSubject(loaded, llm.engine(), name="tiny"), llm


def says(subject):
    """Return log-likelihoods and texts."""
    table = subject.option_logprobs(PROMPTS, OPTIONS)
    return table, subject.generate(PROMPTS, max_new_tokens=12, stop=["q"])


def test_it_says_what_transformers_says(folder):
    subject, _ = started(folder)
    plain = Subject.load(folder / "base", auto_class=CAUSAL)
    for name in ("base", "x"):
        for one in (subject, plain):
            one.install(tensors(folder, name).items())
        (table, texts), (wanted, answers) = says(subject), says(plain)
        np.testing.assert_allclose(table, wanted, rtol=1e-5)
        assert texts == answers
        sequences = [subject.encode(prompt) for prompt in PROMPTS]
        for nll, other in zip(
            subject.token_nll(sequences), plain.token_nll(sequences), strict=True
        ):
            np.testing.assert_allclose(nll, other, rtol=1e-4)
    assert subject.end_token_ids == plain.end_token_ids
    assert subject.first_tokens == plain.first_tokens


def test_a_candidate_answers_the_same_after_another_one(folder):
    subject, llm = started(folder)
    subject.install(tensors(folder, "x").items())
    table, texts = says(subject)
    subject.install(tensors(folder, "y").items())
    between = says(subject)
    assert not np.array_equal(between[0], table)
    assert between[1] != texts
    subject.install(tensors(folder, "x").items())
    again = says(subject)
    np.testing.assert_array_equal(again[0], table)
    assert again[1] == texts
    assert llm.installed == 3
    says(subject)
    assert llm.hits > 0  # the prefix cache is there, and used between two installations


def test_programs_and_answers_for_a_judge_are_written_in_it(folder):
    subject, _ = started(folder)
    plain = Subject.load(folder / "base", auto_class=CAUSAL)
    for one in (subject, plain):
        one.install(tensors(folder, "base").items())
    engine, positions = VllmEngine(name="vllm"), np.array([3, 0])
    code = CodeExecution(
        examples=folder / "match.jsonl",
        allow_code_execution=True,
        max_new_tokens=8,
        engine=engine,
    )
    judge = Judge(
        server=Server(url="http://127.0.0.1:1"),
        model="j",
        rubric=folder / "rubric.txt",
        examples=folder / "match.jsonl",
        max_new_tokens=8,
        engine=engine,
    )
    for evaluator in (code, judge):
        assert engine_of(evaluator) == engine
        assert evaluator.probe(subject, positions) == evaluator.probe(plain, positions)


def without(name):
    return lambda given: [(n, t) for n, t in given if n != name]


def changed(name, change):
    return lambda given: [(n, change(t) if n == name else t) for n, t in given]


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without(NORM), f"1 tensors are missing, the first is {NORM}"),
        (lambda given: [*given, ("model.extra.weight", torch.zeros(2))], "no tensor model.extra"),
        (lambda given: [*given, given[0]], "came twice"),
        (changed(NORM, lambda t: t[:-1]), r"norm.weight is \(31,\) torch.float32"),
        (changed(NORM, lambda t: t.bfloat16()), r"norm.weight is \(32,\) torch.bfloat16"),
    ],
)
def test_what_vllm_would_take_in_silence_is_refused(folder, spoil, message):
    subject, llm = started(folder)
    good = list(tensors(folder, "x").items())
    subject.install(good)
    wanted = says(subject)[1]
    with pytest.raises(EvaluationError, match=message):
        subject.install(spoil(good))
    for score in (
        lambda: subject.generate(["a"], max_new_tokens=1),
        lambda: subject.option_logprobs(["a"], [["b", "c"]]),
        lambda: subject.token_nll([(1, 2)]),
        lambda: subject.require(CAUSAL),
    ):
        with pytest.raises(EvaluationError, match="not those of one candidate"):
            score()
    subject.install(good)
    assert says(subject)[1] == wanted
    assert llm.installed == 3  # the spoilt stream was brought to its end


def test_a_stream_that_breaks_off_leaves_an_engine_that_can_go_on(folder):
    subject, llm = started(folder)
    given = list(tensors(folder, "x").items())

    def breaking():
        yield from given[:9]
        raise EvaluationError("a merged tensor is NaN")

    with pytest.raises(EvaluationError, match="a merged tensor is NaN"):
        subject.install(breaking())
    subject.install(given)
    assert len(says(subject)[1]) == len(PROMPTS)
    assert llm.installed == 2


def test_weights_that_vllm_refuses_end_the_worker(folder):
    subject, llm = started(folder)
    load = llm._load
    llm._load = lambda weights: load([*weights, ("model.extra.weight", torch.zeros(1))])
    message = r"vLLM refused its weights \(ValueError: There is no module"
    with pytest.raises(ExecutorError, match=message):
        subject.install(tensors(folder).items())


def test_scoring_before_the_caches_are_dropped_is_misuse(folder):
    for left_out in ("reset_prefix_cache", "reset_mm_cache"):
        subject, llm = started(folder)
        setattr(llm, left_out, lambda: True)
        with pytest.raises(MisuseError, match="cache"):
            subject.install(tensors(folder).items())
    subject, llm = started(folder)
    llm.llm_engine.reset_encoder_cache = lambda: None
    with pytest.raises(MisuseError, match="encoder cache"):
        subject.install(tensors(folder).items())


def test_a_prefix_cache_that_cannot_be_reset_ends_the_worker(folder):
    subject, llm = started(folder)
    llm.reset_prefix_cache = lambda: False
    with pytest.raises(ExecutorError, match="prefix cache cannot be reset"):
        subject.install(tensors(folder).items())


def test_a_stale_weight_version_ends_the_worker(folder):
    subject, llm = started(folder)
    llm.llm_engine.set_weight_version = lambda version: None
    with pytest.raises(ExecutorError, match="vLLM holds weights 'default', 'evomerge-1' were"):
        subject.install(tensors(folder).items())
    subject, llm = started(folder)
    subject.install(tensors(folder).items())
    llm._set_version("somebody-else")
    with pytest.raises(ExecutorError, match=r"answered with weights \['somebody-else'\]"):
        subject.generate(PROMPTS, max_new_tokens=2)


def test_a_broken_or_dead_model_is_a_failure_with_its_reason(folder):
    subject, _ = started(folder)
    given = tensors(folder)
    subject.install((given | {NORM: torch.full_like(given[NORM], torch.nan)}).items())
    with pytest.raises(EvaluationError, match="outputs of the first prompts are not finite"):
        subject.generate(PROMPTS, max_new_tokens=2)
    subject.install((given | {NORM: torch.zeros_like(given[NORM])}).items())
    for score in (
        lambda: subject.generate(PROMPTS, max_new_tokens=2),
        lambda: subject.option_logprobs(PROMPTS, OPTIONS),
    ):
        with pytest.raises(EvaluationError, match="same output for"):
            score()


def test_what_is_too_long_is_said_before_the_engine_sees_it(folder):
    subject, llm = started(folder)
    assert subject.max_tokens == 63  # vLLM always generates one more
    with pytest.raises(EvaluationError, match="the model has room for"):
        subject.generate(["a" * 64], max_new_tokens=2)
    with pytest.raises(EvaluationError, match="the model has room for"):
        subject.option_logprobs(["a" * 64], [["b", "c"]])
    llm.model_config.max_model_len = 1000
    assert subject.max_tokens == 999


def test_closing_ends_the_engine_once(folder):
    subject, llm = started(folder)
    subject.close()
    subject.close()
    assert llm.is_down
    with pytest.raises(EvaluationError, match="not those of one candidate"):
        subject.generate(["a"], max_new_tokens=1)
    other, llm = started(folder)
    del other  # nobody closed it
    assert llm.is_down


# In a worker


def worker_on(subject, folder):
    sources = {name: ModelFolder(name, folder / name) for name in NAMES}
    space = align([source.header() for source in sources.values()], has_base=True)
    tasks = {
        "choice": MultipleChoice(examples=folder / "choice.jsonl"),
        "match": ExactMatch(examples=folder / "match.jsonl", max_new_tokens=6),
        "text": Perplexity(examples=folder / "text.jsonl"),
    }
    scored = {task: (evaluator, subject) for task, evaluator in tasks.items()}
    return Worker(MergeInputs(space, sources, Derived()), [subject], scored, device="cpu")


def mixture(*weights):
    return Recipe("linear", NAMES, {"weights": np.array([weights])}, settings={"normalize": False})


RECIPES = [mixture(0.2, 0.5, 0.3), mixture(0.1, 0.0, 0.9), mixture(1.0, 0.0, 0.0)]


def test_candidates_score_in_vllm_as_in_transformers(folder):
    """The merge stream comes whole and in the order of layers, or the engine would fail."""
    subject, _ = started(folder)
    served = worker_on(subject, folder)
    plain = worker_on(Subject.load(folder / "base", auto_class=CAUSAL), folder)
    for number, recipe in enumerate([*RECIPES, RECIPES[0]]):
        candidate = Candidate(number, recipe)
        found, wanted = (worker.evaluate(candidate).evaluation for worker in (served, plain))
        assert found.error is None
        assert found.weights_digest == wanted.weights_digest
        np.testing.assert_allclose(found.flat_scores(), wanted.flat_scores(), rtol=1e-5)


def test_a_merge_that_fails_leaves_a_worker_that_goes_on(folder):
    subject, _ = started(folder)
    worker = worker_on(subject, folder)
    good = Candidate(0, RECIPES[0])
    before = worker.evaluate(good).evaluation
    broken = worker.evaluate(Candidate(1, mixture(1e38, 1e38, 1e38))).evaluation
    assert "NaN or infinite" in broken.error
    np.testing.assert_array_equal(
        worker.evaluate(good).evaluation.flat_scores(), before.flat_scores()
    )


def test_weights_that_are_not_the_recipes_end_the_run(folder):
    subject, llm = started(folder)
    worker = worker_on(subject, folder)
    load = llm._load

    def tampering(weights):
        load(weights)
        with torch.no_grad():
            for parameter in llm.model.parameters():
                parameter.view(-1)[0] += 1.0

    llm._load = tampering
    with pytest.raises(ExecutorError, match="not what its recipe gives"):
        worker.evaluate(Candidate(0, RECIPES[0]))


@pytest.mark.parametrize("broken_from", [0, 2, 3])
def test_a_skipped_cache_reset_is_caught_by_the_canary(folder, broken_from):
    """From the first candidate on, or later, right after the canary filled the cache or not."""
    subject, llm = started(folder, strict=False)
    worker = worker_on(subject, folder)
    worker.watch(2)
    install = worker.install
    numbers = iter(range(9))

    def forgetting(recipe):
        if next(numbers) == broken_from:
            llm.reset_prefix_cache = lambda: True  # as if somebody had forgotten it
        return install(recipe)

    worker.install = forgetting  # for candidates, not for the canary

    def score(number):
        assert worker.evaluate(Candidate(number, RECIPES[number % 2])).evaluation.error is None

    last = broken_from - broken_from % 2 + 1
    for number in range(last + 1):
        score(number)  # some of them wrong, and nothing says so
    assert llm.hits > 0
    message = r"canary: model 'base' no longer says what it said .* of task 'match' differ"
    with pytest.raises(UnavailableError, match=message) as caught:
        score(last + 1)
    assert f"candidates {last - 1} to {last} of this worker may be wrong" in str(caught.value)


def test_the_canary_lives_where_caches_are_dropped(folder):
    subject, _ = started(folder)
    worker = worker_on(subject, folder)
    worker.watch(1)
    for number in range(4):
        assert worker.evaluate(Candidate(number, RECIPES[number % 2])).evaluation.error is None


def test_embedding_models_and_unchanged_tensors_are_refused(folder):
    subject, _ = started(folder)
    with pytest.raises(EvaluationError, match="not an AutoModel"):
        subject.require("AutoModel")
    with pytest.raises(EvaluationError, match="nothing stays unchanged"):
        subject.install([], unchanged={NORM})
    assert subject.complete({NORM}) is None
    assert subject.destinations() == {}
    assert NORM in subject.held()
