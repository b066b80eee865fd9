"""Sequences of resident layers: as exported bit for bit, with the cache as without, no copies."""

import warnings

import numpy as np
import pytest
import torch
import transformers

from evomerge.config.layer_models import open_layer_models
from evomerge.config.parents import parents_of
from evomerge.config.schema import parse_config
from evomerge.config.stacks import stacked_of
from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.core.layer_sequence import recipe_of
from evomerge.errors import ConfigError, EvaluationError, ModelSpaceError
from evomerge.evaluation.subject import Subject
from evomerge.export import CardFacts, export_candidate
from evomerge.merging.derived import Derived
from evomerge.runtime.layer_worker import LayerWorker
from evomerge.runtime.worker import MergeInputs
from tests.e2e import real_project as rp
from tests.e2e.test_stacked_layers import FAMILIES
from tests.evaluation import tiny_models
from tests.evaluation.tiny_models import CAUSAL

STEPS = (("a", 0), ("b", 1), ("a", 1), ("a", 1), ("b", 3), ("b", 3), ("a", 3))
PLAIN = (1.0,) * 7
SCALES = (1.0, 0.9, 1.3, 1.3, 0.7, 0.31, 0.77)


def plan(steps=STEPS, scales=PLAIN):
    slots = (LayerSlot(*step, scale) for step, scale in zip(steps, scales, strict=True))
    return LayerPlan(tuple(slots), "a", "a")


def models_of(folder, *, names=("a", "b"), base=None, **merge):
    """Open the models of a folder as a search over their layers does."""
    body = rp.config(
        folder,
        [{"name": "t", "evaluator": {"name": "perplexity", "examples": "x"}}],
        base_model=base,
        models=[{"name": name, "model": str(folder / name)} for name in names],
        merge={"name": "layer_sequence", **merge},
    )
    return open_layer_models(parse_config(body, "test"), known=None, check=True)


def worker_of(models):
    subject = Subject.load(models.donor, auto_class=CAUSAL, untied=models.space.untied)
    inputs = MergeInputs(models.space, models.sources, Derived())
    worker = LayerWorker(inputs, [subject], {}, layers=models.layers.inputs, device="cpu")
    return worker, subject


def export(models, recipe, out):
    merge, stacked = models.layers.stacked(recipe)
    card = CardFacts(title="t", parents=parents_of(models.record), transformed=stacked_of(stacked))
    return export_candidate(
        out,
        recipe=merge,
        space=stacked.space,
        sources=stacked.sources,
        derived=None,
        donor=stacked.donor,
        card=card,
        config=stacked.config,
    )


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Folders of families, made when first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            rp.save_family(made[name], tiny_models.make(*FAMILIES[name]), experts=("a", "b"))
        return made[name]

    return folder


def logits(model, **options):
    with torch.inference_mode():
        return model(**rp.batch_for(CAUSAL), **options).logits


def generated(model, *, use_cache):
    ids = rp.batch_for(CAUSAL)["input_ids"]
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        use_cache=use_cache,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )


