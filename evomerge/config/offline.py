"""Check a config without its models and data: is the file itself right, down to the last key?"""

from __future__ import annotations

from pathlib import Path

from evomerge.config.build import (
    build_algorithm,
    build_objectives,
    needs_span,
    resolve_sections,
    wanted_numbers,
)
from evomerge.config.constraints import check_bound_sources
from evomerge.config.merge_space import build_space
from evomerge.config.models import name_models
from evomerge.config.schema import RunConfig
from evomerge.config.transforms import resolve_transforms, virtual_ids
from evomerge.core.model_space import ModelSpace, SourceHeader, TensorSpec, align
from evomerge.seeding import generator

# Deeper and wider than what configs are written for, so that groups and layers exist.
_N_LAYERS = 128
_TENSORS = (
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(_N_LAYERS)),
    "lm_head.weight",
)


def check_offline(config: RunConfig, base_dir: Path) -> RunConfig:
    """Return the config with every default that does not depend on models or data.

    Models have their names but are not looked up; the merge section is checked against models
    of 128 layers.

    Args:
        config: The config as written.
        base_dir: Folder that its relative paths start from.

    Raises:
        ConfigError: A key or value is wrong.
    """
    resolved = resolve_sections(config, base_dir)
    base, models = name_models(resolved.base_model, resolved.models)
    transforms = resolve_transforms(resolved.transforms, base, models, base_dir)
    named = resolved.model_copy(
        update={"base_model": base, "models": models, "transforms": transforms}
    )
    check_bound_sources(named)
    virtual = {str(item.label): virtual_ids(item) for item in transforms}
    in_span = needs_span(named)
    space, merge = build_space(
        named.merge,
        _stand_in(named, virtual),
        founders=named.search.founders,
        span=None,
        in_span=in_span,
        virtual=virtual,
        auto_alpha=lambda _: 1.0,
        numbers=wanted_numbers(named),
    )
    if not in_span:  # refuses settings of its own
        algorithm = build_algorithm(named)
        algorithm.start(space, build_objectives(named), generator(named.seed, "algorithm"))
    return named.model_copy(update={"merge": merge})


def _stand_in(config: RunConfig, virtual: dict[str, tuple[str, ...]]) -> ModelSpace:
    """Return aligned models that exist by name only."""
    base = [] if config.base_model is None else [str(config.base_model.name)]
    dropped = {
        name for item in config.transforms if not item.keep_parents for name in item.of or ()
    }
    names = [str(model.name) for model in config.models if model.name not in dropped]
    made = [name for ids in virtual.values() for name in ids]
    specs = {name: TensorSpec(name, "F32", (64, 64)) for name in _TENSORS}
    headers = [
        SourceHeader(source, "", specs, {name: f"{source} {name}" for name in _TENSORS})
        for source in (*base, *names, *made)
    ]
    return align(headers, has_base=bool(base))
