"""Running a delta transform over a model, one tensor at a time, with every result in the cache.

Each tensor's task vectors are one item of one cache entry, so that an interrupted run goes on
where it stopped, and a process that finds an item missing computes that item alone.

Shape letters: E experts, V virtual sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.model_space import align
from evomerge.core.tensor_names import count_layers
from evomerge.errors import EvaluationError
from evomerge.merging.blocks import BlockLayout
from evomerge.merging.cache import TensorCache
from evomerge.merging.low_rank import read_factors
from evomerge.merging.source import TensorSource
from evomerge.merging.transform import DeltaInputs, DeltaTransform

KIND = "transform"
SURVEY = "<survey>"  # an item no tensor can be called like

# (tensors done, tensors in all, name of the one just done)
Progress = Callable[[int, int, str], None]


class TransformRun:
    """The task vectors a transform makes of some experts, computed once and then read.

    A function of base and experts alone: which other models are in a search does not matter.

    Attributes:
        name: Registered name of the transform.
        transform: The transform with its parameters.
        base: The base model.
        experts: (E,) the models it works on.
        space: Base and experts aligned.
        touched: Name -> shape of the tensors in which an expert differs from the base; the
            others are left alone.
        parts: All that the results depend on, JSON-ready: the cache's key.
    """

    def __init__(
        self,
        name: str,
        transform: DeltaTransform,
        parameters: Mapping[str, Any],
        base: TensorSource,
        experts: Sequence[TensorSource],
        *,
        cache: TensorCache,
        config: Mapping[str, Any],
    ) -> None:
        """Align the models; nothing is read but their headers.

        Args:
            name: Registered name of the transform.
            transform: The transform.
            parameters: All its parameters, JSON-ready: part of the results' address.
            base: The base model.
            experts: (E,) models under the base's tensor names.
            cache: Where results are kept.
            config: The base's parsed config.json; {} when there is none.

        Raises:
            ModelSpaceError: The models cannot be merged, or all equal the base.
        """
        self.name = name
        self.transform = transform
        self.base = base
        self.experts = tuple(experts)
        self.space = align([source.header() for source in (base, *experts)], has_base=True)
        shapes = {tensor.spec.name: tensor.spec.shape for tensor in self.space.tensors}
        self.touched = {tensor.spec.name: tensor.spec.shape for tensor in self.space.merged}
        self._layout = BlockLayout.of(config, shapes)
        self._n_layers = count_layers(shapes)
        self.parts: dict[str, object] = {
            "transform": name,
            "version": transform.version,
            "parameters": dict(parameters),
            "base": base.digest,
            "experts": [expert.digest for expert in self.experts],
            "blocks": self._layout.describe(),
        }
        self._entry = cache.entry(KIND, self.parts)
        self._opened: dict[str, tuple[Tensor, ...]] = {}

    @property
    def n_outputs(self) -> int:
        """V, the number of virtual sources."""
        n_own = len(self.experts) if self.transform.outputs == "experts" else 1
        return n_own + len(self.transform.extra_outputs)

    def paths(self) -> dict[str, str]:
        """Return what happens to every touched tensor; nothing is computed.

        Returns:
            Tensor name -> "transformed" or "fallback: <how>"; several ways where the linear maps
            of one tensor differ.
        """
        found: dict[str, str] = {}
        for name, shape in self.touched.items():
            parts = self._layout.split(name, torch.empty(shape, device="meta"))
            ways = dict.fromkeys(self.transform.fallback(name, tuple(p.shape)) for p in parts)
            how = "; ".join(way or "transformed" for way in ways)
            found[name] = how if how == "transformed" else f"fallback: {how}"
        return found

    def fill(self, progress: Progress | None = None) -> None:
        """Compute whatever the cache lacks.

        Raises:
            EvaluationError: The transform returned something wrong, or NaN or infinity.
        """
        for done, name in enumerate(self.touched, start=1):
            self.deltas(name)
            if progress is not None:
                progress(done, len(self.touched), name)

    def is_kept(self, name: str) -> bool:
        """Return whether a touched tensor's task vectors are in the cache."""
        return name in self._opened or self._stored(name) is not None

    def deltas(self, name: str) -> tuple[Tensor, ...]:
        """Return (V,) float32 task vectors of a touched tensor, mapped from the cache's file.

        Raises:
            EvaluationError: The transform returned something wrong, or NaN or infinity.
        """
        if name not in self._opened:
            found = self._stored(name)
            if found is None:
                computed = self._compute(name)
                items = {str(v): delta for v, delta in enumerate(computed)}
                self._entry.write(name, items)
                # Views of the file rather than a copy in memory; another process may by now
                # have made room by removing it.
                found = self._stored(name) or computed
            self._opened[name] = found
        return self._opened[name]

    def _stored(self, name: str) -> tuple[Tensor, ...] | None:
        found = self._entry.read(name)
        if found is None:
            return None
        deltas = tuple(found[key] for key in map(str, range(self.n_outputs)) if key in found)
        fits = all(
            delta.dtype == torch.float32 and tuple(delta.shape) == self.touched[name]
            for delta in deltas
        )
        return deltas if fits and len(deltas) == self.n_outputs else None

    def _compute(self, name: str) -> tuple[Tensor, ...]:
        made = [self._transformed(part) for part in self._parts(name)]
        return tuple(
            self._layout.join(name, [outputs[v] for outputs in made], self.touched[name])
            for v in range(self.n_outputs)
        )

    def _transformed(self, part: DeltaInputs) -> tuple[Tensor, ...]:
        outputs = tuple(self.transform.transform(part, self.survey))
        where = f"{part.name}: transform {self.name!r}"
        if len(outputs) != self.n_outputs:
            raise EvaluationError(
                f"{where} returned {len(outputs)} task vectors for {len(self.experts)} experts, "
                f"expected {self.n_outputs}"
            )
        for delta in outputs:
            if delta.dtype != torch.float32 or tuple(delta.shape) != part.shape:
                raise EvaluationError(
                    f"{where} returned {tuple(delta.shape)} {delta.dtype}, expected "
                    f"{part.shape} torch.float32"
                )
            if not bool(torch.isfinite(delta).all()):
                raise EvaluationError(
                    f"{where} returned NaN or infinity. Check the experts for extreme values, or "
                    "leave out the expert or the transform."
                )
        return outputs

    def _parts(self, name: str) -> Iterator[DeltaInputs]:
        """Yield the linear maps of one tensor in base and experts."""
        base = self.base.read(name).float()
        deltas = [_task_vector(expert, name, base) for expert in self.experts]
        columns = [self._layout.split(name, tensor) for tensor in (base, *deltas)]
        known = [
            self._layout.split_factors(name, read_factors(expert, name), self.touched[name])
            for expert in self.experts
        ]
        for index, (first, *others) in enumerate(zip(*columns, strict=True)):
            factors = tuple(parts[index] for parts in known)
            if all(part is None for part in factors):
                factors = ()
            yield DeltaInputs(name, first, tuple(others), self._n_layers, factors)

    @cached_property
    def survey(self) -> FloatArray | None:
        """What the transform knows of the whole model; None unless it asks for that."""
        if not self.transform.needs_survey:
            return None
        found = self._entry.read(SURVEY)
        if found is not None and found.keys() == {"survey"}:
            stored: FloatArray = found["survey"].numpy()
            return stored
        parts = (part for name in self.touched for part in self._parts(name))
        survey = np.ascontiguousarray(self.transform.survey(parts), dtype=np.float64)
        self._entry.write(SURVEY, {"survey": torch.from_numpy(survey)})
        return survey


def _task_vector(expert: TensorSource, name: str, base: Tensor) -> Tensor:
    exact = expert.exact_delta(name)
    return expert.read(name).float() - base if exact is None else exact.float()