@pytest.mark.parametrize("scales", [PLAIN, SCALES], ids=["plain", "scaled"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2", "gpt2"])
def test_a_sequence_is_what_is_exported_and_generates_with_its_cache(
    families, tmp_path, family, scales
):
    models = models_of(families(family))
    worker, subject = worker_of(models)
    recipe = recipe_of(plan(scales=scales), ("a", "b"))
    digest = worker.install(recipe)
    result = export(models, recipe, tmp_path / "out")
    assert digest == result.weights_digest
    alone = transformers.AutoModelForCausalLM.from_pretrained(result.folder).eval()
    assert torch.equal(logits(subject.model, use_cache=False), logits(alone, use_cache=False))
    with_cache = generated(subject.model, use_cache=True)
    assert torch.equal(with_cache, generated(subject.model, use_cache=False))
    assert torch.equal(with_cache, generated(alone, use_cache=True))
    whole = logits(subject.model, use_cache=False)
    batch = rp.batch_for(CAUSAL)["input_ids"]
    with torch.inference_mode():
        first = subject.model(batch[:, :7], use_cache=True)
        cache = first.past_key_values
        rest = subject.model(batch[:, 7:], past_key_values=cache, use_cache=True).logits
    assert len(cache.layers) == len(STEPS)
    torch.testing.assert_close(rest, whole[:, 7:], rtol=2e-5, atol=2e-5)
    keys = [layer.keys for layer in cache.layers]
    assert not torch.equal(keys[2], keys[3]), "two occurrences of one layer share a cache slot"


def test_layers_keep_their_kind_of_attention(families, tmp_path):
    models = models_of(families("gemma2"))
    worker, subject = worker_of(models)
    for number, steps in enumerate([STEPS, STEPS[:3], (("a", 1), ("a", 0)) * 2]):
        recipe = recipe_of(plan(steps, PLAIN[: len(steps)]), ("a", "b"))
        worker.install(recipe)
        alone = export(models, recipe, tmp_path / str(number)).folder
        assert torch.equal(logits(subject.model).float(), rp.logits_of(alone))


def test_candidates_leave_no_trace_and_copy_no_weights(families):
    worker, subject = worker_of(models_of(families("llama")))
    start = recipe_of(plan([("a", i) for i in range(4)], PLAIN[:4]), ("a", "b"))
    before = worker.install(start)
    wanted = logits(subject.model)
    storages = {p.data_ptr() for p in subject.model.parameters()}
    for scales in (PLAIN, SCALES):
        worker.install(recipe_of(plan(scales=scales), ("a", "b")))
        layers = subject.model.model.layers
        assert layers[2] is not layers[3]
        pairs = zip(layers[2].parameters(), layers[3].parameters(), strict=True)
        assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
        logits(subject.model)
    assert worker.install(start) == before
    assert torch.equal(logits(subject.model), wanted)
    assert {p.data_ptr() for p in subject.model.parameters()} == storages


def test_the_start_model_is_itself(families):
    folder = families("llama")
    worker, subject = worker_of(models_of(folder))
    worker.install(recipe_of(plan([("a", i) for i in range(4)], PLAIN[:4]), ("a", "b")))
    assert torch.equal(logits(subject.model), rp.logits_of(folder / "a"))


def test_models_of_other_depths_and_another_base_take_part(families, tmp_path):
    folder = families("llama")
    deep = rp.llama(num_hidden_layers=6, rms_norm_eps=1e-3)
    rp.save(deep, tmp_path / "deep")
    for name in ("base", "a"):
        (tmp_path / name).symlink_to(folder / name)
    models = models_of(tmp_path, names=("a", "deep"), base=str(tmp_path / "base"))
    assert models.donor == tmp_path / "base"
    worker, subject = worker_of(models)
    steps = (("a", 0), ("deep", 5), ("deep", 5), ("a", 3))
    recipe = recipe_of(plan(steps, SCALES[:4]), ("a", "deep"))
    digest = worker.install(recipe)
    result = export(models, recipe, tmp_path / "out")
    assert digest == result.weights_digest
    assert torch.equal(logits(subject.model), rp.logits_of(result.folder))


def test_scaled_outputs_are_the_scaled_hidden_states_of_the_paper(tmp_path):
    """Without the norms' epsilon, 1 / P in the weights is W on what enters each layer."""
    settings = FAMILIES["llama"][2] | {"rms_norm_eps": 0.0}
    model = tiny_models.make("LlamaForCausalLM", "LlamaConfig", settings).double()
    rp.save(model, tmp_path / "a")
    w = (1.0, 0.8, 1.2, 1.25)
    recipe = recipe_of(plan([("a", i) for i in range(4)], 1.0 / np.cumprod(w)), ("a",))
    worker, subject = worker_of(models_of(tmp_path, names=("a",)))
    subject.model.double()
    worker.install(recipe)
    for layer, factor in zip(model.model.layers, w, strict=True):
        layer.register_forward_pre_hook(
            lambda _, inputs, factor=factor: (inputs[0] * factor, *inputs[1:])
        )
    wanted = logits(model)
    torch.testing.assert_close(logits(subject.model), wanted, rtol=0.0, atol=1e-5)  # float32 norms
    worker.install(recipe_of(plan([("a", i) for i in range(4)], PLAIN[:4]), ("a",)))
    assert (logits(subject.model) - wanted).abs().max() > 0.01


def test_what_cannot_be_stacked_or_scaled_is_refused(families, tmp_path):
    with pytest.raises(ModelSpaceError, match=r"post_feedforward_layernorm.*merge\.scaling"):
        models_of(families("gemma2"), scaling="layer")
    with pytest.raises(ConfigError, match=r"merge\.repeats is 0"):
        models_of(families("llama"), repeats=0)
    with pytest.raises(ConfigError, match=r"merge\.repeat is not a parameter of 'layer_sequence'"):
        models_of(families("llama"), repeat=2)
    (tmp_path / "a").symlink_to(families("llama") / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rp.llama(num_hidden_layers=4).bfloat16().save_pretrained(tmp_path / "b")
    with pytest.raises(ModelSpaceError, match="of different dtypes"):
        models_of(tmp_path)
    rp.save(rp.llama(hidden_size=32, num_hidden_layers=4), tmp_path / "c")
    with pytest.raises(ModelSpaceError, match="do not fit together"):
        models_of(tmp_path, names=("a", "c"))
    worker, _ = worker_of(models_of(families("llama")))
    with pytest.raises(ConfigError, match="is layer 4 of 'a', which has 4 layers"):
        worker.install(recipe_of(plan([("a", 4)], (1.0,)), ("a", "b")))


def test_a_model_without_one_list_of_layers_is_refused(families):
    models = models_of(families("llama"))
    subject = Subject.load(models.donor, auto_class=CAUSAL)
    subject.model.other = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleList([torch.nn.Linear(2, 2)])}
    )
    inputs = MergeInputs(models.space, models.sources, Derived())
    with pytest.raises(EvaluationError, match="has no single list of layers"):
        LayerWorker(inputs, [subject], {}, layers=models.layers.inputs, device="cpu")
