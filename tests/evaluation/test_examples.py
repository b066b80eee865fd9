import json

import numpy as np
import pytest

from evomerge.errors import ConfigError, DataError, EvaluationError
from evomerge.evaluation.classification import Classification
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.examples import checked_scores, chosen, read_arrays, read_rows, read_text
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.perplexity import Perplexity

GOOD = {"text": "fine", "label": 1, "prompt": "p", "options": ["a", "b"], "gold": 0, "answer": "x"}


def jsonl(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def without(*keys):
    return {key: value for key, value in GOOD.items() if key not in keys}


TEXTS = {"labels": ("ham", "spam")}
BAD_ROWS = [
    (Classification, {}, without("label"), r"'label' is missing .*every row needs 'label'"),
    (Classification, {}, without("text"), r"'text' is missing"),
    (Classification, {}, GOOD | {"text": ""}, r"'text' is empty"),
    (Classification, {}, GOOD | {"text": ["a"]}, r"'text' is a list, expected a string"),
    (Classification, {}, GOOD | {"label": "spam"}, r"'spam', expected an integer.*labels:"),
    (Classification, {}, GOOD | {"label": 1.0}, r"'label' is a number, expected an integer"),
    (Classification, {}, GOOD | {"label": True}, r"'label' is a boolean"),
    (Classification, {}, GOOD | {"label": None}, r"'label' is null"),
    (Classification, {}, GOOD | {"label": -1}, r"'label' is -1, expected 0 or more"),
    (Classification, TEXTS, GOOD | {"label": "spma"}, r"not in `labels`. Did you mean 'spam'\?"),
    (Classification, TEXTS, GOOD | {"label": 2}, r"'label' is 2, expected 0 to 1"),
    (MultipleChoice, {}, without("prompt"), r"'prompt' is missing"),
    (MultipleChoice, {}, without("options"), r"'options' is missing"),
    (MultipleChoice, {}, GOOD | {"options": "ab"}, r"'options' is a string, expected a list"),
    (MultipleChoice, {}, GOOD | {"options": ["a"]}, r"at least two"),
    (MultipleChoice, {}, GOOD | {"options": ["a", ""]}, r"none of them empty"),
    (MultipleChoice, {}, GOOD | {"options": ["a", 3]}, r"expected a list of strings"),
    (MultipleChoice, {}, without("gold"), r"'gold' is missing .*every row needs 'gold'"),
    (MultipleChoice, {}, GOOD | {"gold": 2}, r"'gold' is 2, expected an integer from 0 to 1"),
    (MultipleChoice, {}, GOOD | {"gold": "a"}, r"'gold' is 'a'"),
    (ExactMatch, {}, without("answer"), r"'answer' is missing"),
    (ExactMatch, {}, GOOD | {"answer": 3}, r"'answer' is a number, expected a string"),
    (Perplexity, {}, without("text"), r"'text' is missing"),
    (Perplexity, {}, "[1, 2]", r"a list, expected an object"),
    (Perplexity, {}, '{"text": "a"', r"not JSON"),
    (Perplexity, {}, "[" * 100_000, r"not JSON"),
]


@pytest.mark.parametrize(("kind", "settings", "row", "message"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_line_and_key(tmp_path, kind, settings, row, message):
    good = GOOD | {"label": "ham"} if settings else GOOD
    path = jsonl(tmp_path / "data.jsonl", good, "", row)
    with pytest.raises(DataError, match=message) as caught:
        kind(examples=path, **settings).n_examples()
    assert f"{path}:3:" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"No such file.*check `examples:`"),
        (b"", "is empty"),
        (b"\n\n  \n", "has no rows"),
        (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content)
    for kind in (Classification, MultipleChoice, ExactMatch, Perplexity):
        with pytest.raises(DataError, match=message) as caught:
            kind(examples=path).n_examples()
        assert str(path) in str(caught.value)


def test_two_rows_with_the_same_id_are_named(tmp_path):
    rows = [GOOD | {"id": 1}, GOOD | {"id": "1"}, GOOD, GOOD | {"id": "1"}]
    with pytest.raises(DataError, match=r"d.jsonl:4: id '1' is that of line 2 as well; remove"):
        read_rows(jsonl(tmp_path / "d.jsonl", *rows))
    assert len(read_rows(jsonl(tmp_path / "e.jsonl", *rows[:3]))) == 3


def test_equal_content_has_equal_digests_wherever_it_stands(tmp_path):
    other = GOOD | {"prompt": "another"}
    one = MultipleChoice(examples=jsonl(tmp_path / "d.jsonl", GOOD, other, GOOD | {"x": 1}))
    two = MultipleChoice(examples=jsonl(tmp_path / "e.jsonl", other, GOOD), normalise="char")
    first, second, third = one.example_digests()
    assert first == third != second
    assert two.example_digests() == (second, first)
    with_digest = jsonl(tmp_path / "d.jsonl", GOOD | {"gold": 1}, other, GOOD)
    assert MultipleChoice(examples=with_digest).example_digests()[0] != first


def test_positions_are_checked():
    assert chosen(3, None).tolist() == [0, 1, 2]
    assert chosen(3, np.array([2, 0, 2])).tolist() == [2, 0, 2]
    assert chosen(3, np.array([])).tolist() == []
    for wrong in ([3], [-1], [0.5], [[0]]):
        with pytest.raises(IndexError):
            chosen(3, np.array(wrong))


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(DataError, match="is not a file"):
        read_rows(tmp_path)


GOOD_ARRAYS = {"pixel_values": np.zeros((4, 1, 8, 8), np.float32), "labels": np.arange(4)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": np.zeros(3)}, r"'pixel_values' is missing \(the file has pixels\)"),
        ({"labels": np.arange(3)}, r"differ in length"),
        ({"labels": np.arange(4.0)}, r"labels is float64 \(4,\), expected integer"),
        ({"labels": np.array([0, 1, -1, 3])}, r"label of example 2 is -1"),
        ({"labels": np.array(3)}, r"is a scalar"),
        ({"labels": np.array([{}, 1, 2, 3], dtype=object)}, r"cannot be read as npz"),
        ({"pixel_values": np.zeros((4, 8, 8), np.float32)}, r"expected float \(N, C, H, W\)"),
        ({"pixel_values": np.zeros((4, 1, 8, 8), np.uint8)}, r"pixel_values is uint8"),
        (
            {"pixel_values": np.where(np.arange(4)[:, None, None, None] == 3, np.nan, 0.0)},
            r"pixel_values of example 3 are not finite",
        ),
        ({"pixel_values": np.zeros((0, 1, 8, 8)), "labels": np.arange(0)}, r"no examples"),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, message):
    path = tmp_path / "images.npz"
    np.savez(path, **(arrays if "pixels" in arrays else GOOD_ARRAYS | arrays))
    with pytest.raises(DataError, match=message):
        Classification(examples=path).n_examples()


def test_garbage_instead_of_npz_is_named(tmp_path):
    path = tmp_path / "images.npz"
    path.write_bytes(b"PK not really")
    with pytest.raises(DataError, match="is not an npz file"):
        Classification(examples=path).n_examples()


def test_named_classes_bound_the_labels_of_images(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, **GOOD_ARRAYS)
    with pytest.raises(DataError, match="label of example 2 is 2, expected 0 to 1"):
        Classification(examples=path, labels=("a", "b")).n_examples()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Classification(examples=p, metric="acuracy"), "Did you mean 'accuracy'"),
        (lambda p: Classification(examples=p, batch_size=0), "batch_size is 0"),
        (lambda p: Classification(examples=p, rows=(3, 3)), r"rows is \[3, 3\]"),
        (lambda p: Classification(examples=p, rows=(-1, 3)), r"rows is \[-1, 3\]"),
        (lambda p: Classification(examples=p.with_suffix(".csv")), "expected .jsonl"),
        (lambda p: Classification(examples=p, labels=("a", "a")), "twice"),
        (lambda p: MultipleChoice(examples=p, normalise="tokens"), "Did you mean 'token'"),
        (lambda p: ExactMatch(examples=p, max_new_tokens=0), "max_new_tokens is 0"),
        (lambda p: ExactMatch(examples=p, pattern="(a"), "not a regular expression"),
        (lambda p: ExactMatch(examples=p, stop=("",)), "stop string is empty"),
        (lambda p: Perplexity(examples=p, window=1), "at least 2"),
        (lambda p: Perplexity(examples=p.with_suffix(".txt")), r"rows: \[0, 64\]"),
    ],
)
def test_a_bad_setting_is_a_config_error(tmp_path, make, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path / "data.jsonl")


