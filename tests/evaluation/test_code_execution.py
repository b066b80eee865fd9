"""The code_execution evaluator: rows in, sandboxed verdicts out."""

import json

import numpy as np
import pytest

from evomerge.errors import ConfigError, DataError
from evomerge.evaluation.code_execution import CodeExecution
from evomerge.evaluation.sandbox import Limits
from evomerge.evaluation.server import ServedCandidate, Server
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.testing import check_evaluator

from .test_sandbox import BARRIER

ROWS = [
    {
        "prompt": "def add(a, b):\n    return ",
        "tests": "def check(f):\n    assert f(1, 2) == 3\ncheck(add)",
    },
    {"prompt": "x = 1\n#", "tests": "assert x == 1"},
    {"prompt": "x = 1\n#", "tests": "assert x == 2"},
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "code.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


class Writer:
    """Stands for a model that writes what it is told."""

    name = "candidate 1"

    def __init__(self, *answers):
        self.answers = answers

    def require(self, auto_class):
        assert auto_class == "AutoModelForCausalLM"

    def generate(self, prompts, **_):
        return list(self.answers[: len(prompts)])


def evaluator(path, **changes):
    isolation = "namespaces" if BARRIER is None else "none"
    settings = {"isolation": isolation, "limits": Limits(seconds=20.0), **changes}
    return CodeExecution(examples=path, allow_code_execution=True, **settings)


def test_it_is_off_unless_asked_for(rows):
    with pytest.raises(ConfigError, match="allow_code_execution: true"):
        CodeExecution(examples=rows)


def test_programs_that_pass_their_tests_score_one(rows):
    found = evaluator(rows).evaluate(Writer("a + b", "", ""))
    assert found.tolist() == [1.0, 1.0, 0.0]
    assert found.dtype == np.float32
    assert evaluator(rows).evaluate(Writer("a - b", "\nx = 3", "\nx = 2")).tolist() == [0, 0, 1]
    assert evaluator(rows).evaluate(Writer("", ""), np.array([2, 1])).tolist() == [0.0, 1.0]


def test_fenced_answers_are_whole_programs(rows):
    answer = "Sure:\n```python\ndef add(a, b):\n    return b + a\n```\nDone."
    found = evaluator(rows, answer="fenced").evaluate(Writer(answer, "x = 1", "```\nx = 2"))
    assert found.tolist() == [1.0, 1.0, 1.0]


def test_prompts_become_chat_messages_and_tokens_are_made_once(rows, llama, tmp_path, monkeypatch):
    template = tmp_path / "chat.jinja"
    template.write_text("<s>[{{ messages[-1].content }}]")
    chat = {"chat_template": True, "chat_template_file": template, "answer": "fenced"}
    made = evaluator(rows, max_new_tokens=4, **chat)
    wanted = [llama.generate([f"[{row['prompt']}]"], max_new_tokens=4)[0] for row in ROWS]
    assert made.probe(llama, np.arange(3)) == wanted
    assert made.example_digests() != evaluator(rows).example_digests()
    monkeypatch.setattr(type(llama), "encode", None)  # would raise
    assert made.probe(llama, np.array([2, 0])) == [wanted[2], wanted[0]]


def test_a_server_and_settings_of_a_model_here_exclude_each_other(rows):
    server = ServedCandidate(server=Server(url="http://x"), install="recipe")
    for settings, key in (
        ({"chat_template": True}, "chat_template"),
        ({"engine": VllmEngine(name="vllm")}, "engine"),
    ):
        with pytest.raises(ConfigError, match=f"code_execution: {key} is for a model of the work"):
            evaluator(rows, candidate=server, **settings)


def test_rows_without_tests_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: key 'tests' is missing"):
        evaluator(path).n_examples()


def test_it_keeps_the_contract_on_a_real_model(rows, llama):
    check_evaluator(evaluator(rows, max_new_tokens=4), llama)
