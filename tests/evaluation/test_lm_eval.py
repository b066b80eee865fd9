"""Tasks of lm-evaluation-harness: local files, no downloads, compared with the harness itself."""

import itertools
import json
import logging
import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")  # lm_eval's own engine

from evomerge.config.schema import SplitsConfig
from evomerge.config.splits import refuse_shared_examples, split_task
from evomerge.errors import ConfigError, DataError, EvaluationError, UnavailableError
from evomerge.evaluation import harness_code
from evomerge.evaluation.harness import LmEval
from evomerge.evaluation.harness_answers import chat_template
from evomerge.testing import check_evaluator

WORDS = ("the cat", "a dog", "then", "other things", "zz:", "q", "x y", "the end", "be", "no")
CHOICE = {
    "task": "choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_target": "gold",
    "doc_to_choice": "options",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
    ],
}
ANSWER = {
    "task": "answer",
    "output_type": "generate_until",
    "doc_to_text": "{{text}}:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["th", "\n"], "do_sample": False, "max_gen_toks": 6},
    "filter_list": [
        {
            "name": "first-letter",
            "filter": [
                {"function": "regex", "regex_pattern": r"([a-z])"},
                {"function": "take_first"},
            ],
        },
        {"name": "all", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        {"metric": "bleu", "aggregation": "bleu", "higher_is_better": True},
    ],
}
LAST_WORD = {
    "task": "last_word",
    "output_type": "loglikelihood",
    "doc_to_text": "{{text}}",
    "doc_to_target": " {{answer}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
ROLLING = {
    "task": "rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{long}}",
    "metric_list": [{"metric": name} for name in ("word_perplexity", "bits_per_byte")],
}
LENGTH = {
    "task": "length",
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
    "metric_list": [
        {"metric": "characters", "aggregation": "mean", "higher_is_better": False},
        {"metric": "noise", "aggregation": "mean", "higher_is_better": True},
    ],
}
CODE = """
import random

def score(doc, results):
    doc["text"] = "spoilt"
    return {"characters": len(results[0]), "noise": random.random()}
"""


def rows(n=10):
    return [
        {
            "text": WORDS[i % 10],
            "options": ["b", "c", "the"] if i % 2 else ["sat down", "ran", "x"],
            "gold": i % 3,
            "answer": "abcde"[i % 5],
            "long": " ".join(WORDS[: i + 3]) * (1 + i // 3),
        }
        for i in range(n)
    ]


def write_task(folder, task, docs, **changes):
    """Write the docs and a task file over them; return the file."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{task['task']}.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    body = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": data.name},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
    }
    path = folder / f"{task['task']}.yaml"
    # A function cannot be written by yaml.safe_dump.
    functions = changes.pop("functions", "")
    path.write_text(yaml.safe_dump(body | task | changes) + functions)
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for task in (CHOICE, ANSWER, LAST_WORD, ROLLING):
        write_task(folder, task, rows())
    (folder / "own_code.py").write_text(CODE)
    write_task(folder, LENGTH, rows(), functions="process_results: !function own_code.score\n")
    shots = {"tag": ["ours"], "fewshot_split": "test", "num_fewshot": 2, "fewshot_delimiter": "\n"}
    write_task(folder, CHOICE | {"task": "shots"}, rows(), **shots)
    (folder / "group.yaml").write_text("group: several\ntask: [choice, answer]\n")
    return folder


@pytest.fixture(scope="module")
def harness_log(tasks, llama_folder):
    """Return the harness's own log of documents, through its own engine."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=tasks, include_defaults=False)
    model = HFLM(pretrained=str(llama_folder), device="cpu", batch_size=3, dtype="float32")

    def log(names, template=None, **settings):
        model.tokenizer.chat_template = template
        streams = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.chdir(tasks)  # its data files count from the working folder
            patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # takes seconds
            found = lm_eval.simple_evaluate(
                model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **settings
            )
        random.setstate(streams[0])
        np.random.set_state(streams[1])  # noqa: NPY002
        torch.random.set_rng_state(streams[2])
        return found["samples"]

    return log


@pytest.fixture(scope="module")
def plain_log(harness_log):
    return harness_log(["choice", "shots", "answer", "last_word", "rolling", "length"])


def values(samples, metric):
    name, chosen = metric.split(",")
    found = [sample for sample in samples if sample["filter"] == chosen]
    assert [s["doc_id"] for s in found] == sorted(s["doc_id"] for s in found)
    return [sample[name] for sample in found]


@pytest.fixture
def chatty(llama, monkeypatch):
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    monkeypatch.setattr(llama.tokenizer, "chat_template", template)
    return llama, template


def identity(value):
    return value


def minus(value):
    return -value


def per_word(value):
    return value[0] / value[1]


def per_bit(value):
    return value[0] / value[1] / math.log(2)


def brier(value):
    gold, probabilities = value
    return -sum((p - (i == gold)) ** 2 for i, p in enumerate(probabilities))


@pytest.mark.parametrize(
    ("name", "metric", "score"),
    [
        ("choice", "acc,none", identity),
        ("choice", "acc_norm,none", identity),
        ("choice", "exact_match,none", identity),
        ("choice", "brier_score,none", brier),
        ("shots", "acc,none", identity),
        ("shots", "brier_score,none", brier),
        ("answer", "exact_match,first-letter", identity),
        ("answer", "exact_match,all", identity),
        ("last_word", "acc,none", identity),
        ("last_word", "perplexity,none", identity),
        ("rolling", "word_perplexity,none", per_word),
        ("rolling", "bits_per_byte,none", per_bit),
        ("length", "characters,none", minus),
    ],
)
def test_scores_are_those_of_the_harness(tasks, llama, plain_log, name, metric, score):
    known = values(plain_log[name], metric)
    found = LmEval(task=name, include_path=tasks, metric=metric).evaluate(llama)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [score(value) for value in known], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"limit": 4}, {"limit": 4}),
        ({"samples": (1, 5, 8)}, {"samples": {"shots": [1, 5, 8]}}),
        ({"rows": (3, 7)}, {"samples": {"shots": [3, 4, 5, 6]}}),
        ({"num_fewshot": 3}, {"num_fewshot": 3}),
        ({"system_instruction": "be short"}, {"system_instruction": "be short"}),
        ({"fewshot_seed": 7}, {"fewshot_random_seed": 7}),
    ],
)
def test_settings_mean_what_the_harness_means_by_them(tasks, llama, harness_log, ours, theirs):
    log = harness_log(["shots"], **theirs)["shots"]
    known = [brier(value) for value in values(log, "brier_score,none")]
    evaluator = LmEval(task="shots", include_path=tasks, metric="brier_score", **ours)
    assert evaluator.n_examples() == len(known)
    np.testing.assert_allclose(evaluator.evaluate(llama), known, rtol=2e-5)


