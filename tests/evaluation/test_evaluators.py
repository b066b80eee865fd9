import json
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from evomerge.errors import ConfigError, DataError, EvaluationError
from evomerge.evaluation.classification import Classification
from evomerge.evaluation.evaluator import evaluators
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.perplexity import Perplexity
from evomerge.evaluation.subject import Subject
from evomerge.testing import check_evaluator

from . import tiny_models

TEXTS = ["the cat sat", "a", "some longer text than that", "then the other", "xyz", "no"]
DIGITS = tiny_models.SHARED / "digits_experts"


def jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    model = tiny_models.make(
        "BertForSequenceClassification", "BertConfig", tiny_models.ENCODER | {"num_labels": 3}
    )
    folder = tiny_models.save(model, tmp_path_factory.mktemp("bert"))
    return Subject.load(folder, auto_class="AutoModelForSequenceClassification")


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    model = tiny_models.make(
        "ViTForImageClassification", "ViTConfig", tiny_models.VIT | {"num_labels": 4}
    )
    folder = tiny_models.save(model, tmp_path_factory.mktemp("vit"), tokenizer=False)
    return Subject.load(folder, auto_class="AutoModelForImageClassification")


def direct_probabilities(subject, texts):
    with torch.inference_mode():
        return np.stack(
            [
                subject.model(torch.tensor([list(subject.encode(text))]))
                .logits[0]
                .softmax(-1)
                .numpy()
                for text in texts
            ]
        )


def test_every_evaluator_is_registered_and_built_from_plain_config(tmp_path):
    assert {"classification", "multiple_choice", "exact_match", "perplexity", "python"} <= set(
        evaluators.names()
    )
    built = TypeAdapter(evaluators.get("classification")).validate_python(
        {"examples": "data.jsonl", "labels": ["a", "b"], "rows": [0, 10]}
    )
    assert built == Classification(examples=built.examples, labels=("a", "b"), rows=(0, 10))
    scorer = TypeAdapter(evaluators.get("python")).validate_python(
        {"function": "a:b", "n": 2, "path": "here", "arguments": {"x": [1]}}
    )
    assert scorer.arguments == {"x": [1]}
    with pytest.raises(ConfigError, match="accuracy"):
        TypeAdapter(evaluators.get("classification")).validate_python(
            {"examples": "data.jsonl", "metric": "acc"}
        )


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_text_classification_equals_one_text_at_a_time(tmp_path, encoder, batch_size):
    path = jsonl(tmp_path / "d.jsonl", [{"text": t, "label": i % 3} for i, t in enumerate(TEXTS)])
    wanted = direct_probabilities(encoder, TEXTS)
    gold = np.arange(len(TEXTS)) % 3
    accuracy = Classification(examples=path, batch_size=batch_size)
    np.testing.assert_array_equal(accuracy.evaluate(encoder), wanted.argmax(1) == gold)
    probability = Classification(examples=path, metric="probability", batch_size=batch_size)
    np.testing.assert_allclose(
        probability.evaluate(encoder), wanted[np.arange(len(gold)), gold], atol=1e-6
    )
    check_evaluator(accuracy, encoder)
    check_evaluator(probability, encoder)


def test_label_names_are_looked_up_in_order(tmp_path, encoder):
    names = ("red", "green", "blue")
    by_name = jsonl(
        tmp_path / "n.jsonl", [{"text": t, "label": names[i % 3]} for i, t in enumerate(TEXTS)]
    )
    by_index = jsonl(
        tmp_path / "i.jsonl", [{"text": t, "label": i % 3} for i, t in enumerate(TEXTS)]
    )
    np.testing.assert_array_equal(
        Classification(examples=by_name, labels=names).evaluate(encoder),
        Classification(examples=by_index).evaluate(encoder),
    )


def test_long_texts_are_cut_to_what_the_model_takes(tmp_path, encoder):
    path = jsonl(tmp_path / "d.jsonl", [{"text": "ab" * 100, "label": 0}])
    scores = Classification(examples=path, metric="probability").evaluate(encoder)
    cut = direct_probabilities(encoder, [("ab" * 100)[:63]])  # and bos
    np.testing.assert_allclose(scores, cut[:, 0], atol=1e-6)
    shorter = Classification(examples=path, metric="probability", max_length=5).evaluate(encoder)
    np.testing.assert_allclose(shorter, direct_probabilities(encoder, ["abab"])[:, 0], atol=1e-6)


