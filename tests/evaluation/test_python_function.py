import re
import sys
import textwrap

import numpy as np
import pytest

from evomerge.errors import ConfigError, EvaluationError
from evomerge.evaluation.python_function import PythonFunction
from evomerge.testing import check_evaluator


@pytest.fixture
def scorers(tmp_path):
    (tmp_path / "my_scorers.py").write_text(
        textwrap.dedent(
            """
            from evomerge.errors import EvaluationError

            def lengths(subject, texts):
                return [len(subject.encode(text)) for text in texts]

            def parts(subject, positions, scale):
                return [scale * int(position) for position in positions]

            def broken(subject):
                raise KeyError("no such thing")

            def refuses(subject):
                raise EvaluationError("not today")

            def nan(subject):
                return [1.0, float("nan")]

            constant = 3
            """
        )
    )
    yield tmp_path
    sys.modules.pop("my_scorers", None)


def test_a_python_function_scores(scorers, llama):
    before = list(sys.path)
    evaluator = PythonFunction(
        function="my_scorers:lengths", n=2, path=scorers, arguments={"texts": ["abc", "the"]}
    )
    assert evaluator.n_examples() == 2
    np.testing.assert_array_equal(evaluator.evaluate(llama), [4, 2])
    assert sys.path == before
    check_evaluator(evaluator, llama)


def test_a_function_with_positions_scores_those_and_any_other_all(scorers, llama):
    evaluator = PythonFunction(
        function="my_scorers:parts", n=5, path=scorers, arguments={"scale": 2}
    )
    np.testing.assert_array_equal(evaluator.evaluate(llama, np.array([3, 1])), [6, 2])
    np.testing.assert_array_equal(evaluator.evaluate(llama), [0, 2, 4, 6, 8])
    check_evaluator(evaluator, llama)
    whole = PythonFunction(
        function="my_scorers:lengths", n=2, path=scorers, arguments={"texts": ["abc", "the"]}
    )
    np.testing.assert_array_equal(whole.evaluate(llama, np.array([1])), [2])
    with pytest.raises(IndexError, match="no example 2"):
        whole.evaluate(llama, np.array([2]))
    with pytest.raises(ConfigError, match="`positions` among the arguments"):
        PythonFunction(function="a:b", n=1, arguments={"positions": [1]})


def test_digests_follow_the_code_and_the_arguments(scorers):
    def digests(**arguments):
        return PythonFunction(
            function="my_scorers:parts", n=2, path=scorers, arguments=arguments
        ).example_digests()

    before = digests(scale=2)
    assert len(set(before)) == 2
    assert digests(scale=2) == before != digests(scale=3)
    with (scorers / "my_scorers.py").open("a") as file:
        file.write("# changed")
    assert digests(scale=2) != before


@pytest.mark.parametrize(
    ("name", "n", "message"),
    [
        ("lengths", 3, "returned 2 scores, expected n=3"),
        ("broken", 2, "my_scorers:broken failed: KeyError: 'no such thing'"),
        ("refuses", 2, "^not today$"),
        ("nan", 2, r"not finite, the first for example 1 \(nan\)"),
    ],
)
def test_a_bad_python_function_is_an_evaluation_error(scorers, llama, name, n, message):
    arguments = {"texts": ["abc", "the"]} if name == "lengths" else {}
    evaluator = PythonFunction(
        function=f"my_scorers:{name}", n=n, path=scorers, arguments=arguments
    )
    with pytest.raises(EvaluationError, match=message):
        evaluator.evaluate(llama)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_scorers:length", "no function 'length'. Did you mean 'lengths'"),
        ("my_scorers:constant", "no function 'constant'"),
        ("your_scorers:f", "cannot import 'your_scorers' in .*ModuleNotFoundError"),
        ("bad_syntax:f", "SyntaxError"),
        ("json:dumps", "already imported from"),
    ],
)
def test_an_import_problem_is_a_config_error(scorers, function, message):
    (scorers / "bad_syntax.py").write_text("def f(:\n")
    (scorers / "json.py").write_text("")
    evaluator = PythonFunction(function=function, n=1, path=scorers)
    with pytest.raises(ConfigError, match=message):
        evaluator.n_examples()


@pytest.mark.parametrize("function", ["lengths", "my_scorers:", ":f", "a:b-c"])
def test_a_function_must_be_named_with_its_module(function):
    with pytest.raises(ConfigError, match=re.escape(repr(function))):
        PythonFunction(function=function, n=1)


def test_a_path_must_be_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        PythonFunction(function="a:b", n=1, path=tmp_path / "none").n_examples()
