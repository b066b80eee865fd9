import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.core.model_space import align
from evomerge.errors import ModelSpaceError, SourceError
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.vocabulary import (
    VocabularyMapped,
    map_vocabulary,
    read_vocabulary,
    row_map,
)

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
TIED = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
UNTIED = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


def rows(n, start):
    return torch.arange(start, start + n * 3, dtype=torch.float32).reshape(n, 3)


BASE_VOCABULARY = {"a": 0, "b": 1, "c": 2, "d": 3}  # of five rows: one is padding
OTHER_VOCABULARY = {"x": 0, "c": 1, "a": 2, "d": 9}  # of three rows: d has none


def write_tokenizer(folder, **content):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}, {"a": 0, "b": 1}),
        ({"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.5]]}}, {"a": 0, "b": 1}),
        (
            {
                "model": {"type": "WordPiece", "vocab": {"a": 0}},
                "added_tokens": [{"id": 7, "content": "<pad>"}, {"id": 0, "content": "a"}],
            },
            {"a": 0, "<pad>": 7},
        ),
    ],
)
def test_tokenizer_json_is_read(content, expected, tmp_path):
    assert read_vocabulary(write_tokenizer(tmp_path, **content)) == expected


def test_older_vocabulary_files_are_read(tmp_path):
    assert read_vocabulary(tmp_path) is None
    (tmp_path / "vocab.txt").write_bytes("[PAD]\nä\r\n##b\n".encode())
    assert read_vocabulary(tmp_path) == {"[PAD]": 0, "ä": 1, "##b": 2}
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    assert read_vocabulary(tmp_path) == {"a": 0}
    (tmp_path / "added_tokens.json").write_text('{"<x>": 1}')
    assert read_vocabulary(tmp_path) == {"a": 0, "<x>": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({}, "model.vocab is missing", id="empty"),
        pytest.param({"model": {"vocab": 3}}, "model.vocab is missing", id="vocab_a_number"),
        pytest.param({"model": {"vocab": ["a"]}}, "pairs", id="unigram_without_scores"),
        pytest.param({"model": {"vocab": {"a": -1}}}, "not a row number", id="negative_row"),
        pytest.param({"model": {"vocab": {"a": True}}}, "not a row number", id="boolean_row"),
        pytest.param({"model": {"vocab": {"a": 2**40}}}, "not a row number", id="huge_row"),
        pytest.param(
            {"model": {"vocab": {}}, "added_tokens": {"a": 1}}, "must be a list", id="added_a_map"
        ),
        pytest.param(
            {"model": {"vocab": {}}, "added_tokens": [{"content": "a"}]},
            "not a row number",
            id="added_without_id",
        ),
    ],
)
def test_a_malformed_tokenizer_is_refused(content, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        read_vocabulary(write_tokenizer(tmp_path, **content))


def test_vocab_txt_that_is_not_text_or_lies_elsewhere_is_refused(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match="not UTF-8"):
        read_vocabulary(folder)
    (folder / "vocab.txt").rename(tmp_path / "vocab.txt")
    (folder / "vocab.txt").symlink_to(tmp_path / "vocab.txt")
    with pytest.raises(SourceError, match="outside the model folder"):
        read_vocabulary(folder)


def test_the_row_map_is_by_token_text():
    mapped = row_map(BASE_VOCABULARY, OTHER_VOCABULARY, 5)
    assert mapped.dtype == np.int64
    assert mapped.tolist() == [2, -1, 1, 9, -1]
    assert row_map({}, {"a": 0}, 2).tolist() == [-1, -1]
    assert row_map({"a": 5}, {"a": 0}, 2).tolist() == [-1, -1]


@given(st.permutations(range(20)), st.integers(0, 30))
def test_the_row_map_of_a_permutation_is_its_inverse_lookup(order, n_rows):
    base = {f"t{i}": i for i in range(20)}
    other = {f"t{i}": row for i, row in enumerate(order)}
    expected = [order[i] if i < 20 else -1 for i in range(n_rows)]
    assert row_map(base, other, n_rows).tolist() == expected


def make(folder, save_model, n_rows, start, *, config=TIED, head=None, dtype=torch.float32):
    tensors = {EMBED: rows(n_rows, start).to(dtype), NORM: torch.full((3,), float(start))}
    if head is not None:
        tensors[HEAD] = rows(n_rows, head).to(dtype)
    return ModelFolder(folder.name, save_model(folder, tensors, config))


def mapped(source, base):
    return VocabularyMapped(source, base, BASE_VOCABULARY, OTHER_VOCABULARY)


def expected_rows(own, theirs):
    return torch.stack([own[2], theirs[1], own[1], theirs[3], theirs[4]])


def test_rows_are_gathered_and_missing_ones_are_the_bases(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 0)
    source = make(tmp_path / "other", save_model, 3, 100)
    view = mapped(source, base)
    expected = expected_rows(rows(3, 100), rows(5, 0))
    assert torch.equal(view.read(EMBED), expected)
    assert torch.equal(view.read(HEAD), expected)
    assert torch.equal(view.read(NORM), source.read(NORM))
    assert view.exact_delta(EMBED) is None
    assert view.exact_delta(NORM) is None
    assert view.factors(EMBED) is None
    assert view.factors(NORM) is None
    for start in range(16):
        for stop in range(start, 16):
            part = expected.flatten()[start:stop]
            assert torch.equal(view.read_range(EMBED, start, stop), part)
    assert torch.equal(view.read_range(NORM, 1, 2), source.read_range(NORM, 1, 2))
    with pytest.raises(ValueError, match="outside its 15 elements"):
        view.read_range(EMBED, 0, 16)


def test_the_mapped_source_aligns_with_the_base(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 0)
    source = make(tmp_path / "other", save_model, 3, 100)
    view = mapped(source, base)
    assert view.header().tied == {HEAD: EMBED}
    assert view.header().tensors[EMBED].shape == (5, 3)
    assert view.id == source.id
    space = align([base.header(), view.header()], has_base=True)
    assert [tensor.spec.name for tensor in space.merged] == [EMBED, NORM]


def test_digests_depend_on_source_base_and_map(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 0)
    other_base = make(tmp_path / "base2", save_model, 5, 1)
    source = make(tmp_path / "other", save_model, 3, 100)
    other = {**OTHER_VOCABULARY, "b": 0}
    views = [
        mapped(source, base),
        mapped(source, other_base),
        VocabularyMapped(source, base, BASE_VOCABULARY, other),
    ]
    assert len({view.digest for view in views}) == 3
    assert len({view.header().digests[EMBED] for view in views}) == 3
    assert len({view.header().digests[NORM] for view in views}) == 1
    assert views[0].digest == mapped(source, base).digest


def test_stored_heads_are_gathered_from_heads(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 0, head=1000, config=UNTIED)
    source = make(tmp_path / "other", save_model, 3, 100, head=2000, config=UNTIED)
    view = mapped(source, base)
    assert torch.equal(view.read(HEAD), expected_rows(rows(3, 2000), rows(5, 1000)))
    assert torch.equal(view.read(EMBED), expected_rows(rows(3, 100), rows(5, 0)))


def test_a_tied_source_gets_its_own_head_when_the_base_has_one(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 0, head=1000, config=UNTIED)
    source = make(tmp_path / "other", save_model, 3, 100)
    view = mapped(source, base)
    assert view.header().tied == {}
    assert torch.equal(view.read(HEAD), expected_rows(rows(3, 100), rows(5, 1000)))


def test_an_untied_source_falls_back_to_the_tied_bases_embedding(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 0)
    source = make(tmp_path / "other", save_model, 3, 100, head=2000, config=UNTIED)
    view = mapped(source, base)
    assert torch.equal(view.read(HEAD), expected_rows(rows(3, 2000), rows(5, 0)))


def test_dtypes_are_promoted_so_that_missing_rows_are_exact(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 1 + 2**-10)
    source = make(tmp_path / "other", save_model, 3, 100, dtype=torch.bfloat16)
    view = mapped(source, base)
    assert view.header().tensors[EMBED].dtype == "F32"
    assert torch.equal(view.read(EMBED)[1], base.read(EMBED)[1])


def test_head_biases_are_gathered_too(tmp_path, save_model):
    def bert(name, n_rows, start):
        tensors = {
            "bert.embeddings.word_embeddings.weight": rows(n_rows, start),
            "cls.predictions.bias": torch.arange(n_rows) + float(start),
        }
        config = {"architectures": ["BertForMaskedLM"]}
        return ModelFolder(name, save_model(tmp_path / name, tensors, config))

    view = mapped(bert("other", 3, 100), bert("base", 5, 0))
    assert view.read("cls.predictions.bias").tolist() == [102.0, 1.0, 101.0, 3.0, 4.0]
    assert view.read_range("cls.predictions.bias", 1, 3).tolist() == [1.0, 101.0]


def test_models_of_other_widths_or_names_are_refused(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 0)
    wide = ModelFolder("wide", save_model(tmp_path / "w", {EMBED: torch.ones(3, 8)}))
    named = ModelFolder("named", save_model(tmp_path / "n", {"wte.weight": torch.ones(3, 3)}))
    with pytest.raises(ModelSpaceError, match="only the number of rows may differ"):
        mapped(wide, base).header()
    with pytest.raises(ModelSpaceError, match=r"token embedding of 'named' is 'wte.weight'"):
        mapped(named, base).header()


def test_a_source_is_wrapped_only_when_vocabularies_differ(tmp_path, save_model):
    base = make(tmp_path / "base", save_model, 5, 0)
    same = make(tmp_path / "same", save_model, 5, 50)
    short = make(tmp_path / "short", save_model, 3, 100)
    bare = ModelFolder("bare", save_model(tmp_path / "bare", {NORM: torch.ones(3)}))
    assert map_vocabulary(same, base, BASE_VOCABULARY, dict(BASE_VOCABULARY)) is same
    assert map_vocabulary(same, base, None, BASE_VOCABULARY) is same
    assert map_vocabulary(bare, base, BASE_VOCABULARY, OTHER_VOCABULARY) is bare
    wrapped = map_vocabulary(short, base, BASE_VOCABULARY, OTHER_VOCABULARY)
    assert isinstance(wrapped, VocabularyMapped)
    padded = map_vocabulary(short, base, BASE_VOCABULARY, BASE_VOCABULARY)
    assert torch.equal(padded.read(EMBED)[:3], short.read(EMBED))
    assert torch.equal(padded.read(EMBED)[3:], base.read(EMBED)[3:])
    with pytest.raises(ModelSpaceError, match="vocabulary of 'short' is unknown"):
        map_vocabulary(short, base, BASE_VOCABULARY, None)
    with pytest.raises(ModelSpaceError, match="vocabulary of 'base' is unknown"):
        map_vocabulary(short, base, None, OTHER_VOCABULARY)


def test_the_real_story_vocabulary_fits_its_embedding(shared_data):
    path = shared_data / "stories260k_hf"
    vocabulary = read_vocabulary(path)
    assert vocabulary is not None
    assert vocabulary["<s>"] == 1
    n_rows = ModelFolder("s", path).specs[EMBED].shape[0]
    assert row_map(vocabulary, vocabulary, n_rows).tolist() == list(range(n_rows))