def test_a_decoder_with_classifier_is_scored_at_its_last_token(tmp_path):
    settings = tiny_models.GPT2 | {"num_labels": 3}
    model = tiny_models.make("GPT2ForSequenceClassification", "GPT2Config", settings)
    assert model.config.pad_token_id is None
    folder = tiny_models.save(model, tmp_path / "gpt2", bos=False)
    subject = Subject.load(folder, auto_class="AutoModelForSequenceClassification")
    path = jsonl(tmp_path / "d.jsonl", [{"text": t, "label": 1} for t in TEXTS])
    scores = Classification(examples=path, metric="probability").evaluate(subject)
    np.testing.assert_allclose(scores, direct_probabilities(subject, TEXTS)[:, 1], atol=1e-6)


def test_image_classification_with_a_head_of_another_size(tmp_path, vision):
    pixels = np.random.Generator(np.random.Philox(1)).normal(size=(10, 1, 8, 8)).astype(np.float32)
    gold = np.arange(10) % 6
    path, head = tmp_path / "d.npz", tmp_path / "head.safetensors"
    np.savez(path, pixel_values=pixels, labels=gold)
    save_file({"classifier.weight": torch.randn(6, 32), "classifier.bias": torch.zeros(6)}, head)
    with pytest.raises(
        EvaluationError, match=r"example 4 .* has class 4, but the model has 4 outputs"
    ):
        Classification(examples=path).evaluate(vision)
    evaluator = Classification(examples=path, head=head, batch_size=4)
    with vision.with_head(head), torch.inference_mode():
        logits = np.stack(
            [vision.model(torch.from_numpy(p[None])).logits[0].numpy() for p in pixels]
        )
    np.testing.assert_array_equal(evaluator.evaluate(vision), logits.argmax(1) == gold)
    check_evaluator(evaluator, vision)
    part = Classification(examples=path, head=head, rows=(4, 9))
    np.testing.assert_array_equal(part.evaluate(vision), evaluator.evaluate(vision)[4:9])
    head.unlink()
    with pytest.raises(DataError, match="no such head"):
        evaluator.n_examples()


def test_digit_experts_get_their_known_accuracy():
    if not DIGITS.is_dir():
        pytest.skip("shared digits experts are not on this machine")
    subject = Subject.load(DIGITS / "base", auto_class="AutoModelForImageClassification")
    evaluator = Classification(examples=DIGITS / "test.npz")
    low = np.load(DIGITS / "test.npz")["labels"] < 5
    found = {}
    for name in ("base", "expert_low", "expert_high"):
        subject.install(tiny_models.file_tensors(DIGITS / name).items())
        scores = evaluator.evaluate(subject)
        found[name] = [round(float(s.mean()), 3) for s in (scores, scores[low], scores[~low])]
    assert found == {
        "base": [0.728, 0.742, 0.715],
        "expert_low": [0.497, 0.959, 0.051],
        "expert_high": [0.477, 0.0, 0.937],
    }


def test_nan_logits_name_file_and_example(tmp_path, vision):
    pixels = np.zeros((3, 1, 8, 8), np.float32)
    pixels[1] = 3e38  # overflows inside the model
    np.savez(tmp_path / "d.npz", pixel_values=pixels, labels=np.zeros(3, int))
    with pytest.raises(EvaluationError, match=r"d.npz are not finite, the first for example 1"):
        Classification(examples=tmp_path / "d.npz").evaluate(vision)


def test_the_wrong_kind_of_model_is_refused(tmp_path, llama):
    path = jsonl(tmp_path / "d.jsonl", [{"text": "a", "label": 0}])
    with pytest.raises(EvaluationError, match="needs AutoModelForSequenceClassification"):
        Classification(examples=path).evaluate(llama)


CHOICES = [
    {"prompt": "the cat", "options": [" sat", " the dog ran", " x"], "gold": 0},
    {"prompt": "a ", "options": ["b", "cd"], "gold": 1},
    {"prompt": "zz:", "options": [" yes", " no"], "gold": 0},
    {"prompt": "then the", "options": [" other", " e"], "gold": 1},
    {"prompt": "q", "options": ["1", "22", "333", "4444"], "gold": 3},
]


def direct_choice(subject, row, normalise):
    totals = []
    context = len(subject.encode(row["prompt"].rstrip()))
    for option in row["options"]:
        tokens = list(subject.encode(row["prompt"] + option))
        with torch.inference_mode():
            logprobs = subject.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        total = sum(logprobs[i - 1, tokens[i]].item() for i in range(context, len(tokens)))
        length = {"none": 1, "token": len(tokens) - context, "char": len(option)}[normalise]
        totals.append(total / length)
    return float(np.argmax(totals) == row["gold"])


