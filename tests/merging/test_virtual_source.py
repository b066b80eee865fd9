"""Cached task vectors as models: what every merge method sees of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.errors import SourceError
from evomerge.merging.materialize import materialize
from evomerge.merging.virtual_source import virtual_sources
from evomerge.storage.derived_cache import DerivedCache

from .delta_helpers import CALLS, Halves, MemoryCache, Shares, run_of
from .memory_source import SHAPES, MemorySource, make_sources

NAME = "model.layers.0.self_attn.q_proj.weight"


def made(sources, transform=None, cache=None, **options):
    run = run_of(transform or Halves(), sources, cache, **options)
    ids = [f"t:{k}" for k in range(run.n_outputs)]
    return virtual_sources(run, ids)


def merge(recipe, sources, virtual):
    everything = {**sources, **{source.id: source for source in virtual}}
    space = align([source.header() for source in everything.values()], has_base=True)
    return dict(materialize(recipe, space, everything))


def weights(sources, row, **settings):
    return Recipe(
        "task_arithmetic",
        sources,
        {"weights": np.array([row]), "lambda_": np.array([1.0])},
        "global",
        None,
        {"normalize": False},
    )


def test_reading_is_base_plus_task_vector_in_float32():
    sources = make_sources(2, dtype=torch.bfloat16)
    for source in made(sources):
        for name in SHAPES:
            base = sources["base"].tensors[name].float()
            whole = source.read(name)
            assert whole.dtype == torch.float32
            assert torch.equal(whole, base + source.exact_delta(name))
            flat = torch.cat([source.read_range(name, i, i + 1) for i in range(whole.numel())])
            assert torch.equal(flat, whole.reshape(-1))


def test_the_header_and_digest_are_known_without_computing():
    sources = make_sources(2)
    CALLS.clear()
    one, two = made(sources)
    headers = one.header(), two.header()
    assert CALLS == []
    assert one.digest != two.digest
    assert all(headers[0].digests[name] != headers[1].digests[name] for name in SHAPES)
    assert {spec.dtype for spec in headers[0].tensors.values()} == {"F32"}
    again = made(make_sources(2))[0]
    assert (again.digest, again.header().digests) == (one.digest, headers[0].digests)


def test_the_digest_tells_parameters_and_transforms_apart():
    sources = make_sources(2)
    digests = {
        made(sources)[0].digest,
        made(sources, parameters={"scale": 0.1})[0].digest,
        made(sources, Shares())[0].digest,
        made({**sources, "e3": make_sources(3)["e3"]})[0].digest,
    }
    assert len(digests) == 4


def test_untouched_tensors_stay_the_bases_own():
    sources = make_sources(2, dtype=torch.bfloat16)
    kept = {NAME: sources["base"].tensors[NAME]}
    for source in sources.values():
        source.tensors = {**source.tensors, **kept}
    (one, _) = made(sources)
    assert one.read(NAME) is kept[NAME]
    assert one.exact_delta(NAME) is None
    assert one.header().tensors[NAME].dtype == "BF16"
    assert one.header().digests[NAME] == sources["base"].header().digests[NAME]
    space = align([s.header() for s in (sources["base"], one)], has_base=True)
    actions = {tensor.spec.name: tensor.action for tensor in space.tensors}
    assert actions[NAME] == "copy"
    assert {a for name, a in actions.items() if name != NAME} == {"merge"}


def test_an_unknown_tensor_is_refused_by_name():
    (one, _) = made(make_sources(2))
    with pytest.raises(SourceError, match=r"Did you mean 'model\.norm\.weight'"):
        one.exact_delta("model.norms.weight")


def test_merging_sums_the_cached_task_vectors():
    sources = make_sources(2, dtype=torch.bfloat16)
    virtual = made(sources)
    recipe = weights(("base", "e1", "t:0", "t:1"), [0.5, 0.0, 2.0])
    for name, tensor in merge(recipe, sources, virtual).items():
        base = sources["base"].tensors[name].float()
        delta = 0.5 * (sources["e1"].tensors[name].float() - base)
        expected = base + delta + 2.0 * virtual[1].exact_delta(name)
        torch.testing.assert_close(tensor.float(), expected, rtol=2**-7, atol=1e-6)


def test_weight_zero_gives_the_base_bit_for_bit():
    sources = make_sources(2, dtype=torch.bfloat16)
    recipe = weights(("base", "t:0", "t:1"), [0.0, 0.0])
    for name, tensor in merge(recipe, sources, made(sources)).items():
        assert torch.equal(tensor, sources["base"].tensors[name])


@pytest.mark.parametrize("operator", ["ties", "linear", "model_stock", "karcher"])
def test_other_methods_mix_virtual_and_real_sources(operator):
    sources = make_sources(2)
    virtual = made(sources)
    params = {"weights": np.full((1, 4 + (operator == "linear")), 0.25)}
    if operator == "ties":
        params["density"] = np.array([0.5])
    if operator == "model_stock":
        params = {}
    recipe = Recipe(operator, ("base", "e1", "e2", "t:0", "t:1"), params, "global", None, {})
    merged = merge(recipe, sources, virtual)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())


def test_the_cache_on_disk_gives_the_bits_of_memory(tmp_path):
    sources = make_sources(3)
    in_memory, on_disk = made(sources), made(sources, cache=DerivedCache(tmp_path))
    for one, other in zip(in_memory, on_disk, strict=True):
        for name in SHAPES:
            assert torch.equal(one.read(name), other.read(name))


def tied(sources, which):
    """Give every source a head that is stored, or for those in `which` tied to the embedding."""
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    changed = {}
    for name, source in sources.items():
        if name in which:
            changed[name] = replace(source, tied={head: embed})
        else:
            own = source.tensors[embed] + 1.0
            changed[name] = MemorySource(name, {**source.tensors, head: own})
    return changed


def test_a_head_tied_everywhere_stays_tied():
    sources = tied(make_sources(2), {"base", "e1", "e2"})
    (one, _) = made(sources)
    assert one.header().tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert torch.equal(one.read("lm_head.weight"), one.read("model.embed_tokens.weight"))


def test_an_expert_with_a_head_of_its_own_unties_the_virtual_one():
    sources = tied(make_sources(2), {"base", "e1"})
    (one, two) = made(sources)
    assert one.header().tied == {}
    head = "lm_head.weight"
    base = sources["base"].read(head)
    assert torch.equal(two.exact_delta(head), (sources["e2"].read(head) - base) / 2)
    assert torch.equal(two.read(head), base + two.exact_delta(head))


def test_reads_go_through_the_cache_once(monkeypatch):
    cache = MemoryCache()
    sources = make_sources(2)
    one, two = made(sources, cache=cache)
    CALLS.clear()
    for _ in range(3):
        one.read(NAME)
        two.read(NAME)
    assert CALLS == [NAME]
