import numpy as np
import pytest
import torch

from evomerge.core.genes import gene_fields
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, EvaluationError
from evomerge.merging.derived import derive_for
from evomerge.merging.fused import cast
from evomerge.merging.linear import Linear
from evomerge.merging.materialize import materialize
from evomerge.merging.operator import merge_operators
from tests.merging.memory_source import MemorySource, make_sources, space_of
from tests.merging.tensors import relative_error


def linear(sources, weights, *, grouping="global", breaks=None, normalize=False):
    settings = {"normalize": normalize}
    return Recipe(
        "linear", tuple(sources), {"weights": np.array(weights)}, grouping, breaks, settings
    )


def params_for(cls, experts, base=0.2):
    """Parameters of one group: `experts` as the weights, the middle of the range without default."""
    row = [base, *experts] if cls.weights_over == "sources" else list(experts)
    return {
        item.name: np.array([row])
        if item.per_source
        else np.array([(item.gene.low + item.gene.high) / 2])
        for item in gene_fields(cls)
        if item.per_source or item.default is None
    }


def flatten(merged, space):
    return torch.cat([merged[tensor.spec.name].reshape(-1) for tensor in space.merged])


def test_every_tensor_comes_in_the_order_of_the_space():
    sources = make_sources(2)
    space = space_of(sources)
    merged = list(materialize(linear(space.sources, [[0.2, 0.3, 0.5]]), space, sources))
    assert [name for name, _ in merged] == [tensor.spec.name for tensor in space.tensors]
    for (name, tensor), entry in zip(merged, space.tensors, strict=True):
        assert tuple(tensor.shape) == entry.spec.shape
        expected = sum(
            w * s.tensors[name].double()
            for w, s in zip((0.2, 0.3, 0.5), sources.values(), strict=True)
        )
        assert relative_error(tensor, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_one_hot_recipe_gives_the_source_bit_for_bit(dtype):
    sources = make_sources(3, dtype=dtype, scale=3.0)
    space = space_of(sources)
    for k, source in enumerate(sources.values()):
        weights = np.eye(4)[k : k + 1]
        merged = dict(materialize(linear(space.sources, weights), space, sources))
        for name, tensor in source.tensors.items():
            assert torch.equal(merged[name], tensor), name


def test_each_group_uses_its_own_row():
    sources = make_sources(2)
    space = space_of(sources)
    rows = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]]
    merged = dict(materialize(linear(space.sources, rows, grouping="layer"), space, sources))
    expected = {"embed": "base", "layers.0": "e1", "layers.1": "e2", "norm.w": "base"}
    for name, tensor in merged.items():
        owner = next(source for part, source in expected.items() if part in name)
        if "layers.0" in name:
            owner = "e1"
        assert torch.equal(tensor, sources[owner].tensors[name]), name


def test_copied_tensors_come_from_the_donor():
    sources = make_sources(2)
    frozen, steps = torch.ones(3), torch.arange(4)
    for k, source in enumerate(sources.values()):
        source.tensors = {
            **source.tensors,
            "model.frozen.weight": frozen,
            "model.steps": steps + k,
            "lm_head.weight": torch.full((2 + k, 2), float(k)),
        }
    space = space_of(sources)
    recipe = linear(("e1", "e2"), [[0.5, 0.5]])
    merged = dict(materialize(recipe, space, sources))
    assert torch.equal(merged["model.frozen.weight"], frozen)
    assert torch.equal(merged["model.steps"], steps)
    assert torch.equal(merged["lm_head.weight"], torch.zeros(2, 2))
    wide = dict(materialize(recipe, space, sources, out_dtype=torch.bfloat16))
    assert wide["model.steps"].dtype == torch.int64
    assert wide["model.frozen.weight"].dtype == torch.bfloat16
    assert wide["model.norm.weight"].dtype == torch.bfloat16


def test_segments_cut_tensors_at_any_element():
    sources = make_sources(2)
    space = space_of(sources)
    n = space.n_elements
    breaks = np.array([0, 3, 44, 50, 51, n - 5, n])
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 3))
    recipe = linear(space.sources, weights, grouping="segments", breaks=breaks)
    merged = flatten(dict(materialize(recipe, space, sources)), space)
    vectors = np.stack(
        [flatten(source.tensors, space).double().numpy() for source in sources.values()]
    )
    expected = np.einsum("nk,kn->n", np.repeat(weights, np.diff(breaks), axis=0), vectors)
    assert relative_error(merged, expected) < 1e-6


