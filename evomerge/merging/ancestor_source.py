"""AncestorSource: the model of an earlier candidate's recipe, computed tensor by tensor in float32.

A recipe that names ancestors reads them like models on disk. Ancestors have ancestors: of those
that are not at hand the oldest are computed first, so a lineage may be as long as it likes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.core.ancestry import is_ancestor, oldest_first
from evomerge.core.model_space import ModelSpace, SourceHeader, SpaceTensor, TensorSpec
from evomerge.core.noise import noise_seed
from evomerge.core.recipe import Recipe
from evomerge.errors import EvaluationError, SourceError, nearest
from evomerge.merging.ancestor_store import AncestorStore
from evomerge.merging.apart import empty_apart
from evomerge.merging.cached import layout_key
from evomerge.merging.fused import weighted_sum
from evomerge.merging.noise_source import NoiseSource, noise_digest
from evomerge.merging.plan import PIECE, check_ancestor, segments_of
from evomerge.merging.source import TensorSource, content_key

_VERSION = "ancestor-1"  # raise it whenever the computed numbers change


class AncestorSource:
    """One ancestor; satisfies `TensorSource`, with the merged tensors of a space."""

    def __init__(self, id: str, recipe: Recipe, family: _Family) -> None:
        """Args: id: ``ancestor:<digest>``; recipe: what computes it; family: computes tensors."""
        self.id = id
        self._recipe = recipe
        self._family = family
        self._last: Mapping[str, Tensor] = {}  # neighbours, which are read one after the other

    @property
    def digest(self) -> str:
        """Address of the content: the recipe, and all that it is computed from.

        Raises:
            ConfigError: A recipe does not fit the models, or is missing.
        """
        return self._family.digest(self.id, self._recipe)

    def header(self) -> SourceHeader:
        """Return names and shapes of the merged tensors, all F32."""
        shapes = {name: tensor.spec.shape for name, tensor in self._family.tensors.items()}
        specs = {name: TensorSpec(name, "F32", shape) for name, shape in shapes.items()}
        return SourceHeader(self.id, "", specs, {name: f"{self.digest}:{name}" for name in specs})

    def read(self, name: str) -> Tensor:
        """Return one tensor, float32; do not write to it.

        Raises:
            ConfigError: A recipe does not fit the models, or is missing.
            EvaluationError: An ancestor's tensor holds NaN or infinity.
            SourceError: There is no such tensor.
        """
        if name not in self._last:
            if name not in self._family.tensors:
                near = nearest(name, self._family.tensors)
                raise SourceError(f"{self.id}: has no tensor {name!r}.{near}")
            self._last = self._family.read(self.id, self._recipe, name)
        return self._last[name]

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,); see `read`."""
        return self.read(name).reshape(-1)[start:stop]

    def exact_delta(self, name: str) -> None:
        """Return None: an ancestor is no task vector."""


