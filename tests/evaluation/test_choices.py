"""What shares a prefix gets the scores it would get alone."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.evaluation.batching import Limits
from evomerge.evaluation.choices import choice_logprobs, plan_choices
from evomerge.evaluation.language import token_logprobs
from evomerge.evaluation.subject import Subject

from . import tiny_models

HEADER = "the quick fox and dog "  # 19 tokens
PROMPTS = [
    HEADER + rest
    for rest in ("a", "abc the", "then", "q and then some", "zz:", "xy", "the the", "b c d e f")
]
OPTIONS = [
    [" sat", " the dog ran", " x"],
    ["b", "cd"],
    [" yes", " no"],
    [" other", " e", " other"],
    ["1", "22", "333", "4444"],
    [" a", " b", " c", " d"],
    ["thethe", "th"],
    ["!" * 9, "?", "!!"],
]
N = len(PROMPTS)
WINDOWED = tiny_models.DECODER | {"sliding_window": 32}

MORE = {
    "windowed": ("MistralForCausalLM", "MistralConfig", WINDOWED),
    "gemma2": tiny_models.FAMILIES["gemma2"][:3],
    "bloom": (  # positions by bias: it ignores where a token says it is
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": tiny_models.VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
}


@pytest.fixture(scope="module")
def subjects(llama, gpt2, tmp_path_factory):
    made = {"llama": llama, "gpt2": gpt2}
    for name, (model, config, values) in MORE.items():
        folder = tiny_models.save(
            tiny_models.make(model, config, values), tmp_path_factory.mktemp(name)
        )
        made[name] = Subject.load(folder, auto_class="AutoModelForCausalLM")
    return made


def alone(subject, choice):
    """Return each option's log-likelihood from a sequence of its own, one at a time."""
    return [
        float(token_logprobs(subject, [whole], [start], limits=Limits())[0].sum())
        for whole, start in zip(choice.options, choice.starts, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "shares"),
    [("llama", True), ("gpt2", True), ("gemma2", True), ("windowed", True), ("bloom", False)],
)
def test_shared_prefixes_give_the_scores_of_whole_sequences(subjects, name, shares):
    subject = subjects[name]
    plan = plan_choices(subject, PROMPTS, OPTIONS)
    assert subject.shares_prefixes is shares
    assert len(plan.header) >= 19
    found = choice_logprobs(subject, plan, range(N), Limits())
    for sums, choice in zip(found, plan.choices, strict=True):
        np.testing.assert_allclose(sums, alone(subject, choice), rtol=1e-5, atol=2e-5)


def test_beyond_an_attention_window_nothing_is_shared(subjects, monkeypatch):
    from evomerge.evaluation import choices

    subject = subjects["windowed"]
    plan = plan_choices(subject, [HEADER + "long " * 3, HEADER + "b"], [["a", "b"], ["c", "d"]])
    assert plan.longest > 32
    monkeypatch.setattr(choices, "_score_rows", None)  # would raise
    found = choice_logprobs(subject, plan, [0, 1], Limits())
    np.testing.assert_array_equal(found, [alone(subject, c) for c in plan.choices])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(st.integers(0, N - 1), min_size=1, max_size=12),
    tokens=st.sampled_from(["auto", 1, 40, 100, 500]),
    rows=st.sampled_from([None, 1, 2, 5]),
)
def test_scores_are_the_same_bits_in_any_batch(subjects, name, wanted, tokens, rows):
    subject = subjects[name]
    plan = plan_choices(subject, PROMPTS, OPTIONS)
    full = choice_logprobs(subject, plan, range(N), Limits())
    part = choice_logprobs(subject, plan, wanted, Limits(tokens, rows))
    for i, sums in zip(wanted, part, strict=True):
        np.testing.assert_array_equal(sums, full[i])


def test_logits_are_computed_only_where_options_are_scored(llama, monkeypatch):
    plan = plan_choices(llama, [HEADER + "a rather long prompt", HEADER + "b"], OPTIONS[:2])
    assert llama.shares_prefixes
    inner, seen = llama.model.lm_head.forward, []

    def look(states):
        seen.append(tuple(states.shape[:2]))
        return inner(states)

    monkeypatch.setattr(llama.model.lm_head, "forward", look)
    choice_logprobs(llama, plan, [0, 1], Limits())
    n_tokens = sum(len(whole) for choice in plan.choices for whole in choice.options)
    assert sum(rows * positions for rows, positions in seen) < n_tokens / 3


def test_many_options_are_laid_out_in_several_rows(llama):
    options = [[f" {'x' * 40}{i:02}" for i in range(20)], [" a", " b"]]
    plan = plan_choices(llama, ["pre", "p"], options)
    assert plan.header == ()
    assert len(plan.rows[0]) > 1
    found = choice_logprobs(llama, plan, [0], Limits())
    np.testing.assert_allclose(found[0], alone(llama, plan.choices[0]), rtol=1e-5)


def test_options_cut_to_different_beginnings_are_scored_apart(llama):
    plan = plan_choices(llama, ["x" * 80, "y"], [["a", "bcd"], ["e", "f"]], max_length=20)
    assert plan.choices[0].shared > 0  # the letter x, at both beginnings
    found = choice_logprobs(llama, plan, [0, 1], Limits())
    for sums, choice in zip(found, plan.choices, strict=True):
        np.testing.assert_allclose(sums, alone(llama, choice), rtol=1e-5)
    apart = plan_choices(llama, ["abcdefgh" * 10], [["a", "bcd"]], max_length=20)
    assert apart.rows == ((),)
    np.testing.assert_array_equal(
        choice_logprobs(llama, apart, [0], Limits())[0], alone(llama, apart.choices[0])
    )


def test_the_trial_is_not_remembered_for_a_model_without_numbers(llama_folder):
    subject = Subject.load(llama_folder, auto_class="AutoModelForCausalLM")
    good = tiny_models.file_tensors(llama_folder)
    subject.install((good | {"model.norm.weight": torch.full((32,), float("nan"))}).items())
    assert not subject.shares_prefixes
    subject.install(good.items())
    assert subject.shares_prefixes


def test_tokens_are_made_once_for_all_candidates(llama, tmp_path, monkeypatch):
    import json

    from evomerge.evaluation.multiple_choice import MultipleChoice

    path = tmp_path / "d.jsonl"
    row = {"prompt": "once and never again", "options": [" a", " b"], "gold": 0}
    path.write_text(json.dumps(row))
    evaluator = MultipleChoice(examples=path)
    first = evaluator.evaluate(llama)
    llama._encoded.clear()
    monkeypatch.setattr(llama, "_tokenizer", None)
    monkeypatch.setattr("evomerge.evaluation.vocabulary.load_tokenizer", None)
    np.testing.assert_array_equal(evaluator.evaluate(llama), first)