@pytest.mark.parametrize("multiturn", [True, False])
def test_a_chat_template_is_applied_as_the_harness_does(tasks, chatty, harness_log, multiturn):
    llama, template = chatty
    settings = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn, "num_fewshot": 1}
    log = harness_log(["shots"], template, **settings)["shots"]
    known = [brier(value) for value in values(log, "brier_score,none")]
    evaluator = LmEval(task="shots", include_path=tasks, metric="brier_score", **settings)
    np.testing.assert_allclose(evaluator.evaluate(llama), known, rtol=2e-5)
    plain = LmEval(task="shots", include_path=tasks, metric="brier_score", num_fewshot=1)
    assert not np.allclose(plain.evaluate(llama), known)


def test_a_tokenizer_without_a_template_is_an_error(tasks, llama):
    evaluator = LmEval(task="choice", include_path=tasks, metric="acc", apply_chat_template=True)
    with pytest.raises(EvaluationError, match="has no chat template"):
        evaluator.evaluate(llama)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("choice", "acc"),
        ("shots", "brier_score"),
        ("answer", "exact_match,first-letter"),
        ("rolling", "bits_per_byte"),
        ("length", "noise"),
    ],
)
def test_the_contract_of_evaluators_is_kept(tasks, llama, name, metric):
    evaluator = LmEval(task=name, include_path=tasks, metric=metric, batch_size=4)
    check_evaluator(evaluator, llama)


