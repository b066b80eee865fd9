"""Recipes that name ancestors: one digest, whole JSON, lineages of any length."""

import copy
import json
import pickle

import numpy as np
import pytest

from evomerge.core.ancestry import ancestor_name, is_ancestor, is_made, oldest_first
from evomerge.core.noise import noise_name
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError


def child(*parents: Recipe, weight: float = 0.5) -> Recipe:
    ancestors = {ancestor_name(parent.digest()): parent for parent in parents}
    row = np.full((1, 2 + len(ancestors)), weight)
    settings = {"normalize": False}
    sources = ("x", "y", *ancestors)
    return Recipe("linear", sources, {"weights": row}, settings=settings, ancestors=ancestors)


def chain(n: int) -> Recipe:
    recipe = child()
    for _ in range(n):
        recipe = child(recipe)
    return recipe


A, B = child(), child(weight=0.25)
C = child(A, B)
D = child(C, A)


def read(recipe: Recipe, **keys) -> Recipe:
    return Recipe.from_json(json.loads(json.dumps(recipe.to_json())), **keys)


def test_a_name_says_whose_model_it_is():
    name = ancestor_name(A.digest())
    assert is_ancestor(name)
    assert is_made(name)
    assert is_made(noise_name(3))
    assert not is_made("x")
    assert not is_ancestor("ancestor:../../etc")
    assert C.named == (ancestor_name(A.digest()), ancestor_name(B.digest()))


def test_the_closure_has_every_ancestor_once_the_oldest_first():
    names = {recipe.digest(): name for name, recipe in zip("abcd", (A, B, C, D), strict=True)}
    order = "".join(names[name.removeprefix("ancestor:")] for name in D.closure())
    assert sorted(order) == ["a", "b", "c"]
    assert order.endswith("c")
    assert list(D.closure(known={ancestor_name(C.digest())})) == [ancestor_name(A.digest())]
    assert list(D.lineage())[-1] == ancestor_name(D.digest())


def test_json_holds_all_ancestors_side_by_side():
    body = D.to_json()
    assert set(body["ancestors"]) == set(D.closure())
    assert not any("ancestors" in part for part in body["ancestors"].values())
    again = read(D)
    assert again.digest() == D.digest()
    assert again.to_json() == body
    assert "ancestors" not in A.to_json()
    assert D.to_json(held=set(D.closure())) == D.body()


def test_ancestors_are_no_part_of_the_digest_but_their_ids_are():
    bare = Recipe.from_json(D.body(), shallow=True)
    assert bare.digest() == D.digest()
    assert not bare.ancestors
    assert child(A).digest() != child(B).digest()


def test_what_the_reader_has_need_not_be_written():
    known = {ancestor_name(C.digest()): C, ancestor_name(A.digest()): A}
    again = Recipe.from_json(D.body(), known=known)
    assert again.ancestors[ancestor_name(C.digest())] is C
    assert set(again.closure()) == set(D.closure())


@pytest.mark.parametrize("damage", ["missing", "wrong", "cycle", "nested", "not a mapping", "key"])
def test_damaged_ancestors_are_refused(damage):
    body = D.to_json()
    oldest, other = ancestor_name(A.digest()), ancestor_name(B.digest())
    if damage == "missing":
        del body["ancestors"][oldest]
    elif damage == "wrong":
        body["ancestors"][oldest] = body["ancestors"][other]
    elif damage == "cycle":
        body["ancestors"][oldest]["sources"] = ["x", ancestor_name(C.digest())]
    elif damage == "nested":
        body["ancestors"][oldest]["ancestors"] = {}
    elif damage == "not a mapping":
        body["ancestors"] = [1]
    else:
        body["ancestors"][oldest]["sources"] = None
    with pytest.raises(ConfigError, match=r"^mine\.json: "):
        Recipe.from_json(body, where="mine.json")


def test_settings_of_an_ancestor_are_checked_before_its_digest():
    body = D.to_json()
    body["ancestors"][ancestor_name(A.digest())]["settings"] = {"normalize": float("nan")}
    with pytest.raises(ConfigError, match=r"^f: recipe: ancestors.ancestor:.*settings.normalize"):
        Recipe.from_json(body, where="f: recipe")
    body = D.to_json()
    body["ancestors"][ancestor_name(A.digest())]["params"]["weights"][0][0] = 0.75
    with pytest.raises(ConfigError, match=r"^f: recipe: what is given as .* is another recipe"):
        Recipe.from_json(body, where="f: recipe")


def test_a_bare_recipe_is_the_same_without_ancestors():
    assert D.bare().digest() == D.digest()
    assert not D.bare().ancestors
    assert A.bare() is A


def test_only_the_named_recipe_may_be_given():
    with pytest.raises(ConfigError, match="what is given as ancestor:"):
        Recipe("linear", ("x", *C.named), {}, ancestors=dict.fromkeys(C.named, A))
    lacking = Recipe("linear", ("x", *C.named), {})
    with pytest.raises(ConfigError, match="is missing"):
        lacking.to_json()


def test_a_thing_that_needs_itself_has_no_order():
    needs = {"a": "b", "b": "c", "c": "a", "d": ""}
    assert oldest_first("d", needs.__getitem__) == ["d"]
    with pytest.raises(ConfigError, match="ancestor of itself"):
        oldest_first("da", needs.__getitem__)


def test_a_lineage_may_be_long():
    recipe = chain(5000)
    assert len(recipe.closure()) == 5000
    again = read(recipe)
    assert again.digest() == recipe.digest()
    for copied in (pickle.loads(pickle.dumps(recipe)), copy.deepcopy(recipe)):
        assert copied.digest() == recipe.digest()
        assert len(copied.closure()) == 5000
    assert len(repr(recipe)) < 500
