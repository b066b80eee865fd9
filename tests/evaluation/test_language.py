import math

import numpy as np
import pytest
import torch
import transformers

from evomerge.errors import EvaluationError
from evomerge.evaluation.subject import Subject

from . import tiny_models

CAUSAL = "AutoModelForCausalLM"


def test_token_nll_equals_a_direct_computation(llama):
    sequences = [[256, 5, 6, 7], [256, 9], [256, *range(20)]]
    found = llama.token_nll(sequences, batch_size=2)
    for tokens, nll in zip(sequences, found, strict=True):
        with torch.inference_mode():
            logits = llama.model(torch.tensor([tokens])).logits[0].double()
        wanted = [-logits[i].log_softmax(-1)[t].item() for i, t in enumerate(tokens[1:])]
        np.testing.assert_allclose(nll, wanted, atol=2e-5)


@pytest.mark.parametrize("subject_name", ["llama", "gpt2"])
def test_scores_do_not_depend_on_batch_companions(request, subject_name):
    subject = request.getfixturevalue(subject_name)
    prompts = ["the cat", "a", "some longer prompt here", "b c"]
    options = [[" sat", " the"], [" b", " ccc", " thethe"], [" x", " y"], [" d", " ee"]]
    tables = [subject.option_logprobs(prompts, options, batch_size=size) for size in (1, 3, 16)]
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], atol=5e-5)
    answers = [subject.generate(prompts, batch_size=size, max_new_tokens=8) for size in (1, 2, 4)]
    assert answers[0] == answers[1] == answers[2]


def test_option_logprobs_sum_over_the_option_only(llama):
    table = llama.option_logprobs(["ab "], [["cd", "the"]], batch_size=4)
    context = llama.encode("ab")
    for option, found in zip(("cd", "the"), table[0], strict=True):
        whole = llama.encode("ab " + option)
        nll = llama.token_nll([whole], starts=[len(context)], batch_size=1)[0]
        assert math.isclose(found, -nll.sum(), rel_tol=1e-6)
    per_token = llama.option_logprobs(["ab "], [["cd", "the"]], batch_size=4, normalise="token")
    # " the" is the space and one merged token; "cd" the space and two bytes.
    np.testing.assert_allclose(per_token[0], table[0] / [3, 2])
    per_char = llama.option_logprobs(["ab "], [["cd", "the"]], batch_size=4, normalise="char")
    np.testing.assert_allclose(per_char[0], table[0] / [2, 3])


def test_ragged_options_are_padded_with_minus_infinity(llama):
    table = llama.option_logprobs(["a", "b"], [["c", "d", "e"], ["f", "g"]], batch_size=4)
    assert table.shape == (2, 3)
    assert table[1, 2] == -np.inf
    assert np.isfinite(table[:, :2]).all()


def test_output_embeddings_are_given_states_without_gaps(llama):
    # With gaps torch copies the weights once per row: 270 times slower in bfloat16.
    seen = []
    head = llama.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        llama.option_logprobs(["the cat", "a longer one"], [[" sat", " b"], [" x", " y"]])
        llama.generate(["the cat", "a longer one"], max_new_tokens=3)
    finally:
        hook.remove()
    assert {states.shape[1] for states in seen} != {1}
    assert all(states.is_contiguous() for states in seen)


def test_too_long_texts_are_an_error_unless_cut_on_purpose(llama):
    long = "x" * 80
    with pytest.raises(EvaluationError, match=r"82 tokens, the model has room for 64"):
        llama.option_logprobs([long], [["y", "z"]], batch_size=1)
    cut = llama.option_logprobs([long], [["y", "z"]], batch_size=1, max_length=20)
    whole = llama.encode(long + "y")[-20:]
    assert math.isclose(
        cut[0, 0], -llama.token_nll([whole], starts=[19], batch_size=1)[0].sum(), rel_tol=1e-6
    )
    with pytest.raises(EvaluationError, match="alone is longer"):
        llama.option_logprobs(["a"], [["y", "z" * 30]], batch_size=1, max_length=10)
    with pytest.raises(EvaluationError, match="room for 54"):
        llama.generate([long], batch_size=1, max_new_tokens=10)
    with pytest.raises(EvaluationError, match="max_new_tokens"):
        llama.generate(["a"], batch_size=1, max_new_tokens=64)


def test_generation_is_greedy_and_stops_at_strings(llama):
    prompt = "the quick"
    answer = llama.generate([prompt], batch_size=1, max_new_tokens=12)[0]
    ids = list(llama.encode(prompt))
    made = []
    for _ in range(12):
        with torch.inference_mode():
            token = llama.model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if token == 257:
            break
        ids.append(token)
        made.append(token)
    assert answer == llama.tokenizer.decode(made, skip_special_tokens=True)
    assert len(answer) > 3
    stop = answer[2]
    stopped = llama.generate([prompt, "a"], batch_size=2, max_new_tokens=12, stop=[stop])
    assert stopped[0] == answer[: answer.index(stop)]


def test_sampling_defaults_of_the_folder_do_not_leak_into_generation(tmp_path, llama_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=9.0,
        eos_token_id=[257, 258],
        max_length=3,
    )
    folder = tiny_models.save(model, tmp_path / "warm")
    warm = Subject.load(folder, auto_class=CAUSAL)
    plain = Subject.load(llama_folder, auto_class=CAUSAL)
    assert warm.end_token_ids == (257, 258)
    arguments = {"batch_size": 1, "max_new_tokens": 10}
    assert warm.generate(["ab"], **arguments) == plain.generate(["ab"], **arguments)


def test_nan_weights_are_an_error_not_an_answer(llama_folder):
    subject = Subject.load(llama_folder, auto_class=CAUSAL)
    tensors = tiny_models.file_tensors(llama_folder)
    tensors["model.norm.weight"] = torch.full((32,), float("nan"))
    subject.install(tensors.items())
    with pytest.raises(EvaluationError, match="NaN logits"):
        subject.generate(["a"], batch_size=1, max_new_tokens=2)


def test_stories_model_loads_and_writes_english():
    folder = tiny_models.SHARED / "stories260k_hf"
    if not folder.is_dir():
        pytest.skip("shared stories260k model is not on this machine")
    subject = Subject.load(folder, auto_class=CAUSAL)
    assert not subject.reloads
    answer = subject.generate(["Once upon a time"], batch_size=1, max_new_tokens=20, stop=["."])[0]
    assert "there was a little girl" in answer
    nll = subject.token_nll(
        [subject.encode("Once upon a time, there was a little girl.")], batch_size=1
    )
    assert nll[0].mean() < 2.0
