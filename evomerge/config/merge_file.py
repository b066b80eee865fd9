"""`evomerge merge FILE`: one merge from a recipe.json or a mergekit YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.config.cache import usable_cache
from evomerge.config.construct import describe
from evomerge.config.mergekit_slices import read_slices
from evomerge.config.mergekit_yaml import read_mergekit
from evomerge.config.models import OpenModels, open_each, open_sources, resolve_model_configs
from evomerge.config.parents import parents_of, transformed_of
from evomerge.config.schema import ModelConfig, TransformConfig
from evomerge.config.stacks import (
    Opened,
    depth,
    read_plans,
    stack_models,
    stack_names,
    stacked_of,
)
from evomerge.config.transform_yaml import TransformPlan, read_transform_yaml
from evomerge.config.transforms import resolve_transforms
from evomerge.config.yaml_file import MAX_BYTES
from evomerge.core.layer_plan import LayerPlan
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, ModelSpaceError, SourceError
from evomerge.export import (
    AsAdapter,
    CardFacts,
    ExportResult,
    export_adapter,
    export_candidate,
)
from evomerge.merging.ancestor_store import AncestorStore
from evomerge.merging.derived import Derived
from evomerge.merging.plan import build_operators, check_ancestor


def merge_file(file: Path, out: Path, *, adapter: AsAdapter | None = None) -> ExportResult:
    """Compute the merge a file describes and write it to `out`.

    Args:
        file: `recipe.json` of an export (its models must be where it says, unchanged), or a
            mergekit YAML of a method or transform evomerge has.
        out: New folder.
        adapter: Write a LoRA adapter of the base instead of the full model.

    Raises:
        ConfigError: The file is not understood, or the merge is no such adapter.
        PreflightError: The models are missing or do not fit.
    """
    if file.is_dir():
        raise ConfigError(f"{file}: is a folder; of an export, give {file / 'recipe.json'}")
    if file.suffix == ".json":
        recipe, models, dtype = _read_recipe(file)
    elif (made := read_transform_yaml(file)) is not None:
        models = _open_transformed(made, file)
        recipe, dtype = made.recipe(models.space.sources), made.dtype
    elif (stacked := _open_slices(file)) is not None:
        recipe, models, dtype = stacked
    else:
        plan = read_mergekit(file)
        base, others = resolve_model_configs(plan.base_model, list(plan.models), file.parent)
        models = open_sources(base, others)
        recipe, dtype = plan.recipe(models.space), plan.dtype
    try:
        build_operators(recipe, models.space)
        for ancestor in recipe.closure().values():
            check_ancestor(ancestor, models.space)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    card = CardFacts(
        title=out.name,
        parents=parents_of(models.record),
        transformed=(*transformed_of(models.virtual), *stacked_of(models)),
    )
    if adapter is not None and models.stacks:
        raise ConfigError("--adapter: a stack of layers is no adapter of a model on disk")
    if adapter is not None:
        return export_adapter(
            out,
            recipe=recipe,
            space=models.space,
            sources=models.sources,
            derived=None,
            donor=models.donor,
            card=card,
            rank=adapter.rank,
        )
    # Ancestors are kept on disk meanwhile: those of one large tensor may not fit the memory.
    ancestors = AncestorStore(usable_cache(None) if recipe.named else None)
    try:
        return export_candidate(
            out,
            recipe=recipe,
            space=models.space,
            sources=models.sources,
            derived=Derived(ancestors=ancestors) if recipe.named else None,
            donor=models.donor,
            card=card,
            config=models.config,
            dtype=dtype,
        )
    finally:
        ancestors.clear_disk()


def _open_transformed(plan: TransformPlan, file: Path) -> OpenModels:
    base, others = resolve_model_configs(plan.base_model, list(plan.models), file.parent)
    try:
        transforms = resolve_transforms([plan.transform], base, others, file.parent)
    except ConfigError as error:
        text = str(error).replace("transforms.0", "parameters")
        raise ConfigError(f"{file}: {text}") from None
    return open_sources(base, others, transforms=transforms)


def _open_slices(file: Path) -> tuple[Recipe, OpenModels, str | None] | None:
    """Return the merge of a mergekit YAML with slices; None when it is one of whole models."""
    sliced = read_slices(file)
    if sliced is None:
        return None
    _, refs = resolve_model_configs(None, list(sliced.models), file.parent)
    opened = open_each(refs)
    if sliced.is_whole([depth(source) for source in opened]):
        return None
    ids = [source.id for source in opened]
    plans = sliced.stacks(ids) or []
    by_id = dict(zip(stack_names(ids, len(plans)), plans, strict=True))
    models = _stack(refs, opened, by_id, sliced.has_base, file)
    return sliced.recipe(models.space), models, sliced.dtype


def _stack(
    refs: list[ModelConfig],
    opened: list[Opened],
    plans: Mapping[str, LayerPlan],
    has_base: bool,
    file: Path,
) -> OpenModels:
    try:
        return stack_models(refs, opened, plans, has_base=has_base)
    except (ConfigError, ModelSpaceError) as error:
        raise type(error)(f"{file}: {error}") from None


def _read_recipe(file: Path) -> tuple[Recipe, OpenModels, str | None]:
    body = _read_json(file)
    try:
        items = body["sources"]
        recipe = Recipe.from_json(body["recipe"], where=f"{file}: recipe")
        configs = [
            ModelConfig(
                model=str(item["model"]),
                name=str(item["id"]),
                revision=item.get("revision"),
                lora=item.get("lora"),
            )
            for item in items
        ]
        digests = {str(item["id"]): str(item["digest"]) for item in items}
        transforms = []
        for item in body.get("transforms", ()):
            digests |= {str(id): str(digest) for id, digest in item["sources"].items()}
            entry = {key: value for key, value in item.items() if key != "sources"}
            transforms.append(TransformConfig.model_validate(entry))
        donor = str(body["donor"])
        has_base = bool(body["has_base"])
        dtype = body.get("dtype")
    except ValidationError as error:
        raise ConfigError(f"{file}: sources: {describe(error)}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: is not the recipe.json of an export: {error} is missing or malformed"
        ) from None
    ids = [config.name for config in configs]
    if not all(ids) or len(set(ids)) < len(ids):
        raise ConfigError(f"{file}: the sources need ids, no two alike: {ids}")
    if not isinstance(dtype, str | None):
        raise ConfigError(f"{file}: dtype is {dtype!r}, expected a name such as bfloat16")
    if not configs or configs[0].name != donor:
        raise ConfigError(f"{file}: the first source must be the donor {donor!r}")
    if "stacks" in body or (len(configs) == 1 and not has_base):
        plans = read_plans(body.get("stacks", []), str(file))
        digests |= {name: digest for name, (_, digest) in plans.items()}
        _, refs = resolve_model_configs(None, configs, file.parent)
        only = {name: plan for name, (plan, _) in plans.items()}
        models = _stack(refs, open_each(refs), only, has_base, file)
    else:
        base, others = (configs[0], configs[1:]) if has_base else (None, configs)
        base, others = resolve_model_configs(base, others, file.parent)
        transforms = resolve_transforms(transforms, base, others, file.parent)
        models = open_sources(base, others, transforms=transforms)
    _check_digests(models, digests)
    return recipe, models, dtype


def _check_digests(models: OpenModels, digests: Mapping[str, str]) -> None:
    """Raise SourceError if a model is not the one the recipe was made with."""
    for record in models.record:
        # As it is read, its token rows in the donor's order; masks are keyed by this one too.
        source = models.sources.get(str(record["id"]))
        digest = record["digest"] if source is None else source.digest
        if digests.get(str(record["id"])) != digest:
            raise SourceError(
                f"{record['model']}: is not the model this recipe was made with (digest "
                f"{digest}, expected {digests.get(str(record['id']))})"
            )
    for stack in models.stacks:
        if digests.get(stack.id) != stack.digest:
            raise SourceError(
                f"{stack.id}: is not the stack this recipe was made with (digest {stack.digest}, "
                f"expected {digests.get(stack.id)})"
            )


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        if file.stat().st_size > 64 * MAX_BYTES:
            raise ConfigError(f"{file}: is too large for a recipe")
        body = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return body