@pytest.mark.parametrize("normalise", ["none", "token", "char"])
@pytest.mark.parametrize("subject_name", ["llama", "gpt2"])
def test_multiple_choice_equals_one_option_at_a_time(tmp_path, request, subject_name, normalise):
    subject = request.getfixturevalue(subject_name)
    path = jsonl(tmp_path / "d.jsonl", CHOICES)
    wanted = [direct_choice(subject, row, normalise) for row in CHOICES]
    for batch_size in (1, 4, 64):
        evaluator = MultipleChoice(examples=path, normalise=normalise, batch_size=batch_size)
        assert evaluator.n_examples() == 5
        np.testing.assert_array_equal(evaluator.evaluate(subject), wanted)
    check_evaluator(evaluator, subject)


def test_multiple_choice_names_the_line_of_a_nan(tmp_path, llama, monkeypatch):
    path = jsonl(tmp_path / "d.jsonl", CHOICES)
    found = [np.zeros(len(row["options"])) for row in CHOICES]
    found[3][1] = np.nan
    monkeypatch.setattr(llama, "score_options", lambda *_, **__: found)
    with pytest.raises(EvaluationError, match=r"d.jsonl:4 is not finite"):
        MultipleChoice(examples=path).evaluate(llama)


def test_exact_match_finds_the_models_own_answers(tmp_path, llama):
    prompts = ["the quick", "abc", "a longer prompt"]
    own = llama.generate(prompts, batch_size=1, max_new_tokens=6)
    assert all(answer.strip() for answer in own)
    rows = [{"prompt": p, "answer": f" {a.strip()}\n"} for p, a in zip(prompts, own, strict=True)]
    rows.append({"prompt": "abc", "answer": "certainly not this"})
    path = jsonl(tmp_path / "d.jsonl", rows)
    evaluator = ExactMatch(examples=path, max_new_tokens=6, batch_size=3)
    np.testing.assert_array_equal(evaluator.evaluate(llama), [1, 1, 1, 0])
    check_evaluator(evaluator, llama)


@pytest.mark.parametrize(
    ("pattern", "generated", "reference", "right"),
    [
        (None, " 42 \n", "42", True),
        (None, "42.", "42", False),
        (r"-?\d+", "first 3 then 42.", "42", True),
        (r"-?\d+", "first 42 then 3.", "42", False),
        (r"#### (-?\d+)", "so\n#### 42", "6 * 7 = 42\n#### 42", True),
        (r"#### (-?\d+)", "#### 41", "#### 42", False),
        (r"#### (-?\d+)", "42", "42", False),
        (r"answer: (\w+)?", "answer: ", "x", False),
    ],
)
def test_patterns_extract_the_last_match(
    tmp_path, llama, monkeypatch, pattern, generated, reference, right
):
    monkeypatch.setattr(llama, "continue_prompts", lambda *_, **__: [generated])
    path = jsonl(tmp_path / "d.jsonl", [{"prompt": "p", "answer": reference}])
    scores = ExactMatch(examples=path, pattern=pattern).evaluate(llama)
    assert scores.tolist() == [float(right)]


def direct_log_likelihood(subject, prefix, tokens):
    ids = [*prefix, *tokens]
    with torch.inference_mode():
        logprobs = subject.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [logprobs[i - 1, ids[i]].item() for i in range(max(1, len(prefix)), len(ids))]


@pytest.mark.parametrize(("subject_name", "first"), [("llama", 256), ("gpt2", 257)])
def test_perplexity_equals_one_text_at_a_time(tmp_path, request, subject_name, first):
    subject = request.getfixturevalue(subject_name)
    texts = [*TEXTS, "naïve — ünïcode"]
    path = jsonl(tmp_path / "d.jsonl", [{"text": t} for t in texts])
    plain = [
        direct_log_likelihood(
            subject, [first], subject.tokenizer.encode(t, add_special_tokens=False)
        )
        for t in texts
    ]
    evaluator = Perplexity(examples=path, batch_size=3)
    np.testing.assert_allclose(evaluator.evaluate(subject), [np.mean(p) for p in plain], rtol=1e-5)
    check_evaluator(evaluator, subject)
    bits = Perplexity(examples=path, bits_per_byte=True)
    wanted = [sum(p) / math.log(2) / len(t.encode()) for p, t in zip(plain, texts, strict=True)]
    np.testing.assert_allclose(bits.evaluate(subject), wanted, rtol=1e-5)
    part = Perplexity(examples=path, rows=(2, 4))
    np.testing.assert_allclose(part.evaluate(subject), [np.mean(p) for p in plain[2:4]], rtol=1e-5)


