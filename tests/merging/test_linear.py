import pytest
import torch

from evomerge.core.genes import gene_fields, setting_names
from evomerge.errors import ConfigError
from evomerge.merging.linear import Linear
from tests.merging.tensors import inputs_of, random_tensors, relative_error


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (2, 3, 4)])
def test_linear_matches_its_formula(normalize, shape):
    base, experts = random_tensors(shape, 3)
    weights = (0.2, 0.5, -0.1, 0.9)
    merged = Linear(weights=weights, normalize=normalize).merge(inputs_of(base, experts))
    total = sum(w * t.double() for w, t in zip(weights, [base, *experts], strict=True))
    assert relative_error(merged, total / sum(weights) if normalize else total) < 1e-6


def test_linear_works_without_a_base():
    _, experts = random_tensors((4, 4), 2)
    merged = Linear(weights=(1.0, 3.0)).merge(inputs_of(None, experts))
    expected = (experts[0].double() + 3 * experts[1].double()) / 4
    assert relative_error(merged, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [1.0, 0.7, -3.0])
def test_one_non_zero_weight_gives_that_source_bit_for_bit(dtype, weight):
    base, experts = random_tensors((9, 9), 3, dtype=dtype, scale=3.0)
    merged = Linear(weights=(0.0, 0.0, weight, 0.0)).merge(inputs_of(base, experts))
    assert torch.equal(merged, experts[1])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (0.1 + 0.2, -0.3)])
def test_weights_that_cancel_are_refused_by_name(weights):
    with pytest.raises(ConfigError, match=r"linear: the weights .*normalize: false"):
        Linear(weights=weights)
    assert Linear(weights=weights, normalize=False).coefficients() == weights


def test_a_small_but_honest_sum_is_accepted():
    assert Linear(weights=(1e-12, 1e-12)).coefficients() == (0.5, 0.5)


def test_genes_and_settings_are_declared():
    assert [item.name for item in gene_fields(Linear)] == ["weights"]
    assert gene_fields(Linear)[0].default is None
    assert setting_names(Linear) == ("normalize",)
    assert Linear.weights_over == "sources"


def test_bf16_results_are_rounded_once():
    base, experts = random_tensors((50, 50), 3, dtype=torch.bfloat16)
    inputs = inputs_of(base, experts)
    exact = sum(t.double() for t in inputs.sources) / 4
    merged = Linear(weights=(1.0,) * 4).merge(inputs)
    once = exact.to(torch.float32).to(torch.bfloat16)
    # float32 accumulation may fall on the other side of a rounding boundary now and then.
    assert (merged == once).float().mean() > 0.99
    assert relative_error(merged, exact) < 2.0**-8


def test_weights_are_not_rounded_to_the_tensors_dtype():
    """mergekit casts them: in bf16 1/3 becomes 0.33398, a mean of 0.2 % more."""
    ones = torch.full((4, 4), 2.0, dtype=torch.bfloat16)
    inputs = inputs_of(None, [ones, ones, ones], out_dtype=torch.float32)
    weight = 1.0 / 3.0
    assert relative_error(Linear(weights=(weight,) * 3, normalize=False).merge(inputs), ones) < 1e-6
    cast = float(torch.tensor(weight, dtype=torch.bfloat16))
    theirs = Linear(weights=(cast,) * 3, normalize=False).merge(inputs)
    assert relative_error(theirs, ones) > 1e-3
