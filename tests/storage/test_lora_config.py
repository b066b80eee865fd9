from math import sqrt
from pathlib import Path

import pytest

from evomerge.errors import SourceError
from evomerge.storage.lora_config import parse_lora_config

PATH = Path("adapter/adapter_config.json")
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}

REFUSED = {
    "other_method": ({"peft_type": "VERA"}, "expected 'LORA'"),
    "dora": ({"use_dora": True}, "use_dora is set"),
    "lora_bias": ({"lora_bias": True}, "lora_bias is set"),
    "replicated_layers": ({"layer_replication": [[0, 4]]}, "layer_replication is set"),
    "bare_parameters": ({"target_parameters": ["experts.w"]}, "target_parameters is set"),
    "activated_lora": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    "qalora": ({"use_qalora": True}, "use_qalora is set"),
    "pissa": ({"init_lora_weights": "pissa_niter_16"}, "changed the base weights"),
    "olora": ({"init_lora_weights": "olora"}, "changed the base weights"),
    "unknown_bias": ({"bias": "some"}, "expected none, all or lora_only"),
    "no_rank": ({"r": None}, "r is None"),
    "zero_rank": ({"r": 0}, "r is 0"),
    "boolean_rank": ({"r": True}, "r is True"),
    "no_alpha": ({"lora_alpha": None}, "lora_alpha is None"),
    "text_alpha": ({"lora_alpha": "8"}, "lora_alpha is '8'"),
    "infinite_alpha": ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
    "zero_rank_in_pattern": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj is 0"),
    "pattern_not_a_map": ({"rank_pattern": [1]}, "must map patterns"),
    "pattern_may_not_end": ({"alpha_pattern": {"(a+)+": 1}}, "not a simple regular expression"),
    "pattern_unbalanced": ({"alpha_pattern": {"a)(b": 1}}, "not a simple regular expression"),
    "pattern_too_long": ({"rank_pattern": {"a" * 257: 1}}, "not a simple regular expression"),
    "pattern_many_stars": ({"rank_pattern": {".*.*.*.*x": 1}}, "not a simple regular expression"),
    "modules_not_a_list": ({"modules_to_save": "head"}, "list of names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_plain_lora_is_refused(case):
    change, message = REFUSED[case]
    with pytest.raises(SourceError, match=message) as error:
        parse_lora_config({**PLAIN, **change}, PATH)
    assert str(PATH) in str(error.value)


@pytest.mark.parametrize(
    ("change", "module", "rank", "scale"),
    [
        ({}, "model.layers.0.q_proj", 4, 2.0),
        ({"use_rslora": True}, "model.layers.0.q_proj", 4, 8 / sqrt(4)),
        ({"rank_pattern": {"q_proj": 16}}, "model.layers.0.q_proj", 16, 0.5),
        ({"rank_pattern": {"q_proj": 16}}, "model.layers.0.k_proj", 4, 2.0),
        ({"rank_pattern": {"proj": 16}}, "model.layers.0.q_proj", 4, 2.0),
        ({"rank_pattern": {"^layers.0.q_proj": 16}}, "model.layers.0.q_proj", 4, 2.0),
        ({"alpha_pattern": {r"layers\.[01]\.q_proj": 2}}, "model.layers.1.q_proj", 4, 0.5),
        ({"alpha_pattern": {"q_proj": 2, "layers.0.q_proj": 4}}, "layers.0.q_proj", 4, 0.5),
        (
            {"alpha_pattern": {"q_proj": 2}, "rank_pattern": {"q_proj": 16}, "use_rslora": True},
            "q_proj",
            16,
            0.5,
        ),
    ],
)
def test_the_scale_follows_ranks_alphas_and_patterns(change, module, rank, scale):
    assert parse_lora_config({**PLAIN, **change}, PATH).scale(module, rank) == scale


def test_weights_of_another_rank_are_refused():
    with pytest.raises(SourceError, match="rank of q_proj is 4 in the config and 8"):
        parse_lora_config(PLAIN, PATH).scale("q_proj", 8)


def test_saved_modules_match_whole_components():
    config = parse_lora_config({**PLAIN, "modules_to_save": ["score", "a.b"]}, PATH)
    assert config.saves("model.score")
    assert config.saves("x.a.b.c")
    assert not config.saves("model.scores")
