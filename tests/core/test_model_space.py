"""Lining up the tensors of several models from their headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.core.model_space import SourceHeader, TensorSpec, align, lone
from evomerge.errors import ModelSpaceError

EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
SHAPES = {EMBED: (8, 4), Q: (4, 4), K: (2, 4), NORM: (4,), HEAD: (8, 4)}


def header(id, shapes=None, *, digest=None, dtypes=None, tied=None, architecture="Llama"):
    """A model whose tensors differ from those of every other id, unless a digest is given."""
    shapes = SHAPES if shapes is None else shapes
    specs = {n: TensorSpec(n, (dtypes or {}).get(n, "BF16"), s) for n, s in shapes.items()}
    digests = {name: (digest or {}).get(name, f"{id}:{name}") for name in specs}
    return SourceHeader(id, architecture, specs, digests, tied or {})


def actions(space):
    return {tensor.spec.name: tensor.action for tensor in space.tensors}


def without(*names, shapes=SHAPES):
    return {name: shape for name, shape in shapes.items() if name not in names}


def test_all_shared_tensors_are_merged_in_the_order_of_the_model():
    space = align([header("base"), header("x"), header("y")], has_base=True)
    assert space.sources == ("base", "x", "y")
    assert space.has_base
    assert [t.spec.name for t in space.tensors] == [EMBED, K, Q, HEAD, NORM]
    assert set(actions(space).values()) == {"merge"}
    assert [t.offset for t in space.merged] == [0, 32, 40, 56, 88]
    assert space.tensor_breaks.tolist() == [0, 32, 40, 56, 88, space.n_elements]
    assert space.n_elements == 92
    assert not space.left_out
    assert not space.untied


def test_a_tensor_that_is_identical_everywhere_is_copied():
    same = {EMBED: "same"}
    space = align([header("a", digest=same), header("b", digest=same)], has_base=False)
    first = space.tensors[0]
    assert (first.spec.name, first.action, first.offset) == (EMBED, "copy", -1)
    assert first.reason == "identical in every source"
    assert space.merged[0].offset == 0, "copied tensors take no room in the flattened order"


def test_the_same_bytes_in_two_of_three_are_still_merged():
    same = {EMBED: "same"}
    headers = [header("a", digest=same), header("b", digest=same), header("c")]
    assert actions(align(headers, has_base=False))[EMBED] == "merge"


def test_integer_tensors_are_copied_from_the_donor():
    shapes = SHAPES | {"model.position_ids": (1, 8)}
    dtypes = {"model.position_ids": "I64"}
    space = align([header(id, shapes, dtypes=dtypes) for id in "ab"], has_base=False)
    (ids,) = [t for t in space.tensors if t.spec.name == "model.position_ids"]
    assert (ids.action, ids.reason) == ("copy", "not a float tensor (I64)")


def test_integers_against_floats_are_copied_and_said():
    headers = [header("a"), header("b", dtypes={NORM: "I32"})]
    (norm,) = [t for t in align(headers, has_base=False).tensors if t.spec.name == NORM]
    assert (norm.action, norm.reason) == ("copy", "not a float tensor (BF16, I32)")


def test_float_dtypes_may_differ_and_the_donors_is_kept():
    space = align([header("a"), header("b", dtypes=dict.fromkeys(SHAPES, "F32"))], has_base=False)
    assert set(actions(space).values()) == {"merge"}
    assert {t.spec.dtype for t in space.tensors} == {"BF16"}


def test_a_pair_that_all_models_tie_stays_one_tensor():
    headers = [header(id, without(HEAD), tied={HEAD: EMBED}) for id in "ab"]
    space = align(headers, has_base=False)
    assert HEAD not in actions(space)
    assert not space.untied


def test_a_tied_head_that_is_stored_twice_is_written_once():
    headers = [header(id, tied={HEAD: EMBED}) for id in "ab"]
    space = align(headers, has_base=False)
    assert HEAD not in actions(space)
    assert not space.left_out


@pytest.mark.parametrize("first_ties", [True, False])
def test_one_untied_head_unties_the_output(first_ties):
    tying = header("t", without(HEAD), tied={HEAD: EMBED})
    headers = [tying, header("u")] if first_ties else [header("u"), tying]
    space = align(headers, has_base=False)
    assert space.untied
    assert actions(space)[HEAD] == "merge"
    (head,) = [t for t in space.tensors if t.spec.name == HEAD]
    assert head.spec == TensorSpec(HEAD, "BF16", (8, 4))


def test_a_tied_model_contributes_its_embedding_as_its_head():
    same = {EMBED: "e", HEAD: "e"}
    tying = header("t", without(HEAD), digest=same, tied={HEAD: EMBED})
    space = align([tying, header("u", digest=same)], has_base=False)
    assert actions(space)[HEAD] == "copy", "equal to the embedding of the model that ties it"


def test_heads_that_only_some_models_have_are_left_out():
    shapes = SHAPES | {"score.weight": (2, 4)}
    space = align([header("base"), header("x", shapes)], has_base=True)
    assert space.left_out == {"score.weight": "only in 'x'"}
    assert "score.weight" not in actions(space)


def test_a_head_of_the_donor_alone_is_copied():
    shapes = SHAPES | {"score.weight": (2, 4)}
    space = align([header("base", shapes), header("x")], has_base=True)
    (score,) = [t for t in space.tensors if t.spec.name == "score.weight"]
    assert (score.action, score.reason) == ("copy", "left out: only in 'base'")


def test_heads_of_different_shapes_are_left_out_and_the_donors_kept():
    one, two = SHAPES | {"classifier.weight": (2, 4)}, SHAPES | {"classifier.weight": (3, 4)}
    space = align([header("a", one), header("b", two)], has_base=False)
    assert space.left_out == {"classifier.weight": "shapes differ: [(2, 4), (3, 4)]"}
    (kept,) = [t for t in space.tensors if t.spec.name == "classifier.weight"]
    assert (kept.action, kept.spec.shape) == ("copy", (2, 4))


def test_a_shape_that_differs_names_both_models():
    headers = [header("base"), header("math", SHAPES | {EMBED: (9, 4)})]
    says = r"embed_tokens.weight is \(8, 4\) in 'base', \(9, 4\) in 'math'. Merge only fine-tunes"
    with pytest.raises(ModelSpaceError, match=says):
        align(headers, has_base=True)


def test_a_missing_tensor_names_the_model_without_it():
    with pytest.raises(ModelSpaceError, match=r"k_proj.weight is missing in 'x', 'y'\."):
        align([header("base"), *(header(id, without(K)) for id in "xy")], has_base=True)


def test_only_the_first_three_differences_are_named():
    other = {f"transformer.h.{i}.ln_1.weight": (4,) for i in range(9)}
    headers = [header("a"), header("b", other, architecture="GPT2")]
    with pytest.raises(ModelSpaceError) as caught:
        align(headers, has_base=False)
    text = str(caught.value)
    assert "(architectures: GPT2, Llama)" in text
    assert text.count("is missing in") == 3
    assert "; and 10 more." in text


def test_one_model_is_not_a_merge():
    with pytest.raises(ModelSpaceError, match="at least two models"):
        align([header("a")], has_base=False)


def test_names_must_differ():
    with pytest.raises(ModelSpaceError, match="source names repeat"):
        align([header("a"), header("a")], has_base=False)


@pytest.mark.parametrize("name", ["noise:0123456789abcdef", "ancestor:0123456789abcdef"])
def test_a_model_cannot_have_the_name_of_what_is_made(name):
    with pytest.raises(ModelSpaceError, match="cannot name a model"):
        align([header("a"), header(name)], has_base=False)


def test_equal_models_leave_nothing_to_merge():
    digests = {name: "same" for name in SHAPES}
    with pytest.raises(ModelSpaceError, match="nothing to merge: a, b hold the same weights"):
        align([header(id, digest=digests) for id in "ab"], has_base=False)


@given(st.permutations(sorted(SHAPES)), st.permutations(sorted(SHAPES)))
def test_the_order_does_not_depend_on_that_of_the_files(one, two):
    def shuffled(id, names):
        return header(id, {name: SHAPES[name] for name in names})

    space = align([shuffled("a", one), shuffled("b", two)], has_base=False)
    assert space == align([header("a"), header("b")], has_base=False)


def test_float_dtype_is_that_of_most_elements():
    headers = [header(id, dtypes={NORM: "F32"}) for id in "ab"]
    assert align(headers, has_base=False).float_dtype == "BF16"


def test_the_space_of_one_model_merges_its_float_tensors():
    ids = "model.layers.0.self_attn.ids"
    one = header("x", SHAPES | {ids: (3,)}, dtypes={ids: "I64"}, tied={HEAD: EMBED})
    space = lone(one)
    assert (space.sources, space.has_base) == (("x",), False)
    assert actions(space) == dict.fromkeys((EMBED, K, Q, NORM), "merge") | {ids: "copy"}
    assert [tensor.offset for tensor in space.merged] == [0, 32, 40, 56]