def test_segments_with_equal_rows_equal_the_global_recipe_bit_for_bit():
    sources = make_sources(2, dtype=torch.bfloat16)
    space = space_of(sources)
    n = space.n_elements
    row = [0.3, 0.31, 0.45]
    whole = dict(materialize(linear(space.sources, [row]), space, sources))
    breaks = np.array([0, 1, 7, 45, 100, n])
    recipe = linear(space.sources, [row] * 5, grouping="segments", breaks=breaks)
    for name, tensor in materialize(recipe, space, sources):
        assert torch.equal(tensor, whole[name]), name


def test_task_arithmetic_in_segments_uses_slices_of_exact_deltas():
    sources = make_sources(1, shapes={"a.weight": (4, 5)})
    delta = torch.randn(4, 5, generator=torch.Generator().manual_seed(9))
    sources["e1"].deltas = {"a.weight": delta}
    space = space_of(sources)
    params = {"weights": np.array([[1.0], [2.0]])}
    recipe = Recipe("task_arithmetic", space.sources, params, "segments", np.array([0, 7, 20]))
    merged = dict(materialize(recipe, space, sources))["a.weight"].reshape(-1)
    base, flat = sources["base"].tensors["a.weight"].reshape(-1), delta.reshape(-1)
    expected = base + flat * torch.tensor([1.0] * 7 + [2.0] * 13)
    assert relative_error(merged, expected) < 1e-6


@pytest.mark.parametrize("name", merge_operators.names())
@pytest.mark.parametrize("order", [("base", "e2", "e3"), ("base", "e3", "e2"), ("e3", "e1")])
def test_a_subset_or_permutation_gives_what_a_space_of_just_those_gives(name, order):
    sources = make_sources(3)
    cls = merge_operators.get(name)
    if cls.needs_base and order[0] != "base":
        pytest.skip("needs the base")
    if cls.n_models == 1:
        pytest.skip("takes one expert")
    params = params_for(cls, (0.3, 0.8))
    if order[0] != "base" and cls.weights_over == "sources":
        params["weights"] = params["weights"][:, 1:]
    recipe = Recipe(name, order, params)
    whole = space_of(sources)
    few = {source: sources[source] for source in order}
    small = space_of(few, has_base=order[0] == "base")
    got = dict(materialize(recipe, whole, sources, derive_for(cls, whole, sources)))
    expected = dict(materialize(recipe, small, few))
    for key, tensor in expected.items():
        assert relative_error(got[key], tensor) < 1e-6, key


@pytest.mark.parametrize(
    "name", [n for n in merge_operators.names() if merge_operators.get(n).n_models is None]
)
def test_the_order_of_the_experts_does_not_matter(name):
    sources = make_sources(3)
    space = space_of(sources)
    cls = merge_operators.get(name)
    weights = [0.1, 0.5, 0.3]
    one = Recipe(name, space.sources, params_for(cls, weights))
    other = Recipe(name, ("base", "e3", "e2", "e1"), params_for(cls, weights[::-1]))
    turned = dict(materialize(other, space, sources))
    for key, tensor in materialize(one, space, sources):
        assert relative_error(turned[key], tensor) < 1e-6, key


def test_a_prepared_merge_without_grams_or_thresholds_says_so():
    sources = make_sources(2)
    space = space_of(sources)
    empty = derive_for(Linear, space, sources)
    with pytest.raises(ConfigError, match="no Gram matrix was prepared"):
        list(materialize(Recipe("slerp", space.sources, {}), space, sources, empty))
    ties = Recipe("ties", space.sources, {"weights": np.ones((1, 2))})
    with pytest.raises(ConfigError, match="without global thresholds"):
        list(materialize(ties, space, sources, empty))


def test_only_named_tensors_are_read():
    sources = make_sources(2)
    space = space_of(sources)
    recipe = linear(space.sources, [[0.2, 0.3, 0.5]])
    merged = dict(materialize(recipe, space, sources, names={"model.norm.weight"}))
    assert list(merged) == ["model.norm.weight"]
    assert all(set(source.reads) == {"model.norm.weight"} for source in sources.values())
    with pytest.raises(ConfigError, match=r"'model.nrm.weight' is not .* 'model.norm.weight'"):
        materialize(recipe, space, sources, names=["model.nrm.weight"])


