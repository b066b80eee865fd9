"""Read a mergekit YAML config as a recipe of ours; write one with `write_mergekit`.

Understood: the methods `linear`, `task_arithmetic`, `slerp`, `nuslerp`, `multislerp`, `karcher`,
`model_stock`, `ties`, `dare_linear`, `dare_ties`, `della`, `della_linear`, `breadcrumbs`,
`breadcrumbs_ties`, `sce`, `nearswap`, `arcee_fusion`, `ram`, `ramplus_tl` and `passthrough`;
numbers, gradients over layers and `{filter, value}` lists for `weight`, `density`, `lambda`, `t`
and their like; slices of whole models (`mergekit_slices` reads the others). Everything else is
refused by name, so that no config silently gives another model than mergekit would.

Differs from mergekit: arithmetic in float32 with one rounding to the output dtype, whatever
`dtype` says; random masks of DARE and DELLA come from another generator; the quartiles of
`arcee_fusion` are exact where it draws a sample; tensors that are equal in all models are copied,
also where `linear` with weights that do not sum to 1 would scale them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.mergekit_fields import (
    FLAGS,
    Entries,
    Rule,
    check_keys,
    mappings,
    parse_dtype,
    parse_flag,
    parse_model,
    parse_parameters,
)
from evomerge.config.mergekit_settings import settings_of
from evomerge.config.schema import ModelConfig
from evomerge.config.yaml_file import blaming, read_yaml
from evomerge.core.grouping import assign_groups
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe, Setting
from evomerge.errors import ConfigError, nearest
from evomerge.merging.mergekit_rules import (
    Condition,
    count_layers,
    depth_of,
    evaluate,
    write_mergekit,
)
from evomerge.merging.plan import build_operators
from evomerge.merging.transform import delta_transforms

__all__ = ["MergePlan", "read_mergekit", "write_mergekit"]

_TOP_KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source",
)  # fmt: skip
_ARITHMETIC = ("normalize", "lambda", "rescale", "int8_mask")
_VOTING = ("ties", "dare_linear", "dare_ties")
# Method -> (keys of one model's `parameters`, keys of the common `parameters`).
_PARAMETERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("weight",), ("normalize", "int8_mask")),
    "task_arithmetic": (("weight", "density"), _ARITHMETIC),
    "slerp": ((), ("t", "int8_mask")),
    "nuslerp": (("weight",), ("nuslerp_flatten", "nuslerp_row_wise", "int8_mask")),
    **{name: (("weight", "density"), _ARITHMETIC) for name in _VOTING},
    **{name: (("weight", "density", "epsilon"), _ARITHMETIC) for name in ("della", "della_linear")},
    **{
        name: (("weight", "density", "gamma"), _ARITHMETIC)
        for name in ("breadcrumbs", "breadcrumbs_ties")
    },
    "sce": ((), ("select_topk", "int8_mask")),
    "nearswap": ((), ("t", "int8_mask")),
    "arcee_fusion": ((), ("int8_mask",)),
    "ram": ((), ("epsilon", "int8_mask")),
    "ramplus_tl": ((), ("r", "alpha", "epsilon", "int8_mask")),
    "multislerp": (("weight",), ("normalize_weights", "int8_mask")),
    "karcher": ((), ("max_iter", "tol", "int8_mask")),
    "model_stock": ((), ("filter_wise", "int8_mask")),
    "passthrough": (("scale",), ("int8_mask",)),
}
# Numbers beside `weight`, `density` and `lambda`: mergekit's key -> (our parameter, its default).
_NUMBERS: dict[str, dict[str, tuple[str, float | None]]] = {
    "slerp": {"t": ("t", None)},
    "passthrough": {"scale": ("scale", 1.0)},
    "della": {"epsilon": ("epsilon", 0.15)},
    "della_linear": {"epsilon": ("epsilon", 0.15)},
    "breadcrumbs": {"gamma": ("gamma", 0.01)},
    "breadcrumbs_ties": {"gamma": ("gamma", 0.01)},
    "sce": {"select_topk": ("select", 1.0)},
    "nearswap": {"t": ("t", None)},
    "ram": {"epsilon": ("epsilon", 1e-5)},
    "ramplus_tl": {"r": ("r", 0.1), "alpha": ("alpha", 0.2), "epsilon": ("epsilon", 1e-5)},
}
# Parameters that mergekit looks up for each model, under the tensor's name in that model.
_OWN = ("weights", "density", "gamma", "scale")
_PAIRS = ("slerp", "nearswap", "arcee_fusion")
_OUR_NAMES = {"multislerp": "nlerp", "ramplus_tl": "ram_plus"}
_WITHOUT_BASE = ("linear", "nuslerp", "multislerp", "karcher", "passthrough")

Row = Mapping[str, float | tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class MergePlan:
    """A mergekit config, understood but not yet laid over the tensors of real models.

    Attributes:
        path: The file, for messages.
        operator: Registered name of our merge operator.
        base_model: The base (for `slerp`: the model at t = 0), or None.
        models: The others, in file order.
        rules: Parameter of the operator -> one rule per value: a rule per weighted source for
            `weights`; for `density` a rule per expert, which must agree; else one rule.
        settings: Settings of the operator; `compat: mergekit` where it has one.
        dtype: Torch name of the output dtype; None keeps the models'.
        n_layers: Layers the file's slices claim the models have; None when it has no slices.
    """

    path: Path
    operator: str
    base_model: ModelConfig | None
    models: tuple[ModelConfig, ...]
    rules: Mapping[str, tuple[Rule, ...]]
    settings: Mapping[str, Setting]
    dtype: str | None
    n_layers: int | None = None

    def recipe(self, space: ModelSpace) -> Recipe:
        """Return the recipe over an aligned space: the coarsest grouping that says it exactly.

        Args:
            space: Base first (when there is one), then `models`, in this order.

        Raises:
            ConfigError: The models do not have the file's layers, a tensor gets no value, or
                values differ inside one layer and kind of tensor.
        """
        n_sources = len(self.models) + (self.base_model is not None)
        if len(space.sources) != n_sources:
            raise ValueError(f"{n_sources} models in the plan, {len(space.sources)} in the space")
        n_layers = count_layers(space)
        if self.n_layers is not None and self.n_layers != n_layers:
            raise ConfigError(
                f"{self.path}: slices end at layer {self.n_layers}, the models have {n_layers}; "
                "evomerge merges whole models only"
            )
        names = [tensor.spec.name for tensor in space.merged]
        return self.lay_over(space, [self.row(name, depth_of(name, n_layers)) for name in names])

    def lay_over(self, space: ModelSpace, rows: Sequence[Row]) -> Recipe:
        """Return the recipe that gives the merged tensors of a space these rows; see `recipe`."""
        names = [tensor.spec.name for tensor in space.merged]
        for grouping in ("global", "layer", "kind", "module"):
            _, groups = assign_groups(grouping, names)
            firsts = {group: index for index, group in reversed(list(enumerate(groups)))}
            odd = next((i for i, g in enumerate(groups) if rows[i] != rows[firsts[g]]), None)
            if odd is None:
                break
        else:
            raise ConfigError(
                f"{self.path}: {names[odd or 0]} and {names[firsts[groups[odd or 0]]]} get "
                "different parameters; evomerge cannot tell two tensors of one layer and kind apart"
            )
        order = [rows[firsts[group]] for group in sorted(firsts)]
        params = {
            key: np.array([row[key] for row in order], dtype=np.float64) for key in self.rules
        }
        recipe = Recipe(self.operator, space.sources, params, grouping, None, self.settings)
        try:
            build_operators(recipe, space)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from None
        return recipe

    def row(self, name: str, t: float, own_names: Sequence[str] = ()) -> Row:
        """Return the operator's parameters for one tensor.

        Args:
            name: Its name in the merged model.
            t: Where it sits, from `depth_of`.
            own_names: Its name in each model, base first; () when it is `name` in all.
        """
        row: dict[str, float | tuple[float, ...]] = {}
        for key, rules in self.rules.items():
            is_own = key in _OWN or (key == "epsilon" and self.operator.startswith("della"))
            names = own_names[-len(rules) :] if own_names and is_own else (name,) * len(rules)
            found = [evaluate(rule, own, t) for rule, own in zip(rules, names, strict=True)]
            if None in found:
                model = [self.base_model, *self.models][found.index(None) - len(found)]
                of = f" of {model.model}" if key == "weights" and model is not None else ""
                raise ConfigError(f"{self.path}: no `{_spoken(key)}`{of} is given for {name}")
            values = tuple(float(value) for value in found if value is not None)
            if key == "weights":
                row[key] = values
                continue
            if len(set(values)) > 1:
                raise ConfigError(
                    f"{self.path}: {_spoken(key)} differs between models for {name} "
                    f"({', '.join(f'{value:g}' for value in values)}); "
                    f"{self.operator} has one for all of them here"
                )
            row[key] = values[0]
        return row


def _spoken(key: str) -> str:
    return {"weights": "weight", "lambda_": "lambda", "select": "select_topk"}.get(key, key)


def read_mergekit(path: Path) -> MergePlan:
    """Return what a mergekit YAML file asks for.

    Raises:
        ConfigError: The file is not readable YAML under 1 MB, or asks for something evomerge
            does not do; names the file and the key.
    """
    with blaming(path):
        return _read(read_yaml(path), path)


def check_method(body: Mapping[str, Any]) -> str:
    """Return the file's `merge_method`; ConfigError for keys or a method that are not read."""
    check_keys(body, _TOP_KEYS, "")
    method = body.get("merge_method")
    if not isinstance(method, str) or method not in _PARAMETERS:
        what = "is missing." if method is None else f"{method!r} is not read by evomerge."
        hint = nearest(str(method), (*_PARAMETERS, *delta_transforms.names()))
        known = ", ".join((*_PARAMETERS, *delta_transforms.names()))
        raise ConfigError(f"merge_method: {what}{hint} Known: {known}.")
    return method


