"""Rows of the specification's §6 that hold for whole families of methods.

`test_properties` has them for linear merging, task arithmetic, SLERP, TIES and DARE,
`test_elementwise_properties` for the other element-wise methods.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from evomerge.core.recipe import Recipe
from evomerge.merging.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from evomerge.merging.consensus import Consensus
from evomerge.merging.dare import DareLinear, DareTies
from evomerge.merging.della import Della, DellaLinear
from evomerge.merging.karcher import Karcher
from evomerge.merging.linear import Linear
from evomerge.merging.localize_and_stitch import LocalizeAndStitch
from evomerge.merging.magmax import MagMax
from evomerge.merging.materialize import materialize
from evomerge.merging.model_stock import ModelStock
from evomerge.merging.nearswap import NearSwap
from evomerge.merging.nlerp import Nlerp
from evomerge.merging.norm_share import NormShare
from evomerge.merging.nuslerp import NuSlerp
from evomerge.merging.ram import Ram, RamPlus
from evomerge.merging.sce import Sce
from evomerge.merging.slerp import Slerp
from evomerge.merging.task_arithmetic import TaskArithmetic
from evomerge.merging.ties import Ties
from tests.merging.memory_source import make_sources, space_of
from tests.merging.oracle_samples import Sample
from tests.merging.tensors import inputs_of, random_tensors
from tests.merging.test_properties import (
    POSITIVE,
    cases,
    error_of,
    fast,
    scaled,
    sort_threshold,
    weights_for,
)

SINGLE = st.just(torch.float32)
VOTING = (Ties, DareTies, Della, BreadcrumbsTies)


def with_threshold(inputs):
    return dataclasses.replace(inputs, global_threshold=sort_threshold(inputs))


@fast
@given(cases(min_experts=2))
def test_no_multiplier_gives_the_base_bit_for_bit(inputs):
    for filter_wise in (False, True):
        operator = ModelStock(multiplier=0.0, filter_wise=filter_wise)
        assert torch.equal(operator.merge(inputs), inputs.base), operator


@fast
@given(cases(min_experts=2, dtypes=SINGLE), st.data())
def test_equal_parents_give_themselves(inputs, data):
    n, theta = len(inputs.experts), inputs.experts[0]
    same = with_threshold(inputs_of(inputs.base, [theta.clone() for _ in range(n)]))
    weights = data.draw(weights_for(POSITIVE, n))
    shares = (1.0 / n,) * n
    operators = [
        NormShare(weights=weights),
        NormShare(weights=weights, q=-0.5),
        *(cls(weights=shares, density=1.0) for cls in (DareLinear, DellaLinear, Breadcrumbs)),
        *(cls(weights=weights, density=1.0, divisor="weights") for cls in VOTING),
        LocalizeAndStitch(weights=(1.0,) * n, density=1.0),
        Consensus(weights=shares, mask_threshold=0.0),
        Sce(select=1.0),
        MagMax(lambda_=1.0),
        Ram(epsilon=0.0),
        RamPlus(epsilon=0.0),
        ModelStock(),
        ModelStock(filter_wise=True),
    ]
    for operator in operators:
        assert error_of(operator.merge(same), theta, same) < 2e-6, operator
    pair = inputs_of(inputs.base, [theta.clone(), theta.clone()])
    for operator in (
        *(Slerp(t=0.3, space=space) for space in ("raw", "delta")),
        NuSlerp(weights=weights[:2]),
        NuSlerp(weights=weights[:2], flatten=False),
    ):
        assert error_of(operator.merge(pair), theta, pair) < 2e-6, operator


@fast
@given(cases(dtypes=SINGLE))
def test_equal_parents_do_not_give_themselves_without_normalising(inputs):
    """Task arithmetic gives E task vectors."""
    n, theta = len(inputs.experts), inputs.experts[0]
    same = inputs_of(inputs.base, [theta.clone() for _ in range(n)])
    whole = inputs.base.double() + n * inputs.deltas[0].double()
    merged = TaskArithmetic(weights=(1.0,) * n).merge(same)
    assert error_of(merged, whole, same) < 4e-6


@fast
@given(cases(dtypes=SINGLE), st.integers(2, 16), st.floats(0.05, 0.95))
def test_a_selection_by_variance_leaves_the_base_where_all_parents_are_equal(inputs, n, select):
    same = inputs_of(inputs.base, [inputs.experts[0].clone() for _ in range(n)])
    operator = Sce(select=select, vectors="include")
    assert torch.equal(operator.merge(same), inputs.base)


def spherical(t):
    """Methods for two experts with an angle between them."""
    return (
        Slerp(t=t, space="delta"),
        NuSlerp(weights=(1.0 - t, t)),
        NuSlerp(weights=(1.0 - t, t), flatten=False),
        Nlerp(weights=(1.0 - t, t)),
        Karcher(weights=(1.0 - t, t), max_iter=500),
        ModelStock(),
        ModelStock(filter_wise=True),
        NormShare(weights=(1.0 - t, t)),
    )


def are_apart(inputs):
    """Whether the two task vectors, and each pair of their rows, have a well-defined angle."""
    a, b = (d.double().reshape(d.shape[0] if d.dim() > 1 else 1, -1) for d in inputs.deltas)
    lengths = a.norm(dim=1) * b.norm(dim=1)
    return bool(((a * b).sum(1) > -0.9 * lengths).all())


@fast
@given(
    cases(min_experts=2, max_experts=2, dtypes=SINGLE),
    st.floats(0.05, 0.95),
    st.sampled_from([-1.0, 0.25, 64.0]),
)
def test_methods_on_task_vectors_scale_and_turn_with_them(inputs, t, factor):
    assume(are_apart(inputs))
    near, far = scaled(inputs, factor)
    for operator in (*spherical(t), NearSwap()):
        gap = error_of(operator.merge(far), factor * operator.merge(near).double(), far)
        assert gap < 4e-6, operator


@fast
@given(cases(min_experts=2, dtypes=SINGLE), st.data())
def test_votes_are_odd_where_no_sum_is_zero(inputs, data):
    """Elements of which nothing is kept are 0 either way, and random ones do not cancel."""
    near, far = scaled(inputs, -1.0)
    weights = data.draw(weights_for(POSITIVE, len(inputs.experts)))
    operators = [cls(weights=weights, compat=c) for cls in VOTING for c in ("paper", "mergekit")]
    for operator in (*operators, Sce(select=0.6), Sce(select=1.0)):
        gap = error_of(operator.merge(far), -operator.merge(near).double(), far)
        assert gap < 2e-6, operator


def test_a_tied_vote_elects_plus():
    """fusion_bench asks the majority over the whole model instead; both signs here."""
    a = torch.tensor([[2.0, -3.0]])
    for sign in ("weighted", "unweighted"):
        for cls in VOTING:
            operator = cls(weights=(1.0, 1.0), density=1.0, sign=sign, divisor="mean")
            for experts in ([a, -a], [-a, a]):
                merged = operator.merge(inputs_of(torch.zeros(1, 2), experts))
                assert merged.tolist() == [[2.0, 3.0]], operator


@fast
@given(st.integers(1, 16), st.integers(0, 2**20), st.sampled_from([(48,), (6, 8), (2, 3, 8)]))
def test_disjoint_supports_add_up(n, seed, shape):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(n, shape, generator=generator)
    change = torch.randn(shape, generator=generator)
    experts = [change * (owner == k) for k in range(n)]
    inputs = with_threshold(inputs_of(torch.zeros(shape), experts))
    ones = (1.0,) * n
    for operator in (
        TaskArithmetic(weights=ones),
        *(Ties(weights=ones, density=1.0, vectors="include", divisor=d) for d in ("mean", "none")),
        Ties(weights=ones, density=1.0, compat="mergekit"),
        *(cls(weights=ones, density=1.0, vectors="include") for cls in (DareTies, Della)),
        BreadcrumbsTies(weights=ones, density=1.0, vectors="include"),
        LocalizeAndStitch(weights=ones, density=1.0, vectors="include"),
        Sce(select=1.0, vectors="include"),
        MagMax(lambda_=1.0),
        Ram(epsilon=0.0),
        RamPlus(epsilon=0.0),
    ):
        assert error_of(operator.merge(inputs), change, inputs) < 1e-6, operator


@fast
@given(cases(min_experts=2, dtypes=SINGLE), st.data(), st.sampled_from([0.25, 4.0]))
def test_a_common_factor_of_normalised_weights_does_not_count(inputs, data, factor):
    """A power of two, so that the votes have the same bits."""
    n = len(inputs.experts)
    weights = data.draw(weights_for(POSITIVE, n))
    voting = [
        cls(weights=weights, divisor=divisor, sign="weighted")
        for cls in VOTING
        for divisor in ("weights", "signed_weights")
    ]
    for one in (
        *voting,
        NormShare(weights=weights),
        Nlerp(weights=weights),
        Karcher(weights=weights),
        TaskArithmetic(weights=weights, normalize=True),
        DareLinear(weights=weights, normalize=True),
        *([NuSlerp(weights=weights)] if n == 2 else []),
    ):
        two = dataclasses.replace(one, weights=tuple(factor * w for w in weights))
        assert torch.equal(one.merge(inputs), two.merge(inputs)), one
    linear = Linear(weights=(0.25, *weights))
    more = Linear(weights=tuple(factor * w for w in linear.weights))
    assert torch.equal(linear.merge(inputs), more.merge(inputs))


@fast
@given(st.integers(1, 200), st.integers(0, 2**20), st.floats(0.0, 1.0), st.floats(0.0, 0.2))
def test_trimming_keeps_just_the_density_of_elements_that_differ(n, seed, density, gamma):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    delta = ((order + 1.0) * (1 - 2 * (order % 2))).reshape(1, n)
    inputs = inputs_of(torch.zeros(1, n), [delta])
    wanted = max(int(density * n), 1)
    for operator in (
        Ties(weights=(1.0,), density=density, threshold="tensor"),
        LocalizeAndStitch(weights=(1.0,), density=density, threshold="tensor"),
        Breadcrumbs(weights=(1.0,), density=density, gamma=0.0),
        BreadcrumbsTies(weights=(1.0,), density=density, gamma=gamma),
    ):
        merged = operator.merge(inputs)
        assert int((merged != 0.0).sum()) == wanted, operator
        assert torch.equal(merged[merged != 0.0], delta[merged != 0.0])
    band = merged.abs().reshape(-1)
    n_top = min(int(gamma * n), n - wanted)
    assert float(band.max()) == n - n_top


@pytest.mark.parametrize("density", [0.01, 0.2, 0.7])
@pytest.mark.parametrize("name", ["ties", "localize_and_stitch"])
def test_global_trimming_keeps_the_density_of_the_whole_model(name, density):
    sources = make_sources(1)
    # Changes from zero, so that the kept ones are told apart whatever their size.
    sources["base"].tensors = {k: t * 0.0 for k, t in sources["base"].tensors.items()}
    space = space_of(sources)
    params = {"weights": np.ones((1, 1)), "density": np.array([density]), "lambda_": np.ones(1)}
    recipe = Recipe(name, space.sources, params, settings={"vectors": "include"})
    merged = dict(materialize(recipe, space, sources))
    kept = {k: int((t != 0.0).sum()) for k, t in merged.items()}
    assert sum(kept.values()) == int(density * space.n_elements)
    largest = max(float(t.abs().max()) for k, t in sources["e1"].tensors.items())
    assert max(float(t.abs().max()) for t in merged.values()) == largest


@pytest.mark.parametrize("cls", [DareLinear, DellaLinear])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_random_dropping_keeps_the_density_to_five_standard_errors(cls, density):
    base, (expert,) = random_tensors((300, 200), 1)
    inputs = inputs_of(torch.zeros_like(base), [expert - base])
    kept = (cls(weights=(1.0,), density=density).merge(inputs) != 0.0).double()
    assert abs(float(kept.mean()) - density) < 5 * (density * (1 - density) / kept.numel()) ** 0.5


@pytest.mark.parametrize("cls", [DareLinear, DareTies, DellaLinear, Della])
def test_a_density_that_is_zero_in_float32_keeps_nothing(cls):
    base, experts = random_tensors((5, 4), 2)
    merged = cls(weights=(1.0, 0.5), density=1e-60).merge(inputs_of(base, experts))
    assert torch.equal(merged, base)


@fast
@given(cases(dtypes=SINGLE), st.data(), st.integers(0, 100).map(lambda x: x / 100))
def test_methods_meet_where_their_definitions_do(inputs, data, density):
    n = len(inputs.experts)
    weights = data.draw(weights_for(POSITIVE, n))
    fixed = {"weights": weights, "density": density, "vectors": "include"}
    ones = {"weights": (1.0,) * n, "density": 1.0}
    for one, other in (
        # A band without a top is a magnitude trim; probabilities without a spread are DARE's.
        (
            BreadcrumbsTies(**fixed, gamma=0.0, divisor="mean"),
            Ties(**fixed, threshold="tensor", divisor="mean"),
        ),
        (DellaLinear(**fixed, epsilon=0.0), DareLinear(**fixed)),
        (Della(**fixed, epsilon=0.0, divisor="none"), DareTies(**fixed)),
        (
            DareTies(weights=weights, density=1.0),
            Ties(weights=weights, density=1.0, divisor="none"),
        ),
        (LocalizeAndStitch(**ones, vectors="include"), Ram(epsilon=0.0)),
        (RamPlus(r=0.0), Ram()),
        (NormShare(weights=weights, q=0.0), TaskArithmetic(weights=weights, normalize=True)),
        (
            Sce(select=1.0, q=0.0, vectors="include"),
            Ties(**ones, vectors="include", divisor="mean"),
        ),
    ):
        gap = error_of(one.merge(inputs), other.merge(inputs).double(), inputs)
        assert gap < 2e-6 / max(density, 0.05), (one, other)


@fast
@given(cases(min_experts=2, max_experts=2, dtypes=SINGLE), st.floats(0.0, 1.0))
def test_spherical_methods_mirror_when_the_experts_are_exchanged(inputs, t):
    assume(are_apart(inputs))
    turned = inputs_of(inputs.base, inputs.experts[::-1], keys=inputs.source_keys[::-1])
    for one, other in zip(spherical(t), spherical(1.0 - t), strict=True):
        assert error_of(one.merge(inputs), other.merge(turned), inputs) < 4e-6, one


@fast
@given(st.integers(0, 2**20), st.floats(0.0, 1.0), st.sampled_from([None, 0, -1]))
def test_arcs_between_vectors_of_one_length_keep_it(seed, t, axis):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(6, 7, generator=generator) for _ in range(2))
    along = (0, 1) if axis is None else axis
    a, b = (x / x.norm(dim=along, keepdim=True) for x in (a, b))
    assume(bool(((a * b).sum(along) > -0.95).all()))
    units = inputs_of(torch.zeros_like(a), [a, b])
    operator = NuSlerp(weights=(1.0 - t, t), flatten=axis is None, axis=axis or 0)
    lengths = operator.merge(units).norm(dim=along)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "operator",
    [
        Ties(weights=(0.7, 0.4, 0.2), density=0.3),
        Ties(weights=(0.7, 0.4, 0.2), density=0.3, sign="weighted", divisor="weights"),
        LocalizeAndStitch(weights=(0.7, 0.4, 0.2), density=0.3),
        Consensus(weights=(0.7, 0.4, 0.2)),
        MagMax(),
        Ram(),
        TaskArithmetic(weights=(0.7, 0.4, 0.2)),
        Linear(weights=(0.1, 0.7, 0.4, 0.2)),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_elements_do_not_depend_on_where_a_pass_begins(operator, dtype):
    """With the statistics given, rows of a long tensor are merged as they are in the whole."""
    sample = Sample((70_001, 2), dtype, ("near", "far", "near"), seed=7)
    inputs = dataclasses.replace(sample.inputs, global_threshold=lambda *_: 0.06)
    merged = operator.merge(inputs)
    for start, stop in ((0, 1), (1, 32_769), (32_767, 70_001), (65_535, 65_538), (7, 66_000)):
        part = dataclasses.replace(
            inputs,
            base=inputs.base[start:stop],
            experts=tuple(expert[start:stop] for expert in inputs.experts),
            gram=None,
        )
        assert torch.equal(operator.merge(part), merged[start:stop]), (start, stop)