def test_a_text_file_is_cut_into_windows_of_tokens(tmp_path, llama):
    path = tmp_path / "d.txt"
    path.write_text("the other thing, then 123. " * 10)
    tokens = llama.tokenizer.encode(path.read_text(), add_special_tokens=False)
    evaluator = Perplexity(examples=path, window=20, rows=(2, 5))
    wanted = [
        np.mean(direct_log_likelihood(llama, [256], tokens[i * 20 : (i + 1) * 20]))
        for i in (2, 3, 4)
    ]
    assert evaluator.n_examples() == 3
    np.testing.assert_allclose(evaluator.evaluate(llama), wanted, rtol=1e-5)
    check_evaluator(evaluator, llama)
    bits = Perplexity(examples=path, window=20, rows=(2, 5), bits_per_byte=True).evaluate(llama)
    assert (bits < 0).all()
    with pytest.raises(DataError, match=rf"its {len(tokens)} tokens make {len(tokens) // 20}"):
        Perplexity(examples=path, window=20, rows=(0, 50)).evaluate(llama)
    with pytest.raises(EvaluationError, match="set `window` to 63 or less"):
        Perplexity(examples=path, window=64, rows=(0, 1)).evaluate(llama)


def test_long_texts_are_an_error_or_cut_on_purpose(tmp_path, llama):
    path = jsonl(tmp_path / "d.jsonl", [{"text": "x" * 100}])
    with pytest.raises(EvaluationError, match="set `max_length` to 63 or less"):
        Perplexity(examples=path).evaluate(llama)
    cut = Perplexity(examples=path, max_length=10).evaluate(llama)
    tokens = llama.tokenizer.encode("x" * 10, add_special_tokens=False)
    np.testing.assert_allclose(
        cut, [np.mean(direct_log_likelihood(llama, [256], tokens))], rtol=1e-5
    )


def test_stories_model_predicts_its_own_language_best(tmp_path):
    folder = tiny_models.SHARED / "stories260k_hf"
    shakespeare = tiny_models.SHARED / "tinyshakespeare" / "input.txt"
    if not (folder.is_dir() and shakespeare.is_file()):
        pytest.skip("shared stories260k model or tinyshakespeare is not on this machine")
    subject = Subject.load(folder, auto_class="AutoModelForCausalLM")
    story = jsonl(
        tmp_path / "d.jsonl",
        [
            {
                "text": "Once upon a time, there was a little girl named Lily. She liked to play outside."
            }
        ],
    )
    known = Perplexity(examples=story).evaluate(subject)
    foreign = Perplexity(examples=shakespeare, rows=(0, 8)).evaluate(subject)
    assert known.mean() > -2.0 > foreign.mean()
    choice = jsonl(
        tmp_path / "c.jsonl",
        [
            {
                "prompt": "Once upon a time, there was a little",
                "options": [" girl", " of"],
                "gold": 0,
            },
            {"prompt": "Lily was very", "options": [" sad", " table"], "gold": 0},
        ],
    )
    evaluator = MultipleChoice(examples=choice)
    np.testing.assert_array_equal(evaluator.evaluate(subject), [1, 1])
    check_evaluator(evaluator, subject)


class _Broken:
    auto_class = "AutoModelForCausalLM"

    def __init__(self, scores, n=2):
        self._scores, self._n = scores, n

    def __repr__(self):
        return "broken"

    def n_examples(self):
        return self._n

    def evaluate(self, subject, positions=None):
        scores = self._scores() if callable(self._scores) else self._scores
        return scores if positions is None else scores[positions]


def test_check_evaluator_catches_broken_evaluators(llama):
    def noise():
        return torch.rand(2).numpy()

    def by_batch(positions):
        n = 2 if positions is None else len(positions)
        return np.full(n, n, np.float32)

    counter = iter(range(100))
    check_evaluator(_Broken(np.zeros(2, np.float32)), llama)
    for scores, message in (
        ([0.0, 0.0], "must be an array"),
        (np.zeros(3, np.float32), r"must be \(2,\)"),
        (np.zeros(2), "must be float32"),
        (np.array([0, np.nan], np.float32), "finite"),
        (noise, "random stream"),
        (lambda: np.full(2, next(counter), np.float32), "same scores twice"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_evaluator(_Broken(scores), llama)
    broken = _Broken(np.zeros(2, np.float32))
    broken.evaluate = lambda _, positions=None: by_batch(positions)
    with pytest.raises(AssertionError, match="must not depend on the others"):
        check_evaluator(broken, llama)
    check_evaluator(broken, llama, tolerance=2.0)
    for digests in (["0" * 16] * 2, ("0" * 16,), ("x" * 16, "0" * 16)):
        broken = _Broken(np.zeros(2, np.float32))
        broken.example_digests = lambda digests=digests: digests
        with pytest.raises(AssertionError, match="digest"):
            check_evaluator(broken, llama)
