"""What holds for every registered delta transform, in every mode, on any tensor.

The registry says what is tried, so a new transform is in here the moment it is registered.
Formulas and properties that only some have are in the files named after them.
"""

from __future__ import annotations

import typing
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transform import DeltaInputs, delta_transforms
from evomerge.testing import check_delta_transform
from tests.merging.delta_helpers import run_of
from tests.merging.memory_source import MemorySource

NAMES = delta_transforms.names()
CLASSES = {name: delta_transforms.get(name) for name in NAMES}
every = pytest.mark.parametrize("name", NAMES)
quick = settings(max_examples=6, deadline=None)

SHAPES = ((), (1,), (7,), (1, 1), (1, 9), (9, 1), (17, 13), (4, 3, 3, 3))
NAME = "model.layers.1.mlp.up_proj.weight"
STACK = "model.layers.0.mlp.experts.down_proj"
# tanh, and ranks among columns that tie in the limit, look at the size of the task vectors.
ABSOLUTE = {"pcb", "widen"}
FEW = {"doge": {"steps": 5}}  # 400 in a run


@st.composite
def transforms(draw, name):
    """A transform with its defaults, in any of the modes that its annotations list."""
    cls, values = CLASSES[name], dict(FEW.get(name, {}))
    hints = typing.get_type_hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        if hint is bool:
            values[item.name] = draw(st.booleans())
        elif typing.get_origin(hint) is typing.Literal:
            values[item.name] = draw(st.sampled_from(typing.get_args(hint)))
    try:
        return cls(**values)
    except ConfigError:
        assume(False)


def tensors_of(shape, kinds, seed, *, name=NAME):
    """Return a tensor of E experts, near the base or equal to it."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [0.0 if kind == "zero" else 0.05 * (1 + k / 4) for k, kind in enumerate(kinds)]
    base = torch.randn(shape, generator=generator)
    deltas = tuple(size * torch.randn(shape, generator=generator) for size in sizes)
    return DeltaInputs(name, base, deltas, n_layers=3)


@st.composite
def tensors(draw, kinds=("near", "near", "zero")):
    n = draw(st.sampled_from([1, 16]) | st.integers(1, 4))
    drawn = draw(st.lists(st.sampled_from(kinds), min_size=n, max_size=n))
    return tensors_of(draw(st.sampled_from(SHAPES)), drawn, draw(st.integers(0, 2**20)))


def run(transform, part):
    """Return what a transform makes of a model of one tensor."""
    survey = transform.survey(iter([part])) if transform.needs_survey else None
    return transform.transform(part, survey)


@every
def test_the_conformance_suite_passes(name):
    check_delta_transform(
        name,
        parameters=FEW.get(name),
        n_experts=(1, 3),
        scale_equivariant=name not in ABSOLUTE,
    )


@every
@quick
@given(st.data())
def test_results_are_finite_of_their_shape_and_repeat(name, data):
    transform, part = data.draw(transforms(name)), data.draw(tensors())
    before = [delta.clone() for delta in part.deltas]
    found = run(transform, part)
    n = len(part.deltas) if transform.outputs == "experts" else 1
    assert len(found) == n + len(transform.extra_outputs)
    for delta in found:
        assert delta.dtype == torch.float32
        assert delta.shape == part.shape
        assert torch.isfinite(delta).all()
    assert all(map(torch.equal, found, run(transform, part)))
    assert all(map(torch.equal, before, part.deltas))


@every
@quick
@given(st.data())
def test_experts_equal_to_the_base_change_nothing(name, data):
    found = run(data.draw(transforms(name)), data.draw(tensors(kinds=("zero",))))
    assert not any(delta.any() for delta in found)


@pytest.mark.parametrize("name", [n for n in NAMES if not CLASSES[n].is_ordered])
@quick
@given(st.data())
def test_the_order_of_the_experts_does_not_matter(name, data):
    transform, part = data.draw(transforms(name)), data.draw(tensors())
    order = data.draw(st.permutations(range(len(part.deltas))))
    turned = replace(part, deltas=tuple(part.deltas[k] for k in order))
    found, other = run(transform, part), run(transform, turned)
    if transform.outputs == "experts":
        n = len(order)
        found = (*(found[k] for k in order), *found[n:])
    largest = max(float(delta.abs().max()) for delta in (*part.deltas, *found))
    for one, two in zip(found, other, strict=True):
        assert float((one - two).abs().max()) <= 1e-3 * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every
def test_each_expert_of_a_stack_is_transformed_by_itself(name, dtype):
    """Matrices of a 3-D tensor, of models in any dtype, through the pass over whole models."""
    built = CLASSES[name](**FEW.get(name, {}))
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(3, 6, 5, generator=generator)
    models = {"base": base.to(dtype)}
    for k in range(3):
        noise = 0.05 * (k + 1) * torch.randn(3, 6, 5, generator=generator)
        models[f"e{k}"] = (base + noise).to(dtype)

    def made(tensors, tensor_name):
        sources = {id: MemorySource(id, {tensor_name: t}) for id, t in tensors.items()}
        return run_of(built, sources).deltas(tensor_name)

    whole = made(models, STACK)
    if built.needs_survey or name == "lora_lego":
        # What counts over the model, or is drawn per tensor, is not that of a lone matrix.
        assert all(delta.shape == base.shape and torch.isfinite(delta).all() for delta in whole)
        return
    for e in range(3):
        alone = made({id: t[e].clone() for id, t in models.items()}, NAME)
        for got, want in zip(whole, alone, strict=True):
            assert torch.equal(got[e], want)