def test_weights_are_read_anew_and_everything_else_is_kept(tasks, llama_folder):
    from evomerge.evaluation.subject import Subject

    subject = Subject.load(llama_folder, auto_class="AutoModelForCausalLM")
    evaluator = LmEval(task="last_word", include_path=tasks, metric="perplexity")
    first, task, requests = evaluator.evaluate(subject), evaluator._loaded, evaluator._requests
    with torch.no_grad():
        subject.model.lm_head.weight.mul_(0.5)
    second = evaluator.evaluate(subject)
    assert not np.allclose(first, second)
    assert evaluator._loaded is task
    assert evaluator._requests is requests
    with torch.no_grad():
        subject.model.lm_head.weight.mul_(2.0)
    np.testing.assert_array_equal(evaluator.evaluate(subject), first)


def test_documents_with_the_same_question_have_the_same_digest(tasks, tmp_path):
    docs = rows(4)
    write_task(tmp_path / "t", CHOICE, [*docs, docs[1]])
    evaluator = LmEval(task="choice", include_path=tmp_path / "t", metric="acc")
    digests = evaluator.example_digests()
    assert len(set(digests)) == 4
    assert digests[1] == digests[4]
    write_task(tmp_path / "t", CHOICE, docs, doc_to_text="Say: {{text}}")
    other = LmEval(task="choice", include_path=tmp_path / "t", metric="acc")
    assert not set(other.example_digests()) & set(digests)


def test_documents_are_split_and_those_that_prompts_show_are_no_test(tasks):
    plain, shots = (
        LmEval(task=task, include_path=tasks, metric="acc") for task in ("choice", "shots")
    )
    assert shots.document_digests() == plain.document_digests()
    assert (plain.shown_digests(), shots.shown_digests()) == (
        frozenset(),
        frozenset(plain.document_digests()),
    )
    for evaluator in (plain, shots):
        parts = split_task("here", evaluator, SplitsConfig(search=0.5, test=0.5))
        search, later = {"t": parts["search"]}, {"test": {"t": parts["test"]}}
        if evaluator is plain:
            refuse_shared_examples(search, later)
        else:
            with pytest.raises(ConfigError, match="may be shown in prompts as few-shot examples"):
                refuse_shared_examples(search, later)


def test_the_files_of_a_task_are_named(tasks):
    found = LmEval(task="length", include_path=tasks, metric="noise").code_files()
    assert [file.name for file in found] == ["length.jsonl", "length.yaml", "own_code.py"]


def test_nothing_is_written_said_or_changed(tasks, llama, tmp_path, monkeypatch, capfd):
    import datasets

    monkeypatch.chdir(tmp_path)
    before = (
        random.getstate(),
        logging.getLogger("lm_eval").level,
        datasets.are_progress_bars_disabled(),
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    )
    # No aggregation in its metric list: the harness warns.
    LmEval(task="rolling", include_path=tasks, metric="bits_per_byte").evaluate(llama)
    LmEval(task="length", include_path=tasks, metric="noise").evaluate(llama)
    after = (
        random.getstate(),
        logging.getLogger("lm_eval").level,
        datasets.are_progress_bars_disabled(),
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    )
    assert after == before
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "choise"}, "no task 'choise' in .*Did you mean 'choice'"),
        ({"task": "several"}, r"a group of 2 tasks \(choice, answer\)"),
        ({"task": "ours"}, r"a tag of 1 tasks \(shots\)"),
        ({"task": "choice", "metric": "acc_nrm"}, "Did you mean 'acc_norm,none'.*Known: acc,none"),
        ({"task": "choice", "metric": "acc,strict"}, "Known: acc,none, acc_norm,none"),
        ({"task": "choice"}, "give `metric:`, one of acc,none, acc_norm,none"),
        ({"task": "answer", "metric": "exact_match"}, "leaves open which filter; write one of"),
        ({"task": "choice", "metric": "mcc"}, "'mcc' is computed from all documents together"),
        ({"task": "answer", "metric": "bleu,all"}, r"'bleu' is computed from all .* \(bleu\)"),
        ({"task": "choice", "metric": "acc", "gen_kwargs": {"until": []}}, "generates nothing"),
        ({"task": "length", "metric": "noise", "gen_kwargs": {"do_sample": True}}, "samples its"),
        ({"task": "length", "metric": "noise", "gen_kwargs": {"num_beams": 2}}, "'num_beams' of"),
        ({"task": "choice", "limit": 3, "rows": (0, 2)}, "give one of limit and rows"),
        ({"task": "choice", "limit": 0}, "limit is 0, expected at least 1"),
        ({"task": "choice", "samples": (1, 1)}, "each once"),
        ({"task": "choice", "num_fewshot": -1}, "expected 0 or more"),
    ],
)
def test_a_wrong_setting_is_a_config_error(tasks, settings, message):
    with pytest.raises(ConfigError, match=message):
        LmEval(include_path=tasks, **settings).n_examples()


