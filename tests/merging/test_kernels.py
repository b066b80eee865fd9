"""The compiled kernels against plain torch: the same bits, for every switch and dtype."""

import itertools

import numpy as np
import pytest
import torch

from evomerge.merging import kept as kept_module
from evomerge.merging import selected as selected_module
from evomerge.merging.fused import MIN_ELEMENTS, torch_weighted_sum, weighted_sum
from evomerge.merging.grams import gram_rows, torch_gram_rows
from evomerge.merging.kept import Keep, merge_kept
from evomerge.merging.operator import FiniteResults, TensorInputs
from evomerge.merging.philox import RUN, philox_uniform
from evomerge.merging.rank_codes import rank_codes
from evomerge.merging.selected import merge_selected, square_sums
from evomerge.merging.variances import variances

N = MIN_ELEMENTS + 3 * RUN + 17
F32, BF16 = torch.float32, torch.bfloat16


def models(n_experts, dtype, n=N, scale=0.05):
    generator = torch.Generator().manual_seed(n_experts)
    base = torch.randn(n, generator=generator)
    experts = [
        (base + scale * torch.randn(n, generator=generator)).to(dtype) for _ in range(n_experts)
    ]
    return base.to(dtype), tuple(experts)


def inputs(n_experts, dtype, out_dtype=None, **changes):
    base, experts = models(n_experts, dtype)
    keys = tuple(f"{(7 * k) % 5}{k}" for k in range(n_experts))
    return TensorInputs("w", base, experts, out_dtype or dtype, keys, **changes)


@pytest.mark.parametrize("n_sources", [1, 2, 5, 16])
@pytest.mark.parametrize(("dtype", "out_dtype"), [(F32, F32), (BF16, BF16), (BF16, F32)])
def test_weighted_sum_equals_torch_bit_for_bit(n_sources, dtype, out_dtype):
    _, sources = models(n_sources, dtype)
    weights = np.linspace(-0.4, 0.9, n_sources) + 0.01
    terms = list(zip(weights.tolist(), sources, strict=True))
    got, expected = torch.empty(N, dtype=out_dtype), torch.empty(N, dtype=out_dtype)
    assert weighted_sum(terms, got)
    torch_weighted_sum(terms, expected)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("n", [1, 20, 31, 500, 512, 600, 1100, 2000])
@pytest.mark.parametrize("skipped", [0, 4, 28, 32, 33])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_weighted_sum_writes_its_elements_and_no_others(dtype, skipped, n):
    _, sources = models(2, dtype, n)
    terms = list(zip((0.3, -0.6), sources, strict=True))
    room, expected = torch.full((n + 600,), 7.0, dtype=dtype), torch.empty(n, dtype=dtype)
    assert weighted_sum(terms, room[skipped : skipped + n], least=1)
    torch_weighted_sum(terms, expected)
    assert torch.equal(room[skipped : skipped + n], expected)
    assert (room[:skipped] == 7.0).all()
    assert (room[skipped + n :] == 7.0).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -3.0e38])
def test_a_result_that_is_not_finite_is_noticed(value):
    _, (a, b) = models(2, F32)
    a[N - 3] = value
    out = torch.empty(N, dtype=BF16)
    assert not weighted_sum([(2.0, a), (0.5, b)], out)
    assert out.isnan().any() or out.isinf().any()


def test_a_tensor_in_the_place_of_a_finite_one_that_is_gone_is_not_taken_for_it():
    finite = FiniteResults()
    finite.add(torch.zeros(N))
    assert not any(torch.full((N,), float("inf")) in finite for _ in range(20))


def test_rounding_to_infinity_is_noticed():
    a = torch.full((N,), 3.4e38)
    assert not weighted_sum([(1.0, a), (0.0, a)], torch.empty(N, dtype=BF16))


KEEPS = {
    "whole": lambda k: Keep(),
    "low": lambda k: Keep(low=0.03 + 0.01 * k),
    "band": lambda k: Keep(low=0.02, high=0.08 + 0.01 * k),
    "factors": lambda k: Keep(low=0.04, factor=1.0 + 0.3 * k),
    "random": lambda k: Keep(key=(k + 1) << 40 | 77, density=0.3 + 0.05 * k),
    "rescaled": lambda k: Keep(key=k + 5, density=0.4, factor=2.5),
    "nothing": lambda k: Keep(key=k + 5, density=0.0),
}


def both(tensors, keeps, weights, **how):
    """Return the merge by the compiled kernel and by torch."""
    compiled = merge_kept(tensors, keeps, weights, **how)
    assert compiled in tensors.finite
    factors = tuple(keep.factor for keep in keeps)
    numbers = kept_module.pass_numbers(
        tensors.canonical_order,
        factors,
        tuple(weights),
        how["vote"],
        how["divisor"],
        how.get("scale", 1.0),
    )
    plain = torch.empty_like(compiled)
    kept_module._torch(tensors, keeps, numbers, plain)
    return compiled, plain


