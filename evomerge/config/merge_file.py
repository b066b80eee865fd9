"""`evomerge merge FILE`: one merge from a recipe.json or a mergekit YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evomerge.config.construct import describe
from evomerge.config.export_run import parents_of
from evomerge.config.mergekit_yaml import read_mergekit
from evomerge.config.models import OpenModels, open_sources, resolve_model_configs
from evomerge.config.schema import ModelConfig
from evomerge.config.yaml_file import MAX_BYTES
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, SourceError
from evomerge.export import CardFacts, ExportResult, export_candidate
from evomerge.merging.materialize import build_operators


def merge_file(file: Path, out: Path) -> ExportResult:
    """Compute the merge a file describes and write it to `out`.

    Args:
        file: `recipe.json` of an export (its models must be where it says, unchanged), or a
            mergekit YAML of a method evomerge has.
        out: New folder.

    Raises:
        ConfigError: The file is not understood.
        PreflightError: The models are missing or do not fit.
    """
    if file.suffix == ".json":
        recipe, models, dtype = _read_recipe(file)
    else:
        plan = read_mergekit(file)
        base, others = resolve_model_configs(plan.base_model, list(plan.models), file.parent)
        models = open_sources(base, others)
        recipe, dtype = plan.recipe(models.space), plan.dtype
    build_operators(recipe, models.space)
    card = CardFacts(title=out.name, parents=parents_of(models.record))
    return export_candidate(
        out,
        recipe=recipe,
        space=models.space,
        sources=models.sources,
        derived=None,
        donor=models.donor,
        card=card,
        dtype=dtype,
    )


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
    base, others = (configs[0], configs[1:]) if has_base else (None, configs)
    models = open_sources(*resolve_model_configs(base, others, file.parent))
    for record in models.record:
        # As it is read, its token rows in the donor's order; masks are keyed by this one too.
        digest = models.sources[str(record["id"])].digest
        if digests[str(record["id"])] != digest:
            raise SourceError(
                f"{record['model']}: is not the model this recipe was made with (digest "
                f"{digest}, expected {digests[str(record['id'])]})"
            )
    return recipe, models, dtype


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
