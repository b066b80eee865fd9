"""Read the `slices:` of a mergekit YAML config: stacked layers of one or more models.

```yaml
merge_method: passthrough        # or any other method that `mergekit_yaml` reads
slices:
  - sources: [{model: ./a, layer_range: [0, 16]}]
  - sources:
      - model: ./b
        layer_range: [8, 24]
        parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}
```

Every slice has as many sources; the k-th sources of all slices are one stack, and the merge is one
of the stacks. What comes before the layers is that of the first slice, what comes after them that
of the last; config and tokenizer are those of `base_model`, else of the first source.

Source: mergekit 0.1 (`plan.py:MergePlanner`), arXiv:2403.13257. Read, not copied.
Differs from mergekit: what `mergekit_yaml` says; without `base_model`, mergekit takes the config
of any of the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.config.mergekit_fields import Entries, mappings, parse_model, shown
from evomerge.config.mergekit_yaml import MergePlan, Row, check_method, plan_entries
from evomerge.config.schema import ModelConfig
from evomerge.config.yaml_file import blaming, read_yaml
from evomerge.core.layer_plan import MAX_LAYERS, LayerPlan, LayerSlot
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.core.tensor_names import block_parts, place
from evomerge.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Slice:
    """Some consecutive layers of the result.

    Attributes:
        where: Its place in the file.
        merge: Method and parameters in this slice.
        models: (K,) its sources, the base first when there is one.
        starts: (K,) the first layer of each; None when the base is not among the slice's sources.
        n_layers: How many layers; None for all of the model.
    """

    where: str
    merge: MergePlan
    models: tuple[ModelConfig, ...]
    starts: tuple[int | None, ...]
    n_layers: int | None


@dataclass(frozen=True, eq=False)
class SlicesPlan:
    """The slices of a file, not yet laid over real models.

    Attributes:
        path: The file.
        donor: The model whose config and tokenizer the result gets.
        slices: In the order of the result's layers.
    """

    path: Path
    donor: ModelConfig
    slices: tuple[Slice, ...]

    @property
    def has_base(self) -> bool:
        """Whether the first stack is a base from which the others were fine-tuned."""
        return self.slices[0].merge.base_model is not None

    @property
    def dtype(self) -> str | None:
        """Torch name of the output dtype; None keeps the models'."""
        return self.slices[0].merge.dtype

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        """All models once, the donor first."""
        found = [self.donor]
        for part in self.slices:
            found += [model for model in part.models if model not in found]
        return tuple(found)

    def is_whole(self, depths: Sequence[int]) -> bool:
        """Return whether it is a merge of whole models, of the same depth, and not `passthrough`.

        Args:
            depths: Number of layers of each of `models`.
        """
        first = self.slices[0]
        return (
            len(self.slices) == 1
            and first.merge.operator != "passthrough"
            and all(start in (None, 0) for start in first.starts)
            and set(depths) == {first.n_layers}
        )

    def stacks(self, names: Sequence[str]) -> list[LayerPlan] | None:
        """Return the (K,) layer plans; None for the one model as it is.

        Args:
            names: Id of each of `models`.

        Raises:
            ConfigError: A slice lacks the base.
        """
        if self.slices[0].n_layers is None:
            return None
        models = self.models
        for part in self.slices:
            if None in part.starts:
                raise ConfigError(
                    f"{self.path}: {part.where}.sources: base_model is missing; list it with the "
                    "layers that the others are compared with"
                )
        plans = []
        for k in range(len(self.slices[0].models)):
            ids = [names[models.index(part.models[k])] for part in self.slices]
            slots = tuple(
                LayerSlot(id, (part.starts[k] or 0) + offset)
                for id, part in zip(ids, self.slices, strict=True)
                for offset in range(part.n_layers or 0)
            )
            plans.append(LayerPlan(slots, ids[0], ids[-1]))
        return plans

    def recipe(self, space: ModelSpace) -> Recipe:
        """Return the recipe over the space of the stacks, in their order.

        Raises:
            ConfigError: A tensor gets no value, or values differ inside one layer and kind of
                tensor.
        """
        if self.slices[0].n_layers is None:
            return self.slices[0].merge.recipe(space)
        rows = [self._row(tensor.spec.name) for tensor in space.merged]
        return self.slices[0].merge.lay_over(space, rows)

    def _row(self, name: str) -> Row:
        parts = block_parts(name)
        if parts is None:
            is_tail = place(name).section == "tail"
            part = self.slices[-1 if is_tail else 0]
            return part.merge.row(name, float(is_tail))
        before, layer, after = parts
        for part in self.slices:
            n_layers = part.n_layers or 0
            if layer < n_layers:
                break
            layer -= n_layers
        own = [f"{before}{(start or 0) + layer}{after}" for start in part.starts]
        return part.merge.row(name, layer / (n_layers - 1) if n_layers > 1 else 1.0, own)