def test_a_range_past_the_last_document_is_a_data_error(tasks):
    evaluator = LmEval(task="choice", include_path=tasks, metric="acc", rows=(5, 11))
    with pytest.raises(DataError, match="document 10 is asked for, but task 'choice' has 10"):
        evaluator.n_examples()
    with pytest.raises(DataError, match="is not a folder"):
        LmEval(task="choice", include_path=tasks / "none").n_examples()


def test_broken_tasks_are_data_errors(tmp_path):
    def load(name):
        return LmEval(task=name, include_path=tmp_path, metric="acc").n_examples()

    write_task(tmp_path, CHOICE | {"task": "empty"}, [])
    with pytest.raises(DataError, match=r"'empty' (cannot be loaded|has no documents)"):
        load("empty")
    none = "def none(docs):\n    return docs.select([])\n"
    (tmp_path / "drop.py").write_text(none)
    write_task(
        tmp_path,
        CHOICE | {"task": "dropped"},
        rows(),
        functions="process_docs: !function drop.none\n",
    )
    with pytest.raises(DataError, match="'dropped' has no documents"):
        load("dropped")
    (tmp_path / "bad.yaml").write_text("task: bad\n  output_type: [\n")
    with pytest.raises(DataError, match=r"bad.yaml: cannot be read as a task \(.*line 2"):
        load("bad")
    write_task(tmp_path, CHOICE | {"task": "key"}, rows(), doc_to_choice="choices")
    with pytest.raises(DataError, match="'key' cannot be loaded"):
        load("key")
    path = write_task(tmp_path, CHOICE | {"task": "gone"}, rows())
    path.with_suffix(".jsonl").unlink()
    with pytest.raises(DataError, match=r"'gone' cannot be loaded \(FileNotFoundError"):
        load("gone")


# As the harness's HumanEval and MBPP begin: the metric is loaded, and tried, at import.
SANDBOXED = """
import evaluate as hf_evaluate
compute_ = hf_evaluate.load("code_eval")
compute_.compute(references=["assert add(2, 3)==5"], predictions=[["def add(a,b): return a*b"]], k=[1])

def pass_at_k(references, predictions, k=None):
    return compute_.compute(references=references, predictions=predictions, k=[k])[0]

def build(resps, docs):
    return [[doc["program"] for _ in resp] for resp, doc in zip(resps, docs)]
"""
PASS = (
    "metric_list:\n- metric: !function CODE.pass_at_k\n  aggregation: mean\n"
    "  higher_is_better: true\n  k: 1\n"
    "filter_list:\n- name: made\n  filter:\n  - function: custom\n"
    "    filter_fn: !function CODE.build\n"
)


def unsafe_task(folder, name, code, docs):
    (folder / f"{name}_code.py").write_text(code)
    plain = {key: value for key, value in LENGTH.items() if key != "metric_list"}
    body = plain | {"task": name, "doc_to_target": "assert answer() == 3"}
    functions = PASS.replace("CODE", f"{name}_code")
    write_task(folder, body, docs, unsafe_code=True, functions=functions)
    return LmEval(task=name, include_path=folder, metric="pass@1", allow_code_execution=True)


def test_code_of_models_runs_only_when_that_is_allowed(tmp_path):
    evaluator = unsafe_task(tmp_path, "unsafe", "raise SystemExit('imported')\n", rows())
    with pytest.raises(ConfigError, match="set `allow_code_execution: true`"):
        replace(evaluator, allow_code_execution=False).n_examples()


