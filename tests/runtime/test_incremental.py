"""A worker rebuilds only what changed, and always holds what a fresh one would."""

import numpy as np
import pytest
import torch

from evomerge.core.ancestry import ancestor_name
from evomerge.core.candidate import Candidate
from evomerge.core.model_space import align
from evomerge.core.noise import noise_name
from evomerge.core.recipe import Recipe
from evomerge.evaluation.subject import Subject
from evomerge.merging.derived import derive_for
from evomerge.merging.materialize import materialize
from evomerge.merging.operator import merge_operators
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.storage.model_folder import ModelFolder
from tests.evaluation import tiny_models

NAMES = ("base", "x", "y")
CAUSAL = tiny_models.CAUSAL
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER, CAUSAL),
    "tied": (
        "LlamaForCausalLM",
        "LlamaConfig",
        tiny_models.DECODER | {"tie_word_embeddings": True},
        CAUSAL,
    ),
    "fused experts": ("MixtralForCausalLM", "MixtralConfig", tiny_models.MIXTRAL, CAUSAL),
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        tiny_models.ENCODER,
        tiny_models.SEQUENCE,
    ),
}


class CountingFolder(ModelFolder):
    """Notes which tensors are read."""

    def __init__(self, name, folder):
        super().__init__(name, folder)
        self.reads = []

    def read(self, name):
        self.reads.append(name)
        return super().read(name)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    class_name, config_name, settings, auto_class = FAMILIES[request.param]
    for seed, name in enumerate(NAMES):
        model = tiny_models.make(class_name, config_name, settings, seed=seed)
        tiny_models.save(model.bfloat16() if request.param == "tied" else model, folder / name)
    return folder, auto_class


def open_all(folder):
    sources = {name: CountingFolder(name, folder / name) for name in NAMES}
    space = align([source.header() for source in sources.values()], has_base=True)
    derived = derive_for([merge_operators.get(n) for n in ("ties", "slerp")], space, sources)
    return MergeInputs(space, sources, derived)


def worker_of(inputs, folder, auto_class):
    dtype = {"BF16": torch.bfloat16, "F32": torch.float32}[inputs.space.float_dtype]
    subject = Subject.load(folder / "base", auto_class=auto_class, device="cpu", dtype=dtype)
    return Worker(inputs, [subject], {}, device="cpu"), subject


def state(subject):
    return {name: tensor.clone() for name, tensor in subject._loaded.model.state_dict().items()}


def linear(rows, grouping="global", breaks=None):
    return Recipe("linear", NAMES, {"weights": rows}, grouping, breaks, {"normalize": False})


def recipes(space):
    """A path through recipes that share some of their groups with the one before."""
    rng = np.random.default_rng(0)
    n = space.n_elements
    labels = _layer_count(space)
    rows = rng.normal(size=(labels, 3))
    yield linear([[0.5, 0.3, 0.2]])
    yield linear([[0.5, 0.3, 0.2]])
    yield linear(rows, "layer")
    changed = rows.copy()
    changed[1] += 0.1
    yield linear(changed, "layer")
    yield linear([[1.0, 0.0, 0.0]])
    yield linear([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "segments", [0, n // 2, n])
    yield linear([[1.0, 0.0, 0.0], [0.0, 0.7, 0.1]], "segments", [0, n // 2, n])
    yield linear([[1.0, 0.0, 0.0], [0.0, 0.7, 0.1]], "segments", [0, n // 3, n])
    for density in (0.4, 0.6):
        yield Recipe("ties", NAMES, {"weights": [[1.0, 1.0]], "density": [density]})
    old, raw, breaks = linear([[0.5, 0.3, 0.2]]), {"normalize": False}, [0, n // 2, n]
    for ancestor, last in ((old, 0.4), (old, 0.6), (linear([[0.0, 0.3, 0.7]]), 0.6)):
        name = ancestor_name(ancestor.digest())
        weights = {"weights": [[0.0, 0.2, 0.0, 0.8, 0.01], [0.1, 0.0, 0.3, last, 0.01]]}
        sources = (*NAMES, name, noise_name(5))
        yield Recipe("linear", sources, weights, "segments", breaks, raw, {name: ancestor})
    yield linear(rows, "layer")
    yield Recipe("slerp", NAMES, {"t": [0.3]})


def _layer_count(space):
    from evomerge.core.grouping import assign_groups

    return len(assign_groups("layer", [tensor.spec.name for tensor in space.merged])[0])


def test_the_resident_model_is_that_of_a_fresh_worker(family):
    folder, auto_class = family
    inputs = open_all(folder)
    worker, subject = worker_of(inputs, folder, auto_class)
    for recipe in recipes(inputs.space):
        digest = worker.install(recipe)
        fresh, other = worker_of(inputs, folder, auto_class)
        assert fresh.install(recipe) == digest
        expected = state(other)
        for name, tensor in state(subject).items():
            assert torch.equal(tensor, expected[name]), (recipe.operator, name)


def test_only_what_changed_is_read(family):
    folder, auto_class = family
    inputs = open_all(folder)
    worker, subject = worker_of(inputs, folder, auto_class)
    space = inputs.space
    rows = np.full((_layer_count(space), 3), 0.3)
    worker.install(linear(rows, "layer"))
    for source in inputs.sources.values():
        source.reads.clear()
    worker.install(linear(rows.copy(), "layer"))
    assert not any(source.reads for source in inputs.sources.values())
    changed = rows.copy()
    changed[1, 2] = 0.1
    worker.install(linear(changed, "layer"))
    reads = set(inputs.sources["y"].reads)
    assert 0 < len(reads) < len(space.merged)
    # The members of one fused parameter come together, whatever their groups.
    assert subject.complete(reads) in (None, reads)


def test_parameters_are_written_where_they_are(family):
    folder, auto_class = family
    inputs = open_all(folder)
    worker, subject = worker_of(inputs, folder, auto_class)
    places = subject.destinations()
    before = {
        name: tensor.data_ptr() for name, tensor in subject._loaded.model.state_dict().items()
    }
    worker.install(linear([[0.2, 0.5, 0.3]]))
    after = {name: tensor.data_ptr() for name, tensor in subject._loaded.model.state_dict().items()}
    assert before == after
    stream = materialize(
        linear([[0.5, 0.3, 0.2]]), inputs.space, inputs.sources, inputs.derived, into=places
    )
    for name, tensor in stream:
        merged = {item.spec.name for item in inputs.space.merged}
        if name in places and name in merged:
            assert tensor.data_ptr() == places[name].data_ptr()


def test_after_a_failed_merge_the_next_one_is_whole(family):
    folder, auto_class = family
    inputs = open_all(folder)
    worker, subject = worker_of(inputs, folder, auto_class)
    good = linear([[0.5, 0.3, 0.2]])
    digest = worker.install(good)
    expected = state(subject)
    outcome = worker.evaluate(Candidate(1, linear([[3e38, 3e38, 3e38]]), (), 0))
    assert "NaN or infinite" in (outcome.evaluation.error or "")
    assert worker.install(good) == digest
    for name, tensor in state(subject).items():
        assert torch.equal(tensor, expected[name]), name
