"""Children of from-scratch evolution: nothing is lost, and angles are those of the weights."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from evomerge.algorithms.noisy_lineage import NoisyLineage
from evomerge.core.ancestry import ancestor_name, is_ancestor
from evomerge.core.lineage_sketch import LineageSketch
from evomerge.core.linear_span import LinearSpan
from evomerge.core.noise import noise_seed
from evomerge.core.recipe import Recipe
from evomerge.seeding import generator

N = 20_000
SIGMA = 0.01
VECTORS = SIGMA * generator(0).standard_normal((2, N))


def span() -> LinearSpan:
    basis = np.stack([VECTORS[0], VECTORS[1] - VECTORS[0]])
    grams = np.einsum("ibn,jbn->bij", *2 * [basis.reshape(2, -1, 10)])
    return LinearSpan.from_block_grams(("x", "y"), N, 10, grams)


SPAN = span()


@cache
def noise(name: str) -> np.ndarray:
    return generator(noise_seed(name) or 0, "n").standard_normal(N)


def made(recipe: Recipe) -> tuple[str, ...]:
    return recipe.sources[2:]


class Weights:
    """(N,) float64 weights of recipes, ancestors included."""

    def __init__(self) -> None:
        self.known: dict[str, np.ndarray] = {}

    def __call__(self, recipe: Recipe) -> np.ndarray:
        for name, part in recipe.lineage(self.known).items():
            rows = np.stack([*VECTORS, *(self.known.get(s, noise(s)) for s in made(part))])
            at = np.repeat(part.params["weights"], np.diff(part.breaks), axis=0)
            self.known[name] = np.einsum("dk,kd->d", at, rows)
        return self.known[ancestor_name(recipe.digest())]


def evolve(n: int, seed: int = 1, **keys) -> list[Recipe]:
    """Return the last members of n children, the mates and the one to go drawn by chance."""
    lineage, rng = NoisyLineage(span=SPAN, sigma=SIGMA, **keys), generator(seed)
    members = [lineage.warm_up(rng) for _ in range(8)]
    for _ in range(n):
        a, b = (members[int(i)] for i in rng.permutation(8)[:2])
        members[int(rng.integers(8))] = child = lineage.cross(a, b, rng)
        assert lineage.member(child) is child
    return members


def angle(u: np.ndarray, v: np.ndarray) -> float:
    gap = u / np.linalg.norm(u) - v / np.linalg.norm(v)
    return 2.0 * float(np.arcsin(np.linalg.norm(gap) / 2.0))


def test_a_child_has_the_noise_of_both_parents_and_its_own():
    lineage, rng = NoisyLineage(span=SPAN, sigma=SIGMA), generator(3)
    a, b = lineage.warm_up(rng), lineage.warm_up(rng)
    child = lineage.cross(a, b, rng)
    assert made(child)[:2] == (*made(a), *made(b))
    assert len(set(made(child))) == 3
    assert (child.params["weights"][:, -1] == SIGMA).all()
    copied = Recipe.from_json(json.loads(json.dumps(child.to_json())))
    assert lineage.key(copied) == lineage.key(child)
    assert lineage.member(copied) is copied


@pytest.mark.parametrize("keys", [{"max_noise": 4}, {"max_noise": 1}, {"max_segments": 3}])
def test_a_child_of_too_much_is_one_of_its_parents(keys):
    members = evolve(60, **keys)
    most = max(keys.get("max_noise", 32), 3)
    for recipe in (*members, *(part for member in members for part in member.closure().values())):
        assert len(made(recipe)) <= most
        assert len(recipe.breaks) - 1 <= keys.get("max_segments", 256)
        assert (recipe.params["weights"][:, -1] == SIGMA).all()
    assert any(member.ancestors for member in members)


def off_plane(own: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Return how far, at most, a vector is from any mix of two others."""
    parents = np.stack([x, y]).T
    mix = np.linalg.lstsq(parents, own, rcond=None)[0]
    return float(np.abs(own - parents @ mix).max())


@pytest.mark.parametrize("split_point", [False, True])
def test_nothing_of_a_lineage_is_lost(split_point):
    """A child's weights are its parents', mixed, plus noise, in any form of recipe."""
    lineage = NoisyLineage(span=SPAN, sigma=SIGMA, max_noise=8, split_point=split_point)
    rng, weights, forms = generator(2), Weights(), set()
    # Where there is a split, its sides are mixed otherwise; it is seldom this close to an end.
    stretches = [slice(0, 50), slice(N - 50, N)] if split_point else [slice(0, N)]
    members, off = [lineage.warm_up(rng) for _ in range(6)], []
    for _ in range(120):
        a, b = (members[int(i)] for i in rng.permutation(6)[:2])
        members[int(rng.integers(6))] = child = lineage.cross(a, b, rng)
        own = weights(child) - SIGMA * noise(made(child)[-1])
        x, y = weights(a), weights(b)
        off += [off_plane(own[part], x[part], y[part]) for part in stretches]
        forms.add(tuple(map(is_ancestor, made(child))))
    assert np.mean(np.array(off) < 1e-12) > (0.97 if split_point else 0.999)
    assert (True, True, False) in forms
    assert len(forms) > 3


def test_angles_with_ancestors_are_those_of_the_weights():
    weights, sketch = Weights(), LineageSketch(SPAN)
    members = [member for member in evolve(300, max_noise=4) if member.ancestors]
    errors = []
    for a, b in pairwise(members):
        for start, stop in ((0, None), (0, N // 2), (N // 2, N)):
            wanted = angle(weights(a)[start:stop], weights(b)[start:stop])
            errors.append(sketch.angle(a, b, start, stop) / wanted - 1.0)
    assert len(errors) >= 9
    assert np.abs(errors).max() < 0.06
    assert np.sqrt(np.mean(np.square(errors))) < 0.025
    assert sketch.angle(members[0], members[0]) == pytest.approx(0.0, abs=1e-7)


def test_a_sketch_depends_on_the_recipe_alone():
    """A resumed run has sketches of other members at hand, and must breed the same children."""
    members = evolve(200, max_noise=4)
    fresh = [
        Recipe.from_json(json.loads(json.dumps(member.to_json()))) for member in members[::-1]
    ][::-1]
    one, other = LineageSketch(SPAN), LineageSketch(SPAN)
    one.angle(members[0], members[1])
    for i, j in ((0, 1), (2, 3), (4, 5), (6, 7)):
        assert one.angle(members[i], members[j]) == other.angle(fresh[i], fresh[j])


def test_whether_ancestors_are_used_changes_the_angles_alone():
    flat, short = (evolve(25, max_noise=most) for most in (10_000, 4))
    weights = Weights()
    assert not any(member.ancestors for member in flat)
    for one, other in zip(flat, short, strict=True):
        x, y = weights(one), weights(other)
        assert np.linalg.norm(x - y) < 0.03 * np.linalg.norm(x)


def test_only_members_of_the_span_are_ancestors():
    lineage = NoisyLineage(span=SPAN, sigma=SIGMA)
    foreign = Recipe("ties", ("x", "y"), {"weights": np.ones((1, 2))})
    name = ancestor_name(foreign.digest())
    recipe = Recipe(
        "linear",
        ("x", "y", name),
        {"weights": np.array([[0.0, 0.5, 0.5]])},
        settings={"normalize": False},
        ancestors={name: foreign},
    )
    assert lineage.member(recipe) is None
    assert lineage.member(foreign) is None
