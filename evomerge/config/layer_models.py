"""Open the models of a search over layer sequences; they may be of different depths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.config.constraints import build_constraints
from evomerge.config.layer_sequence import read_rules
from evomerge.config.models import OpenModels, compare_records, line_up, open_recorded, record_of
from evomerge.config.schema import ModelConfig, RunConfig
from evomerge.config.stacks import Opened, depth, folder_of, stack_models, stack_names
from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.core.layer_sequence import plan_of
from evomerge.core.model_space import FLOAT_DTYPES, SourceHeader, TensorSpec
from evomerge.core.recipe import Recipe
from evomerge.core.tensor_names import block_parts, place
from evomerge.errors import ConfigError, ModelSpaceError
from evomerge.export.layer_config import stacked_settings
from evomerge.runtime.layer_worker import LayerInputs
from evomerge.storage.source_like import SourceLike
from evomerge.storage.stacked_source import StackedSource

# Blocks that normalise sums of the residual stream, and experts fused in memory.
_UNSCALABLE = re.compile(r"(?i)output\.layernorm|sa_layer_norm|\.experts?\.")


@dataclass(frozen=True, eq=False)
class LayerModels:
    """Models whose layers a search puts in sequence.

    Attributes:
        refs: What they were opened from, the donor of config and tokenizer first.
        opened: All of them.
        inputs: What a worker needs of those whose layers are searched.
    """

    refs: tuple[ModelConfig, ...]
    opened: tuple[Opened, ...]
    inputs: LayerInputs

    def tensors(self) -> Iterator[TensorSpec]:
        """Yield what a worker keeps in memory: the start model, and the layers of the others."""
        for name, source in self.inputs.sources.items():
            for key, spec in source.header().tensors.items():
                if name == self.inputs.start or block_parts(key) is not None:
                    yield spec

    def stacked(self, recipe: Recipe) -> tuple[Recipe, OpenModels]:
        """Return a sequence as the plain merge of one source, which an export can write."""
        plan = plan_of(recipe, self.inputs.n_layers)
        (name,) = stack_names([source.id for source in self.opened], 1)
        models = stack_models(self.refs, self.opened, {name: plan}, has_base=False)
        return Recipe("passthrough", (name,), {"scale": np.ones(1)}), models


def open_layer_models(
    config: RunConfig, *, known: list[dict[str, Any]] | None, check: bool
) -> OpenModels:
    """Open the models of a config whose `merge:` is a layer sequence; see `open_models`.

    The layers of all `models:` are searched. A `base_model:` gives config and tokenizer, and what
    adapters are adapters of; without one the first of `models:` does.

    Raises:
        ConfigError: There are transforms, a constraint relative to a model that is not scored, or
            models that do not fit together.
        SourceError: A file is broken or unsafe, or differs from `known`.
        ModelSpaceError: The layers do not fit together, or cannot be scaled.
    """
    if config.transforms:
        raise ConfigError(
            "transforms: their results are task vectors, not models with layers; export the "
            "merges you want first, and search over the layers of the exports"
        )
    rules = read_rules(config.merge)
    refs = [*([config.base_model] if config.base_model else []), *config.models]
    opened = open_recorded(refs, known=known, check=check)
    record = [record_of(source, ref) for source, ref in zip(opened, refs, strict=True)]
    if known is not None:
        compare_records(record, known)
    names = tuple(str(model.name) for model in config.models)
    lined_up = {source.id: source for source in line_up(opened)}
    depths = {source.id: depth(source) for source in opened}
    start = names[0] if rules.start not in names else str(rules.start)
    _check_bounds(config, start)
    donor = opened[0]
    if depths[start] != depths[donor.id]:
        raise ConfigError(
            f"merge.start: {start!r} has {depths[start]} layers, base_model {depths[donor.id]}; "
            "start from a model as deep as the base, or leave base_model out"
        )
    _check_fit({name: lined_up[name] for name in names}, depths, start, rules.scaling != "none")
    whole = LayerPlan.whole(start, depths[start])
    models = stack_models(refs, opened, {start: whole}, has_base=False)
    inputs = LayerInputs(
        start=start,
        n_layers={name: depths[name] for name in names},
        sources={name: lined_up[name] for name in names},
        settings=_Settings(opened),
    )
    return replace(
        models,
        space=replace(models.space, sources=names),
        sources={name: lined_up[name] for name in names},
        record=record,
        stacks=(),
        config=None,
        layers=LayerModels(tuple(refs), tuple(opened), inputs),
    )


class _Settings:
    """What a plan says in config.json of the layers; see `stacked_settings`."""

    def __init__(self, opened: Sequence[Opened]) -> None:
        self._donor = folder_of(opened[0]).config
        self._configs = {source.id: folder_of(source).config for source in opened}

    def __call__(self, plan: LayerPlan) -> dict[str, Any]:
        own = {source: self._configs[source] for source in plan.sources}
        return stacked_settings(self._donor, plan, own)


def _check_bounds(config: RunConfig, start: str) -> None:
    for constraint in build_constraints(config):
        if constraint.bound.source not in (None, start):
            raise ConfigError(
                f"constraints: {constraint}: of the models themselves only {start!r}, the start of "
                "the layer sequences, is scored; refer to it, or give a number"
            )


def _check_fit(
    sources: Mapping[str, SourceLike], depths: Mapping[str, int], start: str, is_scaled: bool
) -> None:
    """Refuse layers that cannot stand in one model, or not be scaled where they have to be."""
    headers = {name: source.header() for name, source in sources.items()}
    dtypes = {name: _float_dtype(header) for name, header in headers.items()}
    if len(set(dtypes.values())) > 1:
        raise ModelSpaceError(
            "layers of different dtypes cannot stand in one model: "
            + ", ".join(f"{name!r} is {dtype}" for name, dtype in dtypes.items())
            + ". Convert the models to one dtype first."
        )
    for name in sources:
        scale = 0.5 if is_scaled else 1.0
        slots = tuple(LayerSlot(name, index, scale) for index in range(depths[name]))
        try:
            StackedSource("sequence", LayerPlan(slots, start, start), sources)
        except ModelSpaceError as error:
            hint = " (merge.scaling scales them)" if is_scaled else ""
            raise ModelSpaceError(f"{error}{hint}") from None
        found = next((key for key in headers[name].tensors if _UNSCALABLE.search(key)), None)
        if is_scaled and found:
            raise ModelSpaceError(
                f"layers of {name!r} cannot have their outputs scaled: {found} shows that they "
                "are normalised, or made by experts; use `scaling: none`"
            )
        if is_scaled and _other_dtype(headers[name], dtypes[name]):
            raise ModelSpaceError(
                f"layers of {name!r} cannot have their outputs scaled: their matrices are of "
                "several dtypes; convert the model to one, or use `scaling: none`"
            )


def _float_dtype(header: SourceHeader) -> str:
    counts = dict.fromkeys(FLOAT_DTYPES, 0)
    for spec in header.tensors.values():
        if spec.dtype in counts:
            counts[spec.dtype] += spec.n_elements
    return max(counts, key=lambda dtype: counts[dtype])


def _other_dtype(header: SourceHeader, dtype: str) -> bool:
    kinds = ("attn.o", "mlp.down")
    return any(
        spec.dtype != dtype and place(name).kind in kinds for name, spec in header.tensors.items()
    )
