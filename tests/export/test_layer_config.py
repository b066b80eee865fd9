"""config.json of stacked layers: what follows the layers, and what is refused."""

import copy

import pytest

from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.errors import ConfigError, SourceError
from evomerge.export.layer_config import config_depth, stacked_config, stacked_settings


def plan_of(*layers, source="a"):
    return LayerPlan(tuple(LayerSlot(source, layer) for layer in layers), source, source)


def stacked(config, *layers):
    before = copy.deepcopy(config)
    result = stacked_config(config, plan_of(*layers), {"a": config})
    assert config == before
    return result


def test_the_number_of_layers_is_changed_wherever_it_stands():
    config = {"num_hidden_layers": 4, "n_layers": 4, "num_layers": 9, "hidden_size": 4}
    assert stacked(config, 0, 1, 2, 2, 3) == config | {"num_hidden_layers": 5, "n_layers": 5}
    config = {
        "text_config": {"num_hidden_layers": 3},
        "num_hidden_layers": 3,
        "vision_config": {"num_hidden_layers": 3},
    }
    result = stacked(config, 0, 2)
    assert result["text_config"]["num_hidden_layers"] == result["num_hidden_layers"] == 2
    assert result["vision_config"] == {"num_hidden_layers": 3}
    assert config_depth(config) == 3
    assert config_depth({"hidden_size": 3}) is None


def test_lists_of_layers_follow_their_layers():
    config = {
        "n_layer": 3,
        "layer_types": ["full", "slide", "linear"],
        "no_rope_layers": [0, 1, 1],
        "num_key_value_heads": [1, 2, 4],
        "mlp_only_layers": [0, 2],
        "eos_token_id": [7, 8, 9],
        "attention_layers": ["global", "local", "global"],
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
    }
    result = stacked(config, 2, 0, 1, 1)
    assert result["n_layer"] == 4
    assert result["layer_types"] == ["linear", "full", "slide", "slide"]
    assert result["no_rope_layers"] == [1, 0, 1, 1]
    assert result["num_key_value_heads"] == [4, 1, 2, 2]
    assert result["mlp_only_layers"] == [0, 1]
    assert result["eos_token_id"] == [7, 8, 9]
    assert result["attention_types"] == [[["global", "global", "local", "local"], 1]]


def test_each_layer_keeps_what_its_own_config_says():
    plan = LayerPlan((LayerSlot("a", 1), LayerSlot("b", 0)), "a", "b")
    a = {"num_hidden_layers": 2, "layer_types": ["x", "y"]}
    b = {"num_hidden_layers": 1, "layer_types": ["z"]}
    assert stacked_config(a, plan, {"a": a, "b": b})["layer_types"] == ["y", "z"]
    with pytest.raises(ConfigError, match=r"config.json of 'b' lacks layer_types"):
        stacked_config(a, plan, {"a": a, "b": {"num_hidden_layers": 1}})
    with pytest.raises(ConfigError, match=r"'a': layer_types has 1 values, none for layer 1"):
        stacked({"num_hidden_layers": 2, "layer_types": ["x"]}, 1)


def test_lists_that_transformers_derives_from_the_index_are_written_out():
    config = {"model_type": "gemma2", "num_hidden_layers": 4}
    sliding, full = "sliding_attention", "full_attention"
    assert stacked(config, 1, 1, 2)["layer_types"] == [full, full, sliding]
    with pytest.raises(SourceError, match=r"a: transformers cannot read its config.json"):
        stacked(config | {"layer_types": ["sliding_attention"]}, 0)


@pytest.mark.parametrize("key", ["first_k_dense_replace", "max_window_layers"])
def test_beginnings_are_counted_anew(key):
    config = {"num_hidden_layers": 4, key: 2, "use_sliding_window": True}
    assert stacked(config, 0, 1, 1, 3)[key] == 3
    assert stacked(config, 2, 3)[key] == 0
    assert stacked(config | {key: 4}, 0, 1, 2, 2, 3)[key] == 5
    assert stacked(config | {key: 9}, 0, 1)[key] == 9
    with pytest.raises(ConfigError, match=f"{key} is 2.*layer 1 of the stack"):
        stacked(config, 3, 0)


def test_max_window_layers_is_left_alone_where_nothing_reads_it():
    config = {"num_hidden_layers": 4, "max_window_layers": 2, "use_sliding_window": False}
    assert stacked(config, 3, 0)["max_window_layers"] == 2


def test_kinds_that_follow_from_the_index_are_kept_or_refused():
    config = {"num_hidden_layers": 4, "decoder_sparse_step": 2}
    assert stacked(config, 0, 1, 2, 1)["num_hidden_layers"] == 4
    with pytest.raises(ConfigError, match=r"decoder_sparse_step is 2.*layer 2 of 'a' would become"):
        stacked(config, 0, 2)
    config = {"num_hidden_layers": 2, "num_kv_shared_layers": 1}
    assert stacked(config, 0, 1) == config
    with pytest.raises(ConfigError, match=r"num_kv_shared_layers is 1, which ties layers"):
        stacked(config, 0, 1, 1)


def test_a_config_without_a_number_of_layers_is_refused():
    with pytest.raises(ConfigError, match=r"states no number of layers"):
        stacked({"hidden_size": 3}, 0)


def test_settings_of_layers_have_the_same_keys_for_every_plan():
    config = {"n_layer": 3, "hidden_size": 4, "layer_types": ["a", "b", "a"], "moe_layers": None}
    found = [stacked_settings(config, plan_of(*own), {"a": config}) for own in ((0, 1, 2), (2, 2))]
    assert found == [
        {"layer_types": ["a", "b", "a"], "num_hidden_layers": 3},
        {"layer_types": ["a", "a"], "num_hidden_layers": 2},
    ]
