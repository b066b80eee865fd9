"""Running a transform over a model: streaming, cached, resumable."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from evomerge.errors import EvaluationError, ModelSpaceError
from evomerge.merging.low_rank import LowRank
from evomerge.merging.transform import TransformDefaults
from evomerge.merging.transforms.tsv_m import TsvM
from evomerge.storage.derived_cache import DerivedCache

from .delta_helpers import CALLS, Halves, MemoryCache, Shares, run_of
from .memory_source import MemorySource, make_sources
from .tensors import relative_error

UP = "model.layers.1.mlp.up_proj.weight"
QKV = "model.layers.0.self_attn.qkv_proj.weight"
EMBED = "model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def calls():
    CALLS.clear()
    return CALLS


def test_task_vectors_are_those_of_the_transform():
    sources = make_sources(2)
    run = run_of(Halves(), sources)
    base, one = sources["base"].tensors, sources["e1"].tensors
    assert torch.equal(run.deltas(UP)[0], 0.5 * (one[UP] - base[UP]))
    assert torch.equal(run.deltas(EMBED)[0], (one[EMBED] - base[EMBED]) / 2)
    assert run.n_outputs == 2


def test_a_merged_transform_has_one_output_and_surveys_the_model_once(calls):
    sources = make_sources(3)
    run = run_of(Shares(), sources)
    run.fill()
    assert run.n_outputs == 1
    assert calls.count("survey") == 1
    lengths = [
        sum(
            float(((s.tensors[n] - sources["base"].tensors[n]).double() ** 2).sum())
            for n in run.touched
        )
        for s in list(sources.values())[1:]
    ]
    expected = sum(
        length / sum(lengths) * (source.tensors[UP] - sources["base"].tensors[UP]).double()
        for length, source in zip(lengths, list(sources.values())[1:], strict=True)
    )
    assert relative_error(run.deltas(UP)[0], expected) < 1e-6


def test_what_the_cache_holds_is_not_computed_again(calls, tmp_path):
    sources = make_sources(2)
    first = run_of(Shares(), sources, DerivedCache(tmp_path))
    first.fill()
    kept = {name: first.deltas(name)[0].clone() for name in first.touched}
    calls.clear()
    again = run_of(Shares(), sources, DerivedCache(tmp_path))
    again.fill()
    assert calls == []
    assert all(torch.equal(again.deltas(name)[0], kept[name]) for name in kept)


def test_an_interrupted_run_goes_on_where_it_stopped(calls, tmp_path):
    sources = make_sources(2)
    run = run_of(Shares(), sources, DerivedCache(tmp_path))
    done = list(run.touched)[:3]
    for name in done:
        run.deltas(name)
    calls.clear()
    seen = []
    again = run_of(Shares(), sources, DerivedCache(tmp_path))
    again.fill(lambda *progress: seen.append(progress))
    assert "survey" not in calls, "the survey is kept, too"
    assert set(calls) == set(again.touched) - set(done)
    assert seen[-1] == (len(again.touched), len(again.touched), list(again.touched)[-1])


def test_a_deleted_item_is_computed_again_with_the_same_bits(calls, tmp_path):
    sources = make_sources(3)
    run = run_of(TsvM(), sources, DerivedCache(tmp_path))
    run.fill()
    kept = [delta.clone() for delta in run.deltas(UP)]
    (item,) = [p for p in tmp_path.rglob("*.safetensors") if p.stem.startswith(UP)]
    item.unlink()
    again = run_of(TsvM(), sources, DerivedCache(tmp_path))
    assert all(map(torch.equal, again.deltas(UP), kept))
    assert item.exists()


def test_an_item_of_another_shape_counts_as_absent():
    sources, cache = make_sources(2), MemoryCache()
    run_of(Halves(), sources, cache).fill()
    (entry,) = cache.entries.values()
    entry.items[UP] = {"0": torch.zeros(3), "1": torch.zeros(3)}
    assert run_of(Halves(), sources, cache).deltas(UP)[0].shape == (1, 9)


def test_the_key_covers_version_parameters_models_order_and_layout():
    sources = make_sources(3)
    turned = {name: sources[name] for name in ("base", "e2", "e1", "e3")}
    fewer = {name: sources[name] for name in ("base", "e1", "e2")}
    newer = type("Halves", (Halves,), {"version": 2})
    runs = [
        run_of(Halves(), sources),
        run_of(newer(), sources),
        run_of(Halves(), sources, parameters={"scale": 0.25}),
        run_of(Halves(), turned),
        run_of(Halves(), fewer),
        run_of(Halves(), sources, config={"num_attention_heads": 2, "hidden_size": 4}),
        run_of(Halves(), make_sources(3, seed=1)),
    ]
    assert len({repr(run.parts) for run in runs}) == len(runs)


def test_tensors_that_no_expert_changes_are_left_alone():
    sources = make_sources(2)
    for source in sources.values():
        source.tensors = {**source.tensors, UP: sources["base"].tensors[UP]}
    assert UP not in run_of(Halves(), sources).touched


def test_fused_projections_are_transformed_block_by_block():
    shapes = {"model.layers.0.self_attn.qkv_proj.weight": (16, 8)}
    sources = make_sources(2, shapes=shapes)
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8}
    (name,) = shapes
    run = run_of(TsvM(), sources, config=config)
    split = {"q": slice(0, 8), "k": slice(8, 12), "v": slice(12, 16)}
    for rows in split.values():
        alone = {
            key: replace(source, tensors={"model.layers.0.x.weight": source.tensors[name][rows]})
            for key, source in sources.items()
        }
        expected = run_of(TsvM(), alone).deltas("model.layers.0.x.weight")
        for got, want in zip(run.deltas(name), expected, strict=True):
            assert torch.equal(got[rows], want)


def test_gpt2_matrices_are_transformed_outputs_first():
    name = "h.0.attn.c_attn.weight"
    sources = make_sources(2, shapes={name: (4, 12)})
    run = run_of(TsvM(), sources)
    linear = "h.0.attn.q_proj.weight"
    turned = {
        key: replace(source, tensors={linear: source.tensors[name][:, :4].T.contiguous()})
        for key, source in sources.items()
    }
    expected = run_of(TsvM(), turned).deltas(linear)
    for got, want in zip(run.deltas(name), expected, strict=True):
        assert torch.equal(got[:, :4], want.T)


def test_exact_task_vectors_of_adapters_are_used():
    sources = make_sources(1)
    exact = torch.full((1, 9), 0.125)
    sources["e1"].deltas = {UP: exact}
    assert torch.equal(run_of(Halves(), sources).deltas(UP)[0], exact / 2)


def test_sources_in_bfloat16_are_subtracted_in_float32():
    sources = make_sources(1, dtype=torch.bfloat16)
    base, one = sources["base"].tensors[UP].float(), sources["e1"].tensors[UP].float()
    assert torch.equal(run_of(Halves(), sources).deltas(UP)[0], 0.5 * (one - base))


@dataclass
class Adapted(MemorySource):
    product: LowRank | None = None

    def factors(self, name):
        known = self.product is not None and name == QKV
        return (self.product.a, self.product.b, False) if known else None


@dataclass(frozen=True)
class Recorder(TransformDefaults):
    seen: list = field(default_factory=list)

    def transform(self, tensors, survey):
        self.seen.append(tensors)
        return (tensors.deltas[0],)


def test_low_rank_factors_reach_the_transform_block_by_block():
    sources = make_sources(2, shapes={QKV: (16, 8), UP: (1, 9)})
    generator = torch.Generator().manual_seed(3)
    product = LowRank(
        torch.randn((2, 8), generator=generator), torch.randn((16, 2), generator=generator)
    )
    adapted = Adapted("e1", sources["e1"].tensors, {QKV: product.product()}, product=product)
    recorder = Recorder()
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8}
    run_of(recorder, {**sources, "e1": adapted}, config=config).fill()
    blocks = [part for part in recorder.seen if part.name == QKV]
    assert [part.shape for part in blocks] == [(8, 8), (4, 8), (4, 8)]
    for part in blocks:
        assert part.factors[1] is None
        torch.testing.assert_close(part.factors[0].product(), part.deltas[0])
    assert all(part.factors == () for part in recorder.seen if part.name == UP)


def test_survey_and_results_of_a_transform_that_needs_both_come_from_one_pass_each(calls):
    run = run_of(Shares(), make_sources(2))
    run.fill()
    run.fill()
    assert len(calls) == 1 + len(run.touched)


@dataclass(frozen=True)
class Broken(TransformDefaults):
    how: str = "nan"

    def transform(self, tensors, survey):
        delta = tensors.deltas[0].clone()
        if self.how == "nan":
            delta.fill_(float("nan"))
        if self.how == "shape":
            delta = delta.reshape(-1)[:1].reshape(1, 1, 1)
        if self.how == "dtype":
            delta = delta.double()
        return (delta, delta) if self.how == "count" else (delta,)


@pytest.mark.parametrize("how", ["nan", "shape", "dtype", "count"])
def test_a_wrong_result_names_tensor_and_transform(how):
    run = run_of(Broken(how), make_sources(2))
    with pytest.raises(EvaluationError, match=rf"^{EMBED}: transform 'broken' returned"):
        run.deltas(EMBED)


def test_experts_equal_to_the_base_are_refused():
    sources = make_sources(1)
    sources["e1"].tensors = sources["base"].tensors
    with pytest.raises(ModelSpaceError, match="nothing to merge"):
        run_of(Halves(), sources)