def test_rows_cut_search_and_held_out_from_one_file(tmp_path):
    path = jsonl(tmp_path / "data.jsonl", *({"text": f"t{i}", "label": 0} for i in range(5)))
    assert [row.values["text"] for row in read_rows(path, (1, 3))] == ["t1", "t2"]
    assert Classification(examples=path, rows=(3, 5)).n_examples() == 2
    with pytest.raises(DataError, match=r"the largest range is \[0, 5\]"):
        Classification(examples=path, rows=(3, 6)).n_examples()
    npz = tmp_path / "images.npz"
    np.savez(npz, **GOOD_ARRAYS)
    np.testing.assert_array_equal(read_arrays(npz, ("labels",), (2, 4))["labels"], [2, 3])


def test_data_is_read_once_and_cannot_be_written_to(tmp_path):
    path = jsonl(tmp_path / "data.jsonl", GOOD)
    rows = read_rows(path)
    assert read_rows(path)[0] is rows[0]
    with pytest.raises(TypeError):
        rows[0].values["text"] = "other"
    assert rows[0].values["options"] == ("a", "b")
    npz = tmp_path / "images.npz"
    np.savez(npz, **GOOD_ARRAYS)
    with pytest.raises(ValueError, match="read-only"):
        read_arrays(npz, ("labels",))["labels"][0] = 3


def test_an_edited_file_is_read_again(tmp_path):
    path = jsonl(tmp_path / "data.jsonl", GOOD)
    assert len(read_rows(path)) == 1
    jsonl(path, GOOD, GOOD)
    assert len(read_rows(path)) == 2


def test_unusual_line_separators_stay_inside_strings(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('\ufeff{"text": "a\u2028b"}\r\n{"text": "c"}\r\n', encoding="utf-8")
    assert [row.text("text") for row in read_rows(path)] == ["a\u2028b", "c"]
    assert read_text(path).startswith("{")


def test_scores_that_are_not_finite_name_file_and_example():
    with pytest.raises(EvaluationError, match=r"m: 1 of 3 scores on d.jsonl .* example 11 \(nan\)"):
        checked_scores([0.0, float("nan"), 1.0], n=3, subject="m", path="d.jsonl", first=10)
    with pytest.raises(EvaluationError, match=r"\(2,\), expected \(3,\)"):
        checked_scores([0.0, 1.0], n=3, subject="m", path="d.jsonl")
