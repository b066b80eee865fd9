"""The code_execution evaluator: rows in, sandboxed verdicts out."""

import json

import numpy as np
import pytest

from evomerge.errors import ConfigError, DataError
from evomerge.evaluation.code_execution import CodeExecution
from evomerge.evaluation.sandbox import Limits
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


def test_rows_without_tests_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: key 'tests' is missing"):
        evaluator(path).n_examples()


def test_it_keeps_the_contract_on_a_real_model(rows, llama):
    check_evaluator(evaluator(rows, max_new_tokens=4), llama)
