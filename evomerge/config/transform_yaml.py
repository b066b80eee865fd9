"""A mergekit-style YAML whose `merge_method` is a transform, as a merge of its virtual sources.

```yaml
merge_method: tsv_m
base_model: ./base
models:
  - model: ./math
    parameters: {weight: 0.8}     # default: 1; for transforms that make one source per expert
  - model: ./code
parameters: {lambda: 1.0, rank_fraction: 0.5}
dtype: bfloat16
```

gives base + lambda * sum_k weight_k * virtual_k. mergekit itself has none of these methods.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.config.mergekit_fields import (
    Rule,
    check_keys,
    mappings,
    parse_constant,
    parse_dtype,
    parse_model,
    parse_parameters,
)
from evomerge.config.schema import ModelConfig, TransformConfig
from evomerge.config.yaml_file import read_yaml
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.merging.transform import delta_transforms

_TOP_KEYS = (
    "merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "tokenizer_source",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class TransformPlan:
    """What such a file asks for.

    Attributes:
        base_model: The base.
        models: (E,) the experts, in file order.
        transform: The transform, of all the experts; they themselves are not merged.
        weights: (V,) one per virtual source.
        scale: lambda.
        dtype: Torch name of the output dtype; None keeps the models'.
    """

    base_model: ModelConfig
    models: tuple[ModelConfig, ...]
    transform: TransformConfig
    weights: tuple[float, ...]
    scale: float
    dtype: str | None

    def recipe(self, sources: tuple[str, ...]) -> Recipe:
        """Return the recipe over base and virtual sources, in this order."""
        params = {"weights": np.array([self.weights]), "lambda_": np.array([self.scale])}
        return Recipe("task_arithmetic", sources, params, "global", None, {"normalize": False})


def read_transform_yaml(path: Path) -> TransformPlan | None:
    """Return what the file asks for; None when its `merge_method` is no transform.

    Raises:
        ConfigError: The file is not readable YAML under 1 MB, or a key or value is wrong.
    """
    body = read_yaml(path)
    if body.get("merge_method") not in delta_transforms.names():
        return None
    try:
        return _read(body)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read(body: dict[str, Any]) -> TransformPlan:
    check_keys(body, _TOP_KEYS, "")
    name = str(body["merge_method"])
    cls: Any = delta_transforms.get(name)
    if body.get("base_model") is None:
        raise ConfigError(f"base_model is missing; {name} needs it")
    base = parse_model(body["base_model"], "base_model")
    makes_experts = cls.outputs == "experts"
    for_model = ("weight",) if makes_experts else ()
    common = body.get("parameters")
    own = {item.name for item in dataclasses.fields(cls) if item.init}
    parameters: dict[str, Any] = {}
    if isinstance(common, dict):
        parameters = {key: value for key, value in common.items() if key in own}
        common = {key: value for key, value in common.items() if key not in own}
    known = ("lambda", *for_model, *sorted(own))
    shared = parse_parameters(common, "parameters", known, name)
    models: list[ModelConfig] = []
    weights: list[float] = []
    for where, entry in mappings(body.get("models"), "models", ("model", "parameters")):
        model = parse_model(entry.get("model"), f"{where}.model")
        if model == base or model in models:
            raise ConfigError(f"{where}.model: {model.model!r} is given twice")
        given = parse_parameters(entry.get("parameters"), where, for_model, name, ("lambda", *own))
        models.append(model)
        weights.append(_number({**shared, **given}, "weight"))
    transform = TransformConfig.model_validate({**parameters, "name": name, "keep_parents": False})
    kept = (*(weights if makes_experts else [1.0]), *(1.0 for _ in cls.extra_outputs))
    return TransformPlan(
        base, tuple(models), transform, kept, _number(shared, "lambda"), parse_dtype(body)
    )


def _number(rules: dict[str, Rule], key: str) -> float:
    return parse_constant(rules[key], key) if key in rules else 1.0