def test_a_wrong_recipe_fails_before_anything_is_read():
    sources = make_sources(2)
    space = space_of(sources)
    with pytest.raises(ConfigError, match="recipe: "):
        materialize(linear(space.sources, [[0.5, 0.5]]), space, sources)
    assert not any(source.reads for source in sources.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_named(bad):
    sources = make_sources(2)
    name = "model.layers.1.self_attn.q_proj.weight"
    broken = sources["e2"].tensors[name].clone()
    broken[0, 0] = bad
    sources["e2"].tensors = {**sources["e2"].tensors, name: broken}
    space = space_of(sources)
    with pytest.raises(EvaluationError, match=r"q_proj.weight: 1 of 20 merged elements are NaN"):
        list(materialize(linear(space.sources, [[0.2, 0.3, 0.5]]), space, sources))


def test_overflow_of_fp16_is_clamped_to_its_range():
    sources = make_sources(1, dtype=torch.float16)
    name = "model.norm.weight"
    sources["e1"].tensors = {**sources["e1"].tensors, name: torch.full((3,), 6e4).half()}
    space = space_of(sources)
    merged = dict(materialize(linear(space.sources, [[0.0, 2.0]]), space, sources))
    assert merged[name].tolist() == [65504.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_taken_over_as_it_is_stays_finite_in_fp16(dtype):
    """A tensor that is the same everywhere, and a lone source: bfloat16 has no 65504 of its own."""
    sources = make_sources(1, dtype=dtype)
    large = torch.tensor([1e5, -7e4, 3.0], dtype=dtype)
    for source in sources.values():
        source.tensors = {**source.tensors, "model.frozen.weight": large}
    sources["e1"].tensors = {**sources["e1"].tensors, "model.norm.weight": large}
    space = space_of(sources)
    recipe = linear(space.sources, [[0.0, 1.0]])
    place = torch.empty(3, dtype=torch.float16)
    for into in ({}, {"model.norm.weight": place}):
        merged = dict(materialize(recipe, space, sources, out_dtype=torch.float16, into=into))
        for name in ("model.frozen.weight", "model.norm.weight"):
            assert merged[name].tolist() == [65504.0, -65504.0, 3.0]


def test_a_cast_to_fp16_keeps_what_is_not_finite():
    values = torch.tensor([float("inf"), -float("inf"), 1e5, float("nan")])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = cast(values.to(dtype), torch.float16)
        assert found[:3].tolist() == [float("inf"), -float("inf"), 65504.0]
        assert found[3].isnan()
    eight = values.to(torch.float8_e5m2)
    assert torch.equal(cast(eight, torch.float16)[:3], eight.half()[:3])


def test_a_tied_head_is_read_from_the_tensor_it_shares():
    sources = make_sources(1)
    embed = "model.embed_tokens.weight"
    own = torch.randn(11, 4, generator=torch.Generator().manual_seed(5))
    sources["base"].tied = {"lm_head.weight": embed}
    sources["e1"].tensors = {**sources["e1"].tensors, "lm_head.weight": own}
    space = space_of(sources)
    assert space.untied
    merged = dict(materialize(linear(space.sources, [[0.5, 0.5]]), space, sources))
    expected = 0.5 * (sources["base"].tensors[embed].double() + own.double())
    assert relative_error(merged["lm_head.weight"], expected) < 1e-6


def test_mixed_dtypes_are_accumulated_in_float32_and_stored_in_the_donors():
    sources = make_sources(2, dtype=torch.bfloat16)
    wide = make_sources(2)["e2"]
    sources["e2"] = MemorySource("e2", wide.tensors)
    space = space_of(sources)
    merged = dict(materialize(linear(space.sources, [[0.0, 0.5, 0.5]]), space, sources))
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        exact = 0.5 * (sources["e1"].tensors[name].float() + wide.tensors[name])
        assert torch.equal(tensor, exact.to(torch.bfloat16))


@pytest.mark.parametrize("name", merge_operators.names())
def test_the_number_of_threads_changes_no_bit(name):
    cls = merge_operators.get(name)
    n = min(cls.n_models or 2, 2)
    sources = make_sources(n, shapes={"a.weight": (300, 257), "b.weight": (70_003,)})
    space = space_of(sources)
    params = params_for(cls, np.linspace(0.3, 0.7, n))
    settings = {"compat": "mergekit"} if name.startswith(("ties", "dare")) else {}
    recipe = Recipe(name, space.sources, params, settings=settings)
    before = torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            found.append(dict(materialize(recipe, space, sources)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(other[key], tensor) for key, tensor in found[0].items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", merge_operators.names())
def test_cuda_gives_the_cpu_result_to_one_rounding(name):
    cls = merge_operators.get(name)
    n = min(cls.n_models or 2, 2)
    sources = make_sources(n, dtype=torch.bfloat16)
    space = space_of(sources)
    params = params_for(cls, np.linspace(0.3, 0.7, n))
    recipe = Recipe(name, space.sources, params)
    on_cuda = dict(materialize(recipe, space, sources, device="cuda"))
    for key, tensor in materialize(recipe, space, sources):
        ulp = 2.0**-7 * tensor.double().abs()
        assert ((on_cuda[key].cpu().double() - tensor.double()).abs() <= ulp).all(), key
