"""Broken models are noticed in the passes that score them."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from evomerge.errors import EvaluationError
from evomerge.evaluation.batching import Limits
from evomerge.evaluation.choices import choice_logprobs, plan_choices
from evomerge.evaluation.sanity import ENOUGH, watched_outputs
from evomerge.evaluation.subject import Subject
from tests.evaluation import tiny_models
from tests.evaluation.tiny_models import CAUSAL, IMAGE, SEQUENCE

FAMILIES = {
    CAUSAL: ("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER, "lm_head.weight"),
    SEQUENCE: (
        "BertForSequenceClassification",
        "BertConfig",
        tiny_models.ENCODER,
        "classifier.weight",
    ),
    IMAGE: ("ViTForImageClassification", "ViTConfig", tiny_models.VIT, "classifier.weight"),
}


@pytest.fixture(params=FAMILIES)
def model(request, tmp_path):
    class_name, config_name, settings, last = FAMILIES[request.param]
    tiny_models.save(tiny_models.make(class_name, config_name, settings), tmp_path / "m")
    subject = Subject.load(tmp_path / "m", auto_class=request.param, name="candidate 7")
    return subject, last


def batches(subject, sizes=(3, 2)):
    """Inputs of two batches, rows of different lengths padded on the right."""
    rng = np.random.default_rng(0)
    for rows in sizes:
        if subject.auto_class == IMAGE:
            yield {"pixel_values": rng.normal(size=(rows, 1, 8, 8)).astype(np.float32)}
            continue
        mask = (np.arange(9) < rng.integers(4, 10, size=(rows, 1))).astype(np.int64)
        yield {"input_ids": rng.integers(0, 250, size=(rows, 9)) * mask, "attention_mask": mask}


def score(subject, sizes=(3, 2)):
    with watched_outputs(subject.model, subject.name):
        for batch in batches(subject, sizes):
            subject.logits(batch)


def set_all(subject, name, value):
    dict(subject.model.named_parameters())[name].data.fill_(value)


def test_a_living_model_passes_and_is_left_without_hooks(model):
    subject, _ = model
    score(subject)
    score(subject, (1, 1))
    assert not subject.model._forward_hooks


def test_outputs_that_are_not_finite_fail_at_once(model):
    subject, last = model
    set_all(subject, last, torch.inf)
    with pytest.raises(
        EvaluationError, match="candidate 7: outputs of the first batch are not fin"
    ):
        score(subject)
    assert not subject.model._forward_hooks


@pytest.mark.parametrize("sizes", [(3, 2), (1, 1, 1, 1)])
def test_one_answer_for_every_input_fails(model, sizes):
    subject, last = model
    set_all(subject, last, 0.0)
    with pytest.raises(EvaluationError, match=rf"same output for {sum(sizes)} different inputs"):
        score(subject, sizes)


def test_too_few_inputs_prove_nothing(model):
    subject, last = model
    set_all(subject, last, 0.0)
    score(subject, (ENOUGH - 1,))


def test_equal_inputs_have_equal_outputs(model):
    subject, _ = model
    (batch,) = batches(subject, (1,))
    with watched_outputs(subject.model, subject.name):
        for _ in range(ENOUGH + 1):
            subject.logits(batch)


@pytest.mark.parametrize("is_broken", [False, True])
def test_equal_prompts_with_other_options_are_other_inputs(tmp_path, is_broken):
    class_name, config_name, settings, last = FAMILIES[CAUSAL]
    tiny_models.save(tiny_models.make(class_name, config_name, settings), tmp_path / "m")
    subject = Subject.load(tmp_path / "m", auto_class=CAUSAL, name="candidate 7")
    options = [["yes", "no"], ["red", "blue"], ["up", "down"], ["old", "new"], ["big", "small"]]
    plan = plan_choices(subject, ["it is"] * len(options), options)
    assert subject.shares_prefixes  # a trial on other inputs, which is over now
    if is_broken:
        set_all(subject, last, 0.0)
    refused = pytest.raises(EvaluationError, match="same output for 5 different inputs")
    caught = refused if is_broken else nullcontext()
    with caught, watched_outputs(subject.model, subject.name):
        choice_logprobs(subject, plan, range(len(options)), Limits())


def test_what_the_evaluator_raises_comes_first(model):
    subject, last = model
    set_all(subject, last, 0.0)

    def fail():
        with watched_outputs(subject.model, subject.name):
            for batch in batches(subject):
                subject.logits(batch)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
