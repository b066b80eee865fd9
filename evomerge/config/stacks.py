"""Open models and stack their layers: the sources of a merge of another depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evomerge.config.models import OpenModels, line_up, record_of
from evomerge.config.schema import ModelConfig
from evomerge.core.layer_plan import LayerPlan
from evomerge.core.model_space import align, lone
from evomerge.core.tensor_names import count_layers
from evomerge.errors import ConfigError
from evomerge.export import Stacked
from evomerge.export.layer_config import config_depth, stacked_config
from evomerge.merging.source import TensorSource
from evomerge.storage.lora_source import LoraSource
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.stacked_source import StackedSource

Opened = ModelFolder | LoraSource


def depth(source: Opened) -> int:
    """Return the number of layers of a model: what its config states, else what its files hold."""
    stated = config_depth(folder_of(source).config)
    return count_layers(source.specs) if stated is None else stated


def stack_models(
    refs: Sequence[ModelConfig],
    opened: Sequence[Opened],
    plans: Mapping[str, LayerPlan],
    *,
    has_base: bool,
) -> OpenModels:
    """Return stacks of opened models as the sources of a merge.

    Args:
        refs: What the models were opened from, the donor of config and tokenizer first.
        opened: The models.
        plans: Id of each stack -> its layers, the base first when there is one; {} for the one
            model as it is.
        has_base: Whether the first stack is a base.

    Raises:
        ConfigError: A layer is out of range, or the config ties one to its place.
        ModelSpaceError: The layers do not fit together.
    """
    depths = {source.id: depth(source) for source in opened}
    for plan in plans.values():
        plan.check(depths)
    lined_up = {source.id: source for source in line_up(opened)}
    donor = opened[0]
    stacks = tuple(StackedSource(id, plan, lined_up) for id, plan in plans.items())
    sources: dict[str, TensorSource] = {stack.id: stack for stack in stacks}
    if not stacks:
        sources = dict(lined_up)
    headers = [source.header() for source in sources.values()]
    space = lone(headers[0]) if len(headers) == 1 else align(headers, has_base=has_base)
    config = None
    if stacks and folder_of(donor).config:
        configs = {source.id: folder_of(source).config for source in opened}
        plan = stacks[0].plan
        own = {source: configs[source] for source in plan.sources}
        config = stacked_config(folder_of(donor).config, plan, own)
        stored = {tensor.spec.name for tensor in space.tensors}
        if donor.tied.keys() & stored:
            space = replace(space, untied=True)
        elif stacks[0].header().tied and not donor.tied:
            config["tie_word_embeddings"] = True
    record = [record_of(source, ref) for source, ref in zip(opened, refs, strict=True)]
    trust = refs[0].trust_remote_code
    path = folder_of(donor).path
    return OpenModels(space, sources, path, record, trust, stacks=stacks, config=config)


def stack_names(taken: Sequence[str], n_stacks: int) -> list[str]:
    """Return ids for stacks that are not those of models."""
    name = "stack"
    while any(other.startswith(name) for other in taken):
        name += "s"
    return [name] if n_stacks == 1 else [f"{name}-{index + 1}" for index in range(n_stacks)]


def read_plans(rows: object, where: str) -> dict[str, tuple[LayerPlan, str]]:
    """Return id -> (plan, expected digest) from the `stacks` of a recipe.json.

    Raises:
        ConfigError: They are malformed.
    """
    if not isinstance(rows, list):
        raise ConfigError(f"{where}: stacks must be a list")
    plans: dict[str, tuple[LayerPlan, str]] = {}
    for index, row in enumerate(rows):
        place = f"{where}: stacks.{index}"
        if not isinstance(row, dict) or not {"id", "plan", "digest"} <= set(row):
            raise ConfigError(f"{place}: expected id, plan and digest")
        plan = LayerPlan.from_json(row["plan"], where=f"{place}.plan")
        plans[str(row["id"])] = (plan, str(row["digest"]))
    return plans


def folder_of(source: Opened) -> ModelFolder:
    """Return the model folder behind a source: of an adapter its base."""
    return source if isinstance(source, ModelFolder) else source.base


def stacked_of(models: OpenModels) -> tuple[Stacked, ...]:
    """Return the stacks for a model card."""
    ids = tuple(str(item["id"]) for item in models.record)
    return tuple(Stacked(stack.id, stack.plan, stack.digest, ids) for stack in models.stacks)