def test_code_of_models_runs_in_the_sandbox(tmp_path, llama, monkeypatch):
    (tmp_path / "secret").write_text("3")
    programs = [
        "def answer(): return 3",
        "def answer(): return 4",
        f"def answer(): return int(open({str(tmp_path / 'secret')!r}).read())",
        f"open({str(tmp_path / 'written')!r}, 'w').write('x')\ndef answer(): return 3",
        "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)\ndef answer(): return 3",
        "while True: pass",
    ]
    docs = [row | {"program": program} for row, program in zip(rows(), programs, strict=False)]
    evaluator = unsafe_task(tmp_path, "coded", SANDBOXED, docs)
    try:
        assert evaluator.n_examples() == len(programs)
    except UnavailableError as error:
        pytest.skip(str(error))
    np.testing.assert_array_equal(evaluator.evaluate(llama), [1, 0, 0, 0, 0, 0])
    assert not (tmp_path / "written").exists()
    # Another evaluator of the same task: its module is loaded already.
    assert replace(evaluator, limit=1).evaluate(llama).tolist() == [1]
    import evaluate

    assert "Sandboxed" not in repr(evaluate.load)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def pass_at_k(*_, **__): return 1\nbuild = pass_at_k\n", "a way of its own"),
        ("import evaluate\nevaluate.load('other')\n", "loads the metric 'other' to run code"),
    ],
)
def test_code_that_cannot_be_moved_into_the_sandbox_is_refused(tmp_path, code, message):
    name = f"own{len(code)}"
    with pytest.raises(ConfigError, match=message):
        unsafe_task(tmp_path, name, code, rows()).n_examples()


def test_pass_at_k_is_that_of_the_paper():
    total, right = 5, 2
    drawn = list(itertools.combinations([1] * right + [0] * (total - right), 3))
    wanted = sum(any(programs) for programs in drawn) / len(drawn)
    assert harness_code._pass_at(total, right, 3) == pytest.approx(wanted)


def test_a_missing_extra_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'evomerge\[lm-eval\]'"):
        LmEval(task="choice").n_examples()


def test_metrics_that_name_themselves_are_found_after_the_first_answer(tmp_path, llama):
    (tmp_path / "own.py").write_text(
        "def at(references, predictions):\n"
        "    return {'pass@1': float('a' in predictions[0]), 'pass@2': 1.0}\n"
    )
    write_task(
        tmp_path,
        {key: value for key, value in LENGTH.items() if key != "metric_list"} | {"task": "at"},
        rows(),
        functions="metric_list:\n- metric: !function own.at\n  aggregation: mean\n"
        "  higher_is_better: true\n",
    )
    found = LmEval(task="at", include_path=tmp_path, metric="pass@2").evaluate(llama)
    np.testing.assert_array_equal(found, np.ones(10))
    with pytest.raises(EvaluationError, match=r"gives no 'pass@3'.*It gives: pass@1, pass@2"):
        LmEval(task="at", include_path=tmp_path, metric="pass@3").evaluate(llama)


def test_broken_weights_are_an_evaluation_error(tasks, llama_folder):
    from evomerge.evaluation.subject import Subject

    subject = Subject.load(llama_folder, auto_class="AutoModelForCausalLM")
    with torch.no_grad():
        subject.model.lm_head.weight.fill_(float("nan"))
    for name, metric in (("choice", "acc"), ("rolling", "bits_per_byte"), ("length", "noise")):
        with pytest.raises(EvaluationError, match=r"not finite|NaN"):
            LmEval(task=name, include_path=tasks, metric=metric).evaluate(subject)


def test_built_in_names_are_found_without_the_index():
    from evomerge.evaluation.harness_files import code_files, task_file

    path = task_file("gsm8k", None)
    assert path.name == "gsm8k.yaml"
    assert code_files(path)[0].suffix == ".yaml"
    with pytest.raises(ConfigError, match=r"'mmlu' is a group of 4 tasks \(mmlu_stem"):
        task_file("mmlu", None)


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% import 'x' as y %}", "{{ raise('no') }}"])
def test_a_chat_template_that_cannot_be_filled_in_is_named(llama, monkeypatch, template):
    monkeypatch.setattr(llama.tokenizer, "chat_template", template)
    with pytest.raises(EvaluationError, match=r"chat template of .* cannot be filled in"):
        chat_template(llama)([{"role": "user", "content": "hello"}])