def read_slices(path: Path) -> SlicesPlan | None:
    """Return the slices of a mergekit YAML file; None when it has none and needs none.

    `passthrough` of one model is one slice of all its layers.

    Raises:
        ConfigError: The file is not readable YAML under 1 MB, or asks for something evomerge
            does not do; names the file and the key.
    """
    with blaming(path):
        return _read(read_yaml(path), path)


def _read(body: dict[str, Any], path: Path) -> SlicesPlan | None:
    method = check_method(body)
    if ("models" in body) == ("slices" in body):
        raise ConfigError("exactly one of `models` and `slices` is needed")
    if "models" in body and method != "passthrough":
        return None
    slices = _slices(body, path) if "slices" in body else [_whole(body, path)]
    first = slices[0]
    if sum(part.n_layers or 0 for part in slices) > MAX_LAYERS:
        raise ConfigError(f"slices: more than {MAX_LAYERS} layers")
    for part in slices[1:]:
        if len(part.models) != len(first.models):
            raise ConfigError(
                f"{part.where}: {len(part.models)} models, {first.where} has "
                f"{len(first.models)}; every slice needs as many"
            )
        for what in ("settings", "operator"):
            if getattr(part.merge, what) != getattr(first.merge, what):
                raise ConfigError(f"{part.where}: its {what} differ from those of {first.where}")
    donor = body.get("base_model")
    if donor is None:
        return SlicesPlan(path, first.models[0], tuple(slices))
    return SlicesPlan(path, parse_model(donor, "base_model"), tuple(slices))


def _whole(body: dict[str, Any], path: Path) -> Slice:
    """Return the slice of `models:` with one model, passed through."""
    entries = mappings(body["models"], "models", ("model", "parameters"))
    levels = [("parameters", body.get("parameters"))]
    merge = plan_entries(body, path, entries, None, levels, None)
    donor = body.get("base_model")
    if donor is not None and parse_model(donor, "base_model") != merge.models[0]:
        raise ConfigError("base_model: passthrough takes it as one more model; leave it out")
    return Slice("models", merge, merge.models, (0,), None)


def _slices(body: dict[str, Any], path: Path) -> list[Slice]:
    found = []
    for where, item in mappings(body["slices"], "slices", ("sources", "base_model", "parameters")):
        keys = ("model", "layer_range", "parameters")
        entries = mappings(item.get("sources"), f"{where}.sources", keys)
        levels = [
            (f"{where}.parameters", item.get("parameters")),
            ("parameters", body.get("parameters")),
        ]
        base = item.get("base_model", body.get("base_model"))
        merge = plan_entries(body, path, entries, base, levels, None)
        base_model = merge.base_model
        models = (*((base_model,) if base_model else ()), *merge.models)
        found.append(_slice(where, merge, models, entries))
    return found


def _slice(
    where: str, merge: MergePlan, models: tuple[ModelConfig, ...], entries: Entries
) -> Slice:
    ranges = [
        (parse_model(entry["model"], f"{place}.model"), _range(entry.get("layer_range"), place))
        for place, entry in entries
    ]
    lengths = {stop - start for _, (start, stop) in ranges}
    if len(lengths) != 1:
        raise ConfigError(f"{where}: its sources have different numbers of layers")
    starts = tuple(
        next((start for model, (start, _) in ranges if model == wanted), None) for wanted in models
    )
    return Slice(where, merge, models, starts, lengths.pop())


def _range(value: Any, where: str) -> tuple[int, int]:
    is_pair = isinstance(value, list) and [type(item) for item in value] == [int, int]
    if not is_pair or not 0 <= value[0] < value[1]:
        raise ConfigError(
            f"{where}.layer_range: {shown(value)} is not [first layer, the one after the last]"
        )
    return value[0], value[1]
