"""config.json of a model whose layers were stacked anew."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from evomerge.core.layer_plan import LayerPlan
from evomerge.errors import ConfigError, SourceError, first_line

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
# Where multimodal models keep the config of their language model.
_PARTS = ("text_config", "llm_config", "language_config")
# One value per layer.
_LISTS = (
    "layer_types", "mlp_layer_types", "layers_block_type", "block_types", "indexer_types",
    "no_rope_layers", "attention_layers", "sliding_windows", "layer_rope_theta",
    "num_key_value_heads", "num_attention_heads", "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer", "num_query_heads", "num_kv_heads", "ffn_multipliers",
    "intermediate_size", "activation_sparsity_pattern", "block_configs",
)  # fmt: skip
# Indices of the layers that have something.
_INDICES = (
    "mlp_only_layers", "moe_layers", "cross_attention_layers", "full_attn_idxs",
    "attn_layer_indices", "dense_layers", "rope_scaling_layers",
)  # fmt: skip
# The number of layers at the beginning that are of another kind.
_BEGINNINGS = (
    "first_k_dense_replace", "max_window_layers", "num_dense_layers", "moe_layer_start_index",
)  # fmt: skip
# Every n-th layer is of another kind -> the list that says it too, and then rules.
_PERIODS = {
    "decoder_sparse_step": "mlp_layer_types", "moe_layer_freq": "mlp_layer_types",
    "expert_layer_period": "layers_block_type", "attn_layer_period": "layers_block_type",
    "interleave_moe_layer_step": "moe_layers", "no_rope_layer_interval": "no_rope_layers",
    "full_attention_interval": "layer_types", "sliding_window_pattern": "layer_types",
    "global_attn_every_n_layers": "layer_types", "moe_layer_interval": "mlp_layer_types",
    "cross_attention_frequency": "layer_types",
}  # fmt: skip
# Structures across layers that no other order of them has.
_UNSTACKABLE = (
    "num_kv_shared_layers", "hidden_size_per_layer_input", "num_nextn_predict_layers",
    "scale_attn_by_inverse_layer_idx",
)  # fmt: skip

Config = Mapping[str, Any]


def config_depth(config: Config) -> int | None:
    """Return the number of layers that a config.json states, None when it states none."""
    part = _layered(config)
    return None if part is None else int(part[_count_key(part)])


def stacked_config(donor: Config, plan: LayerPlan, configs: Mapping[str, Config]) -> dict[str, Any]:
    """Return the donor's config.json for the model that a layer plan makes.

    Changed are the number of layers, wherever the config of the language model states it, and
    what says something of single layers: lists with one value per layer, lists of indices, the
    number of layers at the beginning of another kind. Lists that transformers works out from the
    index of a layer are written out, so that each layer keeps its own.

    Args:
        donor: config.json of the model whose settings the result gets.
        plan: The layers.
        configs: Source id -> config.json, for all of the plan's sources.

    Raises:
        ConfigError: The config ties something to the index of a layer that the plan breaks, or
            states no number of layers.
        SourceError: transformers cannot read a config.
    """
    result = copy.deepcopy(dict(donor))
    part = _layered(result)
    parts = {source: _layered(_spelled_out(config, source)) for source, config in configs.items()}
    if part is None or any(found is None for found in parts.values()):
        raise ConfigError(
            f"config.json states no number of layers ({', '.join(_COUNTS)}); its layers cannot "
            "be stacked"
        )
    own = {source: found for source, found in parts.items() if found is not None}
    _set_lists(part, plan, own)
    _set_indices(part, plan, own)
    _set_beginnings(part, plan, own)
    _check_places(part, plan, own)
    n_before = part[_count_key(part)]
    for where in (part, result):
        for key in _COUNTS:
            if where.get(key) == n_before:
                where[key] = len(plan.layers)
    return result


def stacked_settings(
    donor: Config, plan: LayerPlan, configs: Mapping[str, Config]
) -> dict[str, Any]:
    """Return what `stacked_config` says of the layers: key of the language model's config -> value.

    The same keys for every plan over the same models, so that one plan's replace another's; the
    number of layers is under transformers' common name.
    """
    part = _layered(stacked_config(donor, plan, configs)) or {}
    keys = (*_LISTS, *_INDICES, *_BEGINNINGS, "attention_types")
    told = {key: part[key] for key in keys if part.get(key) is not None}
    return told | {"num_hidden_layers": len(plan.layers)}


def _layered(config: Config) -> dict[str, Any] | None:
    """Return the part of a config that states the number of layers of the language model."""
    for part in (*(config.get(key) for key in _PARTS), config):
        if isinstance(part, dict) and any(type(part.get(key)) is int for key in _COUNTS):
            return part
    return None


def _count_key(part: Config) -> str:
    return next(key for key in _COUNTS if type(part.get(key)) is int)


def _spelled_out(config: Config, source: str) -> dict[str, Any]:
    """Return the config with the per-layer lists that transformers derives from it."""
    from transformers import CONFIG_MAPPING

    spelled = copy.deepcopy(dict(config))
    if config.get("model_type") not in CONFIG_MAPPING:
        return spelled
    try:
        settings = {key: value for key, value in spelled.items() if key != "model_type"}
        known = CONFIG_MAPPING[config["model_type"]](**settings).to_dict()
    except Exception as error:  # a config class may raise anything
        raise SourceError(
            f"{source}: transformers cannot read its config.json: {first_line(error)}"
        ) from error
    part, other = _layered(spelled), _layered(known)
    if part is not None and other is not None:
        for key in (*_LISTS, *_INDICES):
            if part.get(key) is None and isinstance(other.get(key), list):
                part[key] = other[key]
    return spelled


def _set_lists(part: dict[str, Any], plan: LayerPlan, own: Mapping[str, Config]) -> None:
    for key in _LISTS:
        lists = {source: config.get(key) for source, config in own.items()}
        if not any(isinstance(values, list) for values in lists.values()):
            continue
        values = []
        for slot in plan.layers:
            found = lists[slot.source]
            if isinstance(found, list) and slot.layer >= len(found):
                raise ConfigError(
                    f"config.json of {slot.source!r}: {key} has {len(found)} values, none for "
                    f"layer {slot.layer}"
                )
            # A plain number (num_key_value_heads) holds for every layer.
            values.append(found[slot.layer] if isinstance(found, list) else found)
        if None in values and any(value is not None for value in values):
            source = next(source for source, found in lists.items() if found is None)
            raise ConfigError(f"config.json of {source!r} lacks {key}, which others have")
        part[key] = values
    if "attention_types" in part and "attention_layers" in part:
        part["attention_types"] = [[part["attention_layers"], 1]]  # GPT-Neo reads this one


def _set_indices(part: dict[str, Any], plan: LayerPlan, own: Mapping[str, Config]) -> None:
    for key in _INDICES:
        if any(isinstance(config.get(key), list) for config in own.values()):
            part[key] = [
                index
                for index, slot in enumerate(plan.layers)
                if slot.layer in (own[slot.source].get(key) or ())
            ]


def _set_beginnings(part: dict[str, Any], plan: LayerPlan, own: Mapping[str, Config]) -> None:
    for key in _BEGINNINGS:
        if type(part.get(key)) is not int:
            continue
        below = [slot.layer < int(own[slot.source].get(key) or 0) for slot in plan.layers]
        n_below = sum(below)
        if all(below[:n_below]):
            part[key] = max(part[key], n_below) if n_below == len(below) else n_below
            continue
        is_unused = "layer_types" in part or not part.get("use_sliding_window")
        if key == "max_window_layers" and is_unused:
            continue
        last = len(below) - 1 - below[::-1].index(True)
        raise ConfigError(
            f"config.json: {key} is {part[key]}: only the first layers may be of that kind, but "
            f"layer {last} of the stack is one of them"
        )


def _check_places(part: Config, plan: LayerPlan, own: Mapping[str, Config]) -> None:
    for key, rules in _PERIODS.items():
        period = part.get(key)
        if type(period) is not int or period < 2 or isinstance(part.get(rules), list):
            continue
        for index, slot in enumerate(plan.layers):
            if own[slot.source].get(key) != period or (index - slot.layer) % period:
                raise ConfigError(
                    f"config.json: {key} is {period}: the kind of a layer follows from its index, "
                    f"and layer {slot.layer} of {slot.source!r} would become layer {index}. "
                    f"Move layers by multiples of {period}."
                )
    moved = [slot.layer for slot in plan.layers] != list(range(int(part[_count_key(part)])))
    for key in _UNSTACKABLE:
        if moved and part.get(key):
            raise ConfigError(
                f"config.json: {key} is {part[key]!r}, which ties layers to their place in the "
                "model; its layers cannot be stacked"
            )