def _read(body: dict[str, Any], path: Path) -> MergePlan:
    check_method(body)
    return plan_entries(body, path, *_entries(body))


def plan_entries(
    body: Mapping[str, Any],
    path: Path,
    entries: Entries,
    base_entry: Any,
    levels: Sequence[tuple[str, Any]],
    n_layers: int | None,
) -> MergePlan:
    """Return what the file asks for in one slice, or for whole models.

    Args:
        body: The file.
        path: The file, for messages.
        entries: Its models, with their place in the file.
        base_entry: What it has for `base_model`.
        levels: Its common parameters with their place, what counts first in front.
        n_layers: Layers the models must have; None for any number.

    Raises:
        ConfigError: It asks for something evomerge does not do.
    """
    method = check_method(body)
    for_model, common = _PARAMETERS[method]
    base = None if base_entry is None else parse_model(base_entry, "base_model")
    shared: dict[str, Rule] = {}
    for where, level in levels:
        for key, rule in parse_parameters(level, where, (*common, *for_model), method).items():
            shared[key] = (*shared.get(key, ()), *rule)
    models: list[ModelConfig] = []
    own: dict[str, dict[str, Rule]] = {}
    for where, entry in entries:
        model = parse_model(entry.get("model"), f"{where}.model")
        if model in models:
            raise ConfigError(f"{where}.model: {model.model!r} is listed twice")
        models.append(model)
        own[repr(model)] = parse_parameters(
            entry.get("parameters"), where, for_model, method, common
        )
    if method == "passthrough":
        base = None  # only whose config and tokenizer the result gets; see `mergekit_slices`
        if len(models) != 1:
            raise ConfigError(f"passthrough: takes one model at a time, got {len(models)}")
    is_listed = base in models
    experts = [model for model in models if model != base]
    weighted = experts
    if method == "linear":
        weighted = experts if base is None else [base, *experts]
    if method in _PAIRS and (base is None or len(experts) != 1):
        raise ConfigError(
            f"{method}: needs two models, one of them as base_model, got {len(models)}"
            f"{'' if base is None else ' and a base_model' * (not is_listed)}"
        )
    if method == "nuslerp" and len(experts) != 2:
        raise ConfigError(f"nuslerp: needs two models beside base_model, got {len(experts)}")
    if method == "karcher" and base is not None:
        raise ConfigError("base_model: karcher takes it as one more model; list it under models")
    if method == "model_stock" and len(experts) < 2:
        raise ConfigError("model_stock: needs at least two models beside base_model")
    if base is None and method not in _WITHOUT_BASE:
        raise ConfigError(f"base_model is missing; {method} needs it")
    if method == "linear" and base is not None and not is_listed and "weight" not in shared:
        raise ConfigError("base_model: linear takes it as one more model; list it with a weight")
    if not weighted:
        raise ConfigError("models: name at least one model beside base_model")

    def rules(key: str, default: float | None = None) -> tuple[Rule, ...]:
        last = () if default is None else (Condition(default),)
        return tuple(
            (*own.get(repr(model), {}).get(key, ()), *shared.get(key, ()), *last)
            for model in weighted
        )

    params: dict[str, tuple[Rule, ...]] = {}
    if method == "karcher":
        params["weights"] = rules("weight", 1.0)
    elif "weight" in for_model:
        params["weights"] = rules("weight")
    if "density" in for_model and method != "task_arithmetic":
        params["density"] = rules("density", 1.0)
    for key, (ours, default) in _NUMBERS.get(method, {}).items():
        last = () if default is None else (Condition(default),)
        params[ours] = rules(key, default) if key in for_model else ((*shared.get(key, ()), *last),)
    if "lambda" in common:
        params["lambda_"] = ((*shared.get("lambda", ()), Condition(1.0)),)
    flags = {key: parse_flag(rule, key) for key, rule in shared.items() if key in FLAGS}
    settings = settings_of(method, flags, shared)
    return MergePlan(
        path, _OUR_NAMES.get(method, method), base, tuple(experts), params, settings,
        parse_dtype(body), n_layers,
    )  # fmt: skip


