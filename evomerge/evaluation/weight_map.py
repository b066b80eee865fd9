"""WeightMap: which tensors of the files become which parameters of the model in memory.

transformers 5 renames tensors while loading (ViT's `encoder.layer` becomes `layers`), adds or
strips the base-model prefix, and fuses or splits some (the experts of a mixture). The map is
made with transformers' own conversion tables and then checked against a loaded model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import EvaluationError


@dataclass(eq=False)
class Unit:
    """File tensors that become one or more model tensors together.

    Attributes:
        target: The model tensor, or the first of them.
        sources: (file tensor name, pattern of the converter it matched), in the order in
            which transformers hands them to the converter.
        converter: transformers' WeightConverter, or None when the tensor is only renamed.
    """

    target: str
    sources: list[tuple[str, str]] = field(default_factory=list)
    converter: Any = None

    @property
    def names(self) -> list[str]:
        """Names of the file tensors."""
        return [name for name, _ in self.sources]


class WeightMap:
    """The units of one loaded model, by file tensor name."""

    def __init__(self, model: torch.nn.Module, file_names: Iterable[str]) -> None:
        """Map the names of a checkpoint's tensors onto `model`.

        Args:
            model: A transformers model; only its names, shapes and dtypes are used.
            file_names: Tensor names as in the safetensors files the model was loaded from.

        Raises:
            EvaluationError: Two file tensors would overwrite one parameter.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
        )

        self._model = model
        transforms = get_model_conversion_mapping(model)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._by_pattern = {p: c for c in self._converters for p in c.source_patterns}
        self._known = model.state_dict()
        self.ignored: set[str] = set()
        self._units: dict[str, Unit] = {}
        by_target: dict[str, Unit] = {}
        for name in sorted(file_names, key=dot_natural_key):
            target, pattern = self._rename(name)
            if target not in self._known:
                self.ignored.add(name)
                continue
            converter = self._by_pattern[pattern] if pattern is not None else None
            unit = by_target.setdefault(target, Unit(target, converter=converter))
            if unit.sources and converter is None:
                raise EvaluationError(
                    f"{name} and {unit.sources[0][0]} of the checkpoint both become {target}"
                )
            unit.sources.append((name, pattern or name))
            self._units[name] = unit

    @property
    def units(self) -> list[Unit]:
        """Every unit once."""
        return list(dict.fromkeys(self._units.values()))

    def unit(self, name: str) -> Unit | None:
        """Return the unit that file tensor `name` belongs to; None when nothing takes it.

        Names that the checkpoint lacks (a head from another file) are resolved as well, as
        long as they map one to one.
        """
        found = self._units.get(name)
        if found is not None or name in self.ignored:
            return found
        target, pattern = self._rename(name)
        if target not in self._known or pattern is not None:
            return None
        return Unit(target, [(name, name)])

    def convert(self, unit: Unit, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return {model tensor name: value} for one unit.

        Args:
            unit: What to convert.
            tensors: File tensor name -> value, for every name of the unit.
        """
        if unit.converter is None:
            return {unit.target: tensors[unit.sources[0][0]]}
        converter = copy.deepcopy(unit.converter)
        like = self._known[unit.target]
        for name, pattern in unit.sources:
            # Cast before converting, as from_pretrained does; handed over as a callable
            # because a bare tensor would be taken for a list of tensors.
            tensor = tensors[name].to(device=like.device, dtype=like.dtype)
            converter.add_tensor(unit.target, name, pattern, lambda tensor=tensor: tensor)
        made = converter.convert(unit.target, model=self._model, config=self._model.config)
        return {
            name: value[0] if isinstance(value, list) else value for name, value in made.items()
        }

    def disagreement(
        self, read: Callable[[str], Tensor], uninitialised: Iterable[str]
    ) -> str | None:
        """Say where the map does not reproduce the model as loaded; None when it does.

        Args:
            read: File tensor name -> value.
            uninitialised: Model tensors the files do not have.
        """
        state = self._model.state_dict()
        covered: set[int] = set()
        for unit in self.units:
            made = self.convert(unit, {name: read(name) for name in unit.names})
            for name, value in made.items():
                target = state.get(name)
                if target is None:
                    return f"{unit.names[0]} becomes {name}, which the model does not have"
                if target.shape != value.shape:
                    return f"{name} is {tuple(target.shape)}, the map gives {tuple(value.shape)}"
                if not torch.equal(target, value.to(device=target.device, dtype=target.dtype)):
                    return f"{name} differs from {unit.names[0]} of the files"
                covered.add(target.data_ptr())
        lost = [
            name
            for name, tensor in state.items()
            if tensor.data_ptr() not in covered and name not in set(uninitialised)
        ]
        return f"nothing in the files becomes {lost[0]}" if lost else None

    def _rename(self, name: str) -> tuple[str, str | None]:
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        target, pattern = rename_source_key(
            name, self._renamings, self._converters, prefix, self._known
        )
        if target not in self._known and name in self._known:
            target, pattern = rename_source_key(name, [], [], prefix, self._known)
        return target, pattern