class _Family:
    """Computes ancestors from models, noise and each other."""

    def __init__(
        self, space: ModelSpace, sources: Mapping[str, TensorSource], store: AncestorStore
    ) -> None:
        self._space, self._store = space, store
        self._sources = dict(sources)  # and the noise that was needed so far
        self.tensors = {tensor.spec.name: tensor for tensor in space.merged}
        self._item_of = {
            tensor.spec.name: item
            for item in _items(space.merged, store.least_bytes)
            for tensor in item
        }

    def digest(self, id: str, recipe: Recipe) -> str:
        """Return the content digest of an ancestor, whose recipe and older ones are checked."""
        digests = self._store.digests
        if id not in digests:
            self._store.models = tuple(map(self._digest_of, self._space.sources))
            layout = layout_key(self._space)
            for name, part in {**recipe.closure(digests), id: recipe}.items():
                check_ancestor(part, self._space)
                of = [self._digest_of(source) for source in part.sources]
                text = "\n".join([_VERSION, layout, part.digest(), *of])
                digests[name] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return digests[id]

    def _digest_of(self, source: str) -> str:
        if noise_seed(source) is not None:
            return noise_digest(source)
        digests = self._store.digests
        if source not in digests:
            digests[source] = content_key(self._sources[source])
        return digests[source]

    def _source(self, name: str) -> TensorSource:
        if name not in self._sources:
            self._sources[name] = NoiseSource(name, self._space, self._store.noise)
        return self._sources[name]

    def read(self, id: str, recipe: Recipe, name: str) -> dict[str, Tensor]:
        """Return a tensor of an ancestor and its neighbours; what is made on the way is kept."""
        self.digest(id, recipe)
        item = self._item_of[name]
        made = self._read(id, recipe, item)
        return {tensor.spec.name: part for tensor, part in zip(item, made, strict=True)}

    def _read(self, id: str, recipe: Recipe, item: Sequence[SpaceTensor]) -> Sequence[Tensor]:
        store, digests, item_name = self._store, self._store.digests, item[0].spec.name
        shapes = [tensor.spec.shape for tensor in item]
        at_hand: dict[str, Sequence[Tensor]] = {}
        recipes = {id: recipe}

        def needs(ancestor: str) -> tuple[str, ...]:
            kept = store.find(digests[ancestor], item_name, shapes)
            if kept is not None:
                at_hand[ancestor] = kept
                return ()
            recipes.update(recipes[ancestor].ancestors)
            return recipes[ancestor].named

        order = [part for part in oldest_first([id], needs) if part not in at_hand]
        n_uses = Counter(needed for part in order for needed in recipes[part].named)
        for part in order:
            made = [
                self._compute(
                    recipes[part], tensor, {name: at_hand[name][i] for name in recipes[part].named}
                )
                for i, tensor in enumerate(item)
            ]
            at_hand[part] = store.keep(digests[part], item_name, made)
            for needed in recipes[part].named:
                n_uses[needed] -= 1
                if not n_uses[needed]:
                    del at_hand[needed]
        return at_hand[id]

    def _compute(
        self, recipe: Recipe, tensor: SpaceTensor, ancestors: Mapping[str, Tensor]
    ) -> Tensor:
        name = tensor.spec.name
        made = empty_apart(tensor.spec.shape, torch.float32, torch.device("cpu"))
        flat, is_finite = made.view(-1), True
        breaks = np.array([0, self._space.n_elements]) if recipe.breaks is None else recipe.breaks
        for row, start, stop in segments_of(tensor, breaks, longest=PIECE):
            terms: list[tuple[float, Tensor]] = []
            for source, weight in zip(
                recipe.sources, recipe.params["weights"][row].tolist(), strict=True
            ):
                if weight == 0.0:
                    continue
                if is_ancestor(source):
                    terms.append((weight, ancestors[source].reshape(-1)[start:stop]))
                else:
                    terms.append((weight, self._source(source).read_range(name, start, stop)))
            is_finite &= weighted_sum(terms, flat[start:stop])
        if not is_finite and not bool(torch.isfinite(made).all()):
            raise EvaluationError(f"{name}: an ancestor's tensor holds NaN or infinity")
        return made


def _items(tensors: Sequence[SpaceTensor], least_bytes: int) -> list[list[SpaceTensor]]:
    """Return neighbouring tensors together, at least `least_bytes` of float32 where there are."""
    items: list[list[SpaceTensor]] = [[]]
    n_bytes = 0
    for tensor in tensors:
        if n_bytes >= least_bytes:
            items.append([])
            n_bytes = 0
        items[-1].append(tensor)
        n_bytes += 4 * tensor.spec.n_elements
    if n_bytes < least_bytes and len(items) > 1:
        last = items.pop()
        items[-1] += last
    return items


def with_made(
    sources: Mapping[str, TensorSource], recipe: Recipe, space: ModelSpace, store: AncestorStore
) -> Mapping[str, TensorSource]:
    """Return sources by id, the noise and the ancestors that a recipe names among them.

    Args:
        sources: The models.
        recipe: What is to be computed.
        space: The aligned models.
        store: What is known of ancestors over these models.
    """
    noise = [name for name in recipe.sources if noise_seed(name) is not None]
    if not noise and not recipe.ancestors:
        return sources
    family = _Family(space, sources, store)
    return {
        **sources,
        **{name: NoiseSource(name, space, store.noise) for name in noise},
        **{name: AncestorSource(name, part, family) for name, part in recipe.ancestors.items()},
    }