@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("vote", "divisor"),
    [
        (None, "none"),
        (None, "mean"),
        ("touched", "mean"),
        ("unweighted", "mean"),
        ("weighted", "weights"),
        ("weighted", "signed_weights"),
    ],
)
def test_merge_kept_equals_torch_bit_for_bit(name, dtype, vote, divisor):
    tensors = inputs(3, dtype)
    keeps = [KEEPS[name](k) for k in range(3)]
    compiled, plain = both(tensors, keeps, (0.7, -0.2, 1.1), vote=vote, divisor=divisor, scale=0.8)
    assert torch.equal(compiled, plain)
    if name != "nothing":
        assert not torch.equal(compiled.float(), tensors.base.float())


@pytest.mark.parametrize("name", ["band", "random"])
@pytest.mark.parametrize("n", [1, 5, 255, 256, 257, 600, RUN + 1])
@pytest.mark.parametrize("skipped", [0, 4, 28, 33])
@pytest.mark.parametrize("vote", [None, "weighted"])
@pytest.mark.parametrize(
    "dtypes", [(BF16, BF16, BF16), (F32, F32, F32), (BF16, F32, BF16), (F32, BF16, F32)]
)
def test_sums_of_what_is_kept_write_their_elements_and_no_others(dtypes, vote, skipped, n, name):
    base_dtype, dtype, out_dtype = dtypes
    base, experts = models(2, F32, n)
    room = torch.full((n + 600,), 7.0, dtype=out_dtype)
    tensors = TensorInputs(
        "w",
        base.to(base_dtype),
        tuple(expert.to(dtype) for expert in experts),
        out_dtype,
        ("a", "b"),
        into=room[skipped : skipped + n],
        least_compiled=1,
    )
    keeps = [KEEPS[name](k) for k in range(2)]
    _, plain = both(tensors, keeps, (0.7, -0.2), vote=vote, divisor="none")
    assert torch.equal(room[skipped : skipped + n], plain)
    assert (room[:skipped] == 7.0).all()
    assert (room[skipped + n :] == 7.0).all()


@pytest.mark.parametrize("where", [0, 1, 300, 699])
@pytest.mark.parametrize("vote", [None, "weighted"])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("keep", [Keep(low=0.01), Keep(key=3, density=1.0)])
def test_a_sum_of_what_is_kept_that_is_not_finite_is_noticed(keep, dtype, vote, where):
    base, experts = models(2, dtype, 700)
    experts[1][where] = float("inf")
    tensors = TensorInputs("w", base, experts, dtype, ("a", "b"), least_compiled=1)
    merged = merge_kept(tensors, [keep] * 2, (1.0, 1.0), vote=vote, divisor="none")
    assert merged not in tensors.finite
    assert not merged[where].isfinite()
    assert merged.isfinite().sum() == 699


@pytest.mark.parametrize("inverts", [False, True])
@pytest.mark.parametrize("vote", [None, "unweighted"])
@pytest.mark.parametrize(("density", "spread"), [(0.5, 0.3), (2.0**-17, 1.8 * 2.0**-17)])
def test_ranked_dropping_equals_torch_bit_for_bit(inverts, vote, density, spread):
    tensors = inputs(3, BF16)
    n_row = 523
    rows = N // n_row
    keeps = []
    for k, delta in enumerate(tensors.deltas):
        codes = torch.zeros(N, dtype=torch.uint16)
        codes[: rows * n_row] = rank_codes(delta[: rows * n_row].reshape(rows, n_row)).reshape(-1)
        keeps.append(
            Keep(
                key=k,
                density=density,
                places=codes,
                last_place=n_row - 1,
                spread=spread,
                inverts=inverts,
            )
        )
    compiled, plain = both(tensors, keeps, (0.7, 0.2, 1.1), vote=vote, divisor="none")
    assert torch.equal(compiled, plain)


def test_exact_task_vectors_are_not_recomputed_from_the_experts():
    base, experts = models(3, BF16)
    deltas = tuple(
        0.01 * torch.randn(N, generator=torch.Generator().manual_seed(k)) for k in range(3)
    )
    tensors = TensorInputs("w", base, experts, BF16, ("a", "b", "c"), exact_deltas=deltas)
    keeps = [Keep(low=0.01)] * 3
    compiled, plain = both(tensors, keeps, (1.0, 1.0, 1.0), vote="unweighted", divisor="mean")
    assert torch.equal(compiled, plain)