def _entries(body: dict[str, Any]) -> tuple[Entries, Any, list[tuple[str, Any]], int | None]:
    """Return models with their place in the file, the base, common parameters, and layers."""
    levels = [("parameters", body.get("parameters"))]
    if ("models" in body) == ("slices" in body):
        raise ConfigError("exactly one of `models` and `slices` is needed")
    if "models" in body:
        models = mappings(body["models"], "models", ("model", "parameters"))
        return models, body.get("base_model"), levels, None
    slices = mappings(body["slices"], "slices", ("sources", "base_model", "parameters"))
    if len(slices) != 1:
        raise ConfigError(
            f"slices: {len(slices)} slices stack parts of models; `read_slices` reads them"
        )
    where, only = slices[0]
    sources = mappings(
        only.get("sources"), f"{where}.sources", ("model", "layer_range", "parameters")
    )
    ends = []
    for place, source in sources:
        layers = source.get("layer_range")
        is_pair = isinstance(layers, list) and [type(n) for n in layers] == [int, int]
        if not isinstance(layers, list) or not is_pair or layers[0] != 0:
            raise ConfigError(
                f"{place}.layer_range: {layers!r} is not the whole model, [0, number of layers]"
            )
        ends.append(layers[1])
    if len(set(ends)) != 1:
        raise ConfigError(f"{where}: its sources have different layer ranges")
    base = only.get("base_model", body.get("base_model"))
    return sources, base, [(f"{where}.parameters", only.get("parameters")), *levels], ends[0]
