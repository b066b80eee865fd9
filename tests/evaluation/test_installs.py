"""Adapters through vLLM's run-time loading: a stand-in that applies them and refuses misuse."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evomerge.config.models import open_sources
from evomerge.config.schema import ModelConfig
from evomerge.config.workers import worker_of
from evomerge.core.candidate import Candidate
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, ExecutorError, UnavailableError
from evomerge.evaluation.endpoint import Endpoint
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.server import ServedCandidate, Server
from evomerge.evaluation.subject import Subject
from evomerge.merging.derived import Derived
from evomerge.runtime.served_answers import answer_completion
from evomerge.runtime.worker import MergeInputs
from evomerge.storage.open_source import open_source

from . import tiny_models
from .faulty_server import Faulty, running

BASE = "org/base"


class VllmLike:
    """What vLLM's server does with adapters (docs/features/lora.md), on a real small model.

    An adapter is loaded once by name, from a folder, and asked by that name. Kept from the
    source: status 400 for a name that is taken, 404 for one that is not there, 500 for a folder
    that cannot be loaded.
    """

    def __init__(self, folder):
        self.base = open_source("base", folder)
        self.subject = Subject.load(folder, auto_class="AutoModelForCausalLM")
        self.loaded = {}
        self.most_loaded = 0
        self.lock = threading.Lock()

    def answer(self, path, body):
        with self.lock:
            if path == "/v1/models":
                return {"data": [{"id": name} for name in (BASE, *self.loaded)]}
            if path == "/v1/load_lora_adapter":
                name = body["lora_name"]
                if name in self.loaded:
                    return 400, f"The lora adapter '{name}' has already been loaded"
                self.loaded[name] = open_source(name, Path(body["lora_path"]), base=self.base)
                self.most_loaded = max(self.most_loaded, len(self.loaded))
                return f"Success: LoRA adapter '{name}' added successfully."
            if path == "/v1/unload_lora_adapter":
                if self.loaded.pop(body["lora_name"], None) is None:
                    return 404, "cannot be found"
                return "Success"
            source = {BASE: self.base, **self.loaded}.get(body["model"])
            if source is None:
                return 404, f"The model `{body['model']}` does not exist."
            names = self.base.header().tensors
            self.subject.install((name, source.read(name)) for name in names)
            return {"model": body["model"], **answer_completion(self.subject, body)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    model = tiny_models.make("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER)
    tiny_models.save(model, folder / "base")
    for seed, name in ((1, "x"), (2, "y")):
        noise = torch.Generator().manual_seed(seed)
        module = "base_model.model.model.layers.0.mlp.up_proj"
        (folder / name).mkdir()
        save_file(
            {
                f"{module}.lora_A.weight": torch.randn(2, 32, generator=noise),
                f"{module}.lora_B.weight": torch.randn(48, 2, generator=noise),
            },
            folder / name / "adapter_model.safetensors",
        )
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
        config["base_model_name_or_path"] = str(folder / "base")
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
    rows = [
        {"prompt": f"{i} is", "options": ["a", "b", "c", "d"], "gold": i % 4, "answer": "W"}
        for i in range(6)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refs = [ModelConfig(name=name, model=str(folder / name)) for name in ("base", "x", "y")]
    opened = open_sources(refs[0], refs[1:])
    return folder, opened, MergeInputs(opened.space, opened.sources, Derived())


@pytest.fixture
def vllm(models):
    stand_in = VllmLike(models[0] / "base")
    faulty = Faulty(stand_in.answer)
    faulty.stand_in = stand_in
    with running(faulty):
        yield faulty


def recipe(x, y):
    params = {"weights": np.array([[x, y]]), "lambda_": np.ones(1)}
    return Recipe("task_arithmetic", ("base", "x", "y"), params)


def workers(models, vllm, adapters, **changes):
    """Return one worker that asks the server, and one that holds the model."""
    folder, opened, inputs = models
    server = Server(url=vllm.url, attempts=2, first_wait_seconds=0.001)
    candidate = ServedCandidate(
        server=server, install="lora", adapters=adapters, base=BASE, **changes
    )
    rows = folder / "rows.jsonl"
    served = {
        "choice": Endpoint(candidate=candidate, scoring="multiple_choice", examples=rows),
        "exact": Endpoint(
            candidate=candidate,
            scoring="exact_match",
            examples=rows,
            max_new_tokens=4,
            pattern="[A-Z]",
        ),
    }
    here = {
        "choice": MultipleChoice(examples=rows),
        "exact": ExactMatch(examples=rows, max_new_tokens=4, pattern="[A-Z]"),
    }
    return tuple(
        worker_of(inputs, opened, evaluators, device="cpu", threads=1)
        for evaluators in (served, here)
    )


def test_adapters_score_as_the_merged_model_does(models, vllm, tmp_path):
    served, here = workers(models, vllm, tmp_path)
    seen = set()
    for number, weights in enumerate([(1, 0), (0.3, 0.9), (-1, 2), (0, 0), (1, 0)]):
        candidate = Candidate(number, recipe(*weights))
        found, own = served.evaluate(candidate), here.evaluate(candidate)
        assert found.evaluation.error is None
        for task, scores in own.evaluation.scores.items():
            assert np.array_equal(found.evaluation.scores[task], scores)
        if weights != (0, 0):  # there the base itself is asked
            assert found.evaluation.weights_digest == own.evaluation.weights_digest
        seen.add(own.evaluation.flat_scores().tobytes())
        assert found.detail.startswith("usage requests=")
    assert len(seen) > 1
    assert vllm.stand_in.most_loaded == 1, "the adapter before is unloaded first"
    assert len(list(tmp_path.iterdir())) == 1
    names = [body["lora_name"] for path, body in vllm.requests if path == "/v1/load_lora_adapter"]
    assert len(set(names)) == 4, "the same recipe is installed under another name"


def test_the_last_adapter_is_removed_with_its_worker(models, vllm, tmp_path):
    served, _ = workers(models, vllm, tmp_path)
    served.install(recipe(1, 1))
    assert vllm.stand_in.loaded
    del served
    assert not vllm.stand_in.loaded
    assert not list(tmp_path.iterdir())


def test_a_server_without_run_time_loading_ends_the_run(models, vllm, tmp_path):
    served, _ = workers(models, vllm, tmp_path)
    vllm.moves, vllm.says = [404], "Not Found"
    with pytest.raises(ExecutorError, match="load_lora_adapter: HTTP 404: Not Found"):
        served.evaluate(Candidate(0, recipe(1, 0)))


def test_a_candidate_whose_adapter_cannot_be_loaded_fails_alone(models, vllm, tmp_path):
    served, _ = workers(models, vllm, tmp_path)
    vllm.moves, vllm.says = [500, 500], "rank is too large"
    outcome = served.evaluate(Candidate(0, recipe(1, 0)))
    assert "rank is too large" in outcome.evaluation.error
    assert served.evaluate(Candidate(1, recipe(1, 0))).evaluation.error is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"install": "lora", "base": BASE}, "adapters is missing"),
        ({"install": "recipe", "base": BASE}, "base belongs to `install: lora`"),
        ({"install": "recipe", "request": {"temperature": 1}}, "request.temperature is set by"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ServedCandidate(server=Server(url="http://host"), **settings)


def test_a_candidate_answers_the_same_after_another_one_and_the_canary_lives(
    models, vllm, tmp_path
):
    served, _ = workers(models, vllm, tmp_path)
    served.watch(1)
    found = [served.evaluate(Candidate(n, recipe(*w))).evaluation for n, w in enumerate(A_B_A)]
    assert all(done.error is None for done in found)
    assert np.array_equal(found[0].flat_scores(), found[2].flat_scores())
    assert found[0].weights_digest == found[2].weights_digest != found[1].weights_digest


A_B_A = ((0.3, 0.9), (-1, 2), (0.3, 0.9))


def test_a_server_that_mixes_adapters_up_is_caught_by_the_canary(models, vllm, tmp_path):
    served, _ = workers(models, vllm, tmp_path)
    served.watch(2)
    for number in range(2):
        assert served.evaluate(Candidate(number, recipe(*A_B_A[number]))).evaluation.error is None
    other = vllm.stand_in.loaded.copy()

    class Mixed(dict):
        """Every name is answered with the weights of the same old adapter."""

        def __setitem__(self, name, source):
            super().__setitem__(name, *other.values())

    vllm.stand_in.loaded = Mixed(other)
    with pytest.raises(UnavailableError, match="canary: model 'x' no longer says what it said"):
        served.evaluate(Candidate(2, recipe(*A_B_A[2])))