def test_the_order_of_the_experts_changes_no_bit():
    tensors = inputs(4, BF16)
    weights, keeps = (0.1, 0.2, 0.3, 0.4), [KEEPS["random"](k) for k in range(4)]
    expected = merge_kept(tensors, keeps, weights, vote="weighted", divisor="weights")
    for order in itertools.islice(itertools.permutations(range(4)), 1, 24, 5):
        turned = TensorInputs(
            "w",
            tensors.base,
            tuple(tensors.experts[k] for k in order),
            BF16,
            tuple(tensors.source_keys[k] for k in order),
        )
        got = merge_kept(
            turned,
            [keeps[k] for k in order],
            [weights[k] for k in order],
            vote="weighted",
            divisor="weights",
        )
        assert torch.equal(got, expected)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(n_threads):
    n = 4 << 20
    base, experts = models(2, BF16, n=n)
    tensors = TensorInputs("w", base, experts, BF16, ("a", "b"))
    keeps = [Keep(key=k, density=0.5) for k in range(2)]

    def merged():
        out = torch.empty(n, dtype=BF16)
        assert weighted_sum([(0.5, base), (0.2, experts[0])], out)
        selected = merge_selected(tensors, 1e-3, (0.4, 0.6), 1.0)
        squares = torch.tensor(square_sums(tensors, 1e-3), dtype=torch.float64)
        grams = gram_rows([base, *experts], [False, True, True], 4096)
        return (
            out,
            selected,
            squares,
            grams,
            merge_kept(tensors, keeps, (1.0, 1.0), vote="unweighted", divisor="none"),
        )

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = merged()
        torch.set_num_threads(n_threads)
        assert all(map(torch.equal, merged(), expected))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n", [1, 2, 63, 777, RUN + 1])
def test_small_tensors_have_the_same_bits_where_kernels_take_them(n):
    base, experts = models(3, BF16, n=n)
    tensors = TensorInputs("w", base, experts, BF16, ("a", "b", "c"), least_compiled=1)
    keeps = [KEEPS["random"](k) for k in range(3)]
    compiled, plain = both(tensors, keeps, (0.7, 0.2, 1.1), vote="unweighted", divisor="mean")
    assert torch.equal(compiled, plain)
    terms = list(zip((0.5, 0.3, 0.1), experts, strict=True))
    got, expected = torch.empty(n, dtype=BF16), torch.empty(n, dtype=BF16)
    assert weighted_sum(terms, got, least=1)
    torch_weighted_sum(terms, expected)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("n_sources", [1, 5])
@pytest.mark.parametrize(
    ("dtype", "row"), [(F32, 4096), (BF16, 4096), (BF16, 64), (torch.float16, 512)]
)
def test_gram_rows_equal_torch_bit_for_bit(n_sources, dtype, row):
    _, sources = models(n_sources, dtype)
    subtracts = [False] + [k % 3 != 2 for k in range(1, n_sources)]
    got = gram_rows(sources, subtracts, row)
    pairs = torch_gram_rows(sources, subtracts, row)
    i, j = torch.triu_indices(n_sources, n_sources)
    assert torch.equal(got[i, j], pairs)
    assert torch.equal(got, got.transpose(0, 1))
    wide = [source.double() for source in sources]
    basis = torch.stack(
        [s - wide[0] if away else s for s, away in zip(wide, subtracts, strict=True)]
    )
    torch.testing.assert_close(got.sum(-1), basis @ basis.T, rtol=1e-12, atol=0.0)


def test_gram_rows_of_mixed_dtypes_are_those_of_float32():
    _, sources = models(3, BF16)
    mixed = [sources[0], sources[1].float(), sources[2]]
    expected = gram_rows([source.float() for source in sources], [False, True, True], 4096)
    assert torch.equal(gram_rows(mixed, [False, True, True], 4096), expected)
    wide = [source.double() for source in sources]
    assert torch.equal(gram_rows(wide, [False, True, True], 4096), expected)


def test_compiled_masks_are_those_of_the_documented_stream():
    n = MIN_ELEMENTS + 5
    base = torch.zeros(n)
    tensors = TensorInputs("w", base, (torch.ones(n),), F32, ("a",))
    got = merge_kept(tensors, [Keep(key=123, density=0.25)], (1.0,), vote=None, divisor="none")
    assert torch.equal(got, (philox_uniform(123, n) < 0.25).float())


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("select", [0.1, 0.6])
def test_selected_sums_equal_torch_bit_for_bit(dtype, select):
    tensors = inputs(3, dtype)
    threshold = tensors.variance_threshold(select, at_least=1, exact=True)
    shares = (0.5, 0.2, 0.3)
    compiled = merge_selected(tensors, threshold, shares, 0.8)
    assert compiled in tensors.finite
    plain = torch.empty_like(compiled)
    selected_module._torch(tensors, tensors.canonical_order, threshold, shares, 0.8, plain)
    assert torch.equal(compiled, plain)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_selected_squares_are_those_of_the_selected_elements(dtype):
    tensors = inputs(3, dtype)
    threshold = tensors.variance_threshold(0.3, at_least=1, exact=True)
    mask = variances([tensors.deltas[k] for k in tensors.canonical_order]) >= threshold
    assert 0.2 < float(mask.float().mean()) < 0.4
    expected = [float((delta * mask).double().square().sum()) for delta in tensors.deltas]
    assert square_sums(tensors, threshold) == pytest.approx(expected, rel=1e-13)
