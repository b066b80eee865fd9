"""Stacks of opened models: names, config, and the plans of a recipe.json."""

import json

import pytest
import torch
from safetensors.torch import save_file

from evomerge.config.models import open_each
from evomerge.config.schema import ModelConfig
from evomerge.config.stacks import depth, read_plans, stack_models, stack_names
from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.errors import ConfigError, ModelSpaceError

CONFIG = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tensors(n_layers=2, *, width=4, head=False):
    shapes = {EMBED: (5, width), "model.norm.weight": (width,)}
    shapes |= {HEAD: (5, width)} if head else {}
    for layer in range(n_layers):
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (width, 2 * width)
    noise = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}


@pytest.fixture
def save(tmp_path):
    def save(name, body, config=CONFIG):
        (tmp_path / name).mkdir()
        save_file(body, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return ModelConfig(model=str(tmp_path / name), name=name)

    return save


def stack(refs, plan):
    return stack_models(refs, open_each(refs), {"stack": plan}, has_base=False)


def test_the_config_says_how_many_layers_there_are(save, tmp_path):
    # The third layer is one of DeepSeek's multi-token prediction, which is not run.
    source = open_each([save("a", tensors(3))])[0]
    assert depth(source) == 2
    save_file(tensors(3), tmp_path / "bare.safetensors")
    bare = ModelConfig(model=str(tmp_path / "bare.safetensors"), name="bare")
    assert depth(open_each([bare])[0]) == 3
    models = stack([bare], LayerPlan((LayerSlot("bare", 1),) * 2, "bare", "bare"))
    assert models.config is None
    assert len(models.space.merged) == 4


def test_a_layer_beyond_the_depth_is_refused(save):
    with pytest.raises(ConfigError, match="layer 0 is layer 2 of 'a', which has 2 layers"):
        stack([save("a", tensors(3))], LayerPlan((LayerSlot("a", 2),), "a", "a"))


def test_the_donor_must_be_as_wide_as_the_layers(save):
    refs = [save("donor", tensors(width=8)), save("a", tensors())]
    with pytest.raises(ModelSpaceError, match="layers of 'donor' and 'a' do not fit together"):
        stack(refs, LayerPlan.whole("a", 2))


@pytest.mark.parametrize(
    ("donor", "model", "says", "is_untied"),
    [(True, True, None, False), (False, True, True, False), (True, False, None, True)],
)
def test_whether_the_head_is_tied_is_that_of_the_stack(donor, model, says, is_untied, save):
    refs = [
        save(name, tensors(head=not is_tied), CONFIG | {"tie_word_embeddings": is_tied})
        for name, is_tied in (("donor", donor), ("a", model))
    ]
    models = stack(refs, LayerPlan.whole("a", 2))
    assert models.space.untied is is_untied
    assert models.config["tie_word_embeddings"] is (donor if says is None else says)


def test_stacks_get_names_that_no_model_has():
    assert stack_names(["a"], 1) == ["stack"]
    assert stack_names(["a", "stack"], 2) == ["stacks-1", "stacks-2"]
    assert stack_names(["a"], 0) == []


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({}, "r.json: stacks must be a list"),
        ([{"id": "s", "plan": {}}], "r.json: stacks.0: expected id, plan and digest"),
        ([{"id": "s", "plan": {}, "digest": ""}], "r.json: stacks.0.plan: expected a mapping"),
    ],
)
def test_broken_plans_are_refused_by_place(rows, says):
    with pytest.raises(ConfigError, match=says):
        read_plans(rows, "r.json")


def test_plans_are_read_with_their_digests():
    plan = LayerPlan.whole("a", 2)
    rows = [{"id": "s", "plan": plan.to_json(), "digest": "d"}]
    assert read_plans(rows, "r.json") == {"s": (plan, "d")}
