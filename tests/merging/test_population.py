"""P candidates together: the same bits as one after the other."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pytest
import torch

from evomerge.core.genes import Gene
from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, EvaluationError
from evomerge.merging import materialize as materialize_module
from evomerge.merging import population
from evomerge.merging.derived import derive_for
from evomerge.merging.fused import MIN_ELEMENTS, weighted_sum
from evomerge.merging.materialize import materialize
from evomerge.merging.operator import OperatorDefaults, merge_operators
from evomerge.merging.population import merge_population
from tests.merging.memory_source import MemorySource

BASE = {"normalize": False}


def models(n_experts=3, dtype=torch.bfloat16, rows=300):
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "model.embed_tokens.weight": (rows, 256),
        "model.layers.0.mlp.up_proj.weight": (64, 256),
        "model.layers.0.input_layernorm.weight": (256,),
        "model.norm.weight": (256,),
    }
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sources = {}
    for k in range(n_experts + 1):
        tensors = {}
        for name, tensor in base.items():
            moved = tensor + k * 0.02 * torch.randn(tensor.shape, generator=generator)
            # The last norm is the same everywhere, so it is copied.
            tensors[name] = (tensor if name == "model.norm.weight" else moved).to(dtype)
        name = "base" if k == 0 else f"e{k}"
        sources[name] = MemorySource(name, tensors)
    space = align([source.header() for source in sources.values()], has_base=True)
    return space, sources


def linear(rows, **changes):
    return Recipe("linear", ("base", "e1", "e2", "e3"), {"weights": rows}, settings=BASE, **changes)


def recipes(space):
    rng = np.random.default_rng(0)
    sources = ("base", "e1", "e2", "e3")
    found = [linear(rng.normal(size=(1, 4))) for _ in range(4)]
    found.append(linear(np.eye(4)[[1]]))  # one parent
    found.append(
        linear(rng.normal(size=(2, 4)), grouping="segments", breaks=[0, 70_001, space.n_elements])
    )
    found.append(
        linear(np.eye(4)[[2, 1]], grouping="segments", breaks=[0, 70_001, space.n_elements])
    )
    found.append(Recipe("task_arithmetic", sources, {"weights": rng.normal(size=(1, 3))}))
    found.append(Recipe("ties", sources, {"weights": np.ones((1, 3)), "density": [0.4]}))
    found.append(Recipe("dare_linear", sources, {"weights": np.ones((1, 3))}))
    return found


def bits(stream):
    return {name: tensor.clone() for name, tensor in stream}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_population_is_its_members(dtype, in_place):
    space, sources = models(dtype=dtype)
    many = recipes(space)
    derived = derive_for(merge_operators.get("ties"), space, sources)
    into = None
    if in_place:
        into = [
            {t.spec.name: torch.empty(t.spec.shape, dtype=dtype) for t in space.tensors}
            for _ in many
        ]
    got = {}
    for name, tensors in merge_population(many, space, sources, derived, into=into):
        assert len(tensors) == len(many)
        got[name] = [tensor.clone() for tensor in tensors]
    assert list(got) == [tensor.spec.name for tensor in space.tensors]
    for p, recipe in enumerate(many):
        for name, expected in materialize(recipe, space, sources, derived):
            assert torch.equal(got[name][p], expected), (p, name)
    if in_place:
        assert torch.equal(
            into[0]["model.embed_tokens.weight"], got["model.embed_tokens.weight"][0]
        )


def test_layer_scaled_methods_do_not_wait():
    space, sources = models()
    scaled = Recipe(
        "task_arithmetic",
        ("base", "e1", "e2", "e3"),
        {"weights": np.ones((1, 3)), "layer_scale.alpha": [0.3], "layer_scale.beta": [0.5]},
    )
    derived = derive_for(merge_operators.get("task_arithmetic"), space, sources)
    expected = bits(materialize(scaled, space, sources, derived))
    for name, (first, second) in merge_population([scaled, scaled], space, sources, derived):
        assert torch.equal(first, expected[name])
        assert torch.equal(second, expected[name])


@dataclass(frozen=True, kw_only=True)
class Doubled(OperatorDefaults):
    """Works on with what `weighted_sum` returns, in place or not."""

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    in_place: bool = False

    def merge(self, tensors):
        total = tensors.weighted_sum((0.0, *self.weights))
        return total.mul_(2.0) if self.in_place else total * 2.0


@pytest.mark.parametrize("in_place", [False, True])
def test_methods_that_work_on_with_a_sum_are_merged_apart(monkeypatch, in_place):
    space, sources = models()
    monkeypatch.setitem(merge_operators._classes, "doubled", Doubled)
    recipe = Recipe(
        "doubled",
        ("base", "e1", "e2", "e3"),
        {"weights": [[0.1, 0.2, 0.3]]},
        settings={"in_place": in_place},
    )
    derived = derive_for(Doubled, space, sources)
    expected = bits(materialize(recipe, space, sources, derived))
    for name, tensors in merge_population([recipe] * 2, space, sources, derived):
        for tensor in tensors:
            assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("rows", [300, 10])  # through the kernel, and through torch
def test_a_result_that_is_not_finite_is_an_error(rows):
    space, sources = models(rows=rows)
    huge = linear([[3e38, 3e38, 3e38, 3e38]])
    derived = derive_for(merge_operators.get("linear"), space, sources)
    with pytest.raises(EvaluationError, match=r"embed_tokens.*NaN or infinite"):
        for _ in merge_population([linear([[0.25] * 4]), huge], space, sources, derived):
            pass


def test_no_recipe_is_an_error():
    space, sources = models()
    derived = materialize_module.derive_for(merge_operators.get("linear"), space, sources)
    with pytest.raises(ConfigError, match="at least one recipe"):
        next(merge_population([], space, sources, derived))


@pytest.mark.parametrize("n", [MIN_ELEMENTS, MIN_ELEMENTS + 2100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_together_write_their_elements_and_no_others(dtype, n):
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randn(n, generator=generator).to(dtype) for _ in range(3)]
    rooms = [torch.full((n + 100,), 7.0, dtype=dtype) for _ in range(30)]
    sums, expected = [], []
    for p, room in enumerate(rooms):
        terms = [(0.1 * p - k, source) for k, source in enumerate(sources)]
        out = room[p : p + n]
        sums.append(population._Sum(terms, out, out._version))
        expected.append(torch.empty(n, dtype=dtype))
        weighted_sum(terms, expected[-1])
    assert population._together(sums)
    for p, room in enumerate(rooms):
        assert torch.equal(room[p : p + n], expected[p])
        assert (room[:p] == 7.0).all()
        assert (room[p + n :] == 7.0).all()
    sources[1][-1] = float("inf")
    assert not population._together(sums)
