"""VirtualSource: a model that exists only as cached task vectors over a base.

Satisfies `TensorSource`, so that every merge method mixes it like a model on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from evomerge.core.model_space import SourceHeader, TensorSpec
from evomerge.core.recipe import canonical_json
from evomerge.errors import SourceError, nearest
from evomerge.merging.transform_run import TransformRun


class VirtualSource:
    """One of the V models that a transform makes.

    Tensors in which an expert differs from the base are float32, base + task vector; the others
    are the base's own. Task vectors the cache does not hold are computed when they are read.

    Attributes:
        id: Name of the source in recipes.
        run: The transform over base and experts.
        output: Which of its V results this is.
    """

    def __init__(self, id: str, run: TransformRun, output: int) -> None:
        """Args: id: name in recipes; run: the transform; output: index of the result."""
        self.id = id
        self.run = run
        self.output = output
        self._digest = _hash("virtual:" + canonical_json({**run.parts, "output": output}))
        self._header = self._make_header()

    @property
    def digest(self) -> str:
        """Address of the content: transform, version, parameters, models and which result."""
        return self._digest

    def header(self) -> SourceHeader:
        """Return the base's header, touched tensors as F32 with digests of their own."""
        return self._header

    def read(self, name: str) -> Tensor:
        """Return one tensor: float32 base + task vector where touched, else the base's.

        Raises:
            SourceError: There is no such tensor.
        """
        base = self.run.base.read(name)
        delta = self._delta(name)
        return base if delta is None else base.float() + delta

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,).

        Raises:
            SourceError: There is no such tensor.
            ValueError: The range does not lie inside the tensor.
        """
        base = self.run.base.read_range(name, start, stop)
        delta = self._delta(name)
        return base if delta is None else base.float() + delta.reshape(-1)[start:stop]

    def exact_delta(self, name: str) -> Tensor | None:
        """Return the float32 task vector, a view of the cache's file; None where untouched.

        Raises:
            SourceError: There is no such tensor.
        """
        return self._delta(name)

    def _delta(self, name: str) -> Tensor | None:
        stored = self._header.tied.get(name, name)
        if stored not in self._header.tensors:
            raise SourceError(
                f"{self.id}: has no tensor {name!r}.{nearest(name, self._header.tensors)} "
                "Check that all models are of one architecture."
            )
        return self.run.deltas(stored)[self.output] if stored in self.run.touched else None

    def _make_header(self) -> SourceHeader:
        base, run = self.run.base.header(), self.run
        touched = set(run.touched)
        tensors, digests = dict(base.tensors), dict(base.digests)
        tied = dict(base.tied)
        for alias, target in base.tied.items():
            # An expert that stores its own head unties the transform's head, too.
            if run.space.untied and {alias, target} & touched:
                del tied[alias]
                tensors[alias] = replace(base.tensors[target], name=alias)
                digests[alias] = base.digests[target]
        for name in run.touched:
            tensors[name] = TensorSpec(name, "F32", tensors[name].shape)
            digests[name] = _hash(f"{self._digest}:{name}")
        return SourceHeader(self.id, base.architecture, tensors, digests, tied)


def virtual_sources(run: TransformRun, ids: Sequence[str]) -> tuple[VirtualSource, ...]:
    """Return the (V,) virtual sources of a transform.

    Args:
        run: The transform over base and experts.
        ids: (V,) their names.
    """
    return tuple(
        VirtualSource(id, run, output) for id, output in zip(ids, range(run.n_outputs), strict=True)
    )


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
