"""Lining up tensor names: encoders are published bare (`encoder.…`), their fine-tunes are not.

transformers saves a model with a head under a prefix (`bert.encoder.…`) and the same model
without a head plainly, and loads either into both. A merge has to see through that too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from evomerge.core.model_space import SourceHeader
from evomerge.storage.source_like import SourceLike


def line_up_names(source: SourceLike, donor: SourceLike) -> SourceLike:
    """Return `source` under the donor's tensor names; itself when it has them already.

    Tried are taking the first component off the source's names, and putting one of the donor's
    first components before them; what finds most of the donor's names wins. Names without a
    counterpart, such as a classifier's, stay as they are.
    """
    header, wanted = source.header(), _names(donor.header())
    own = _names(header)
    best: Mapping[str, str] = {}
    for rename in (*map(_without, _roots(own)), *map(_below, _roots(wanted))):
        found = {name: rename(name) for name in sorted(own)}
        taken = {old: new for old, new in found.items() if new in wanted and new not in own}
        # A name that already fits stays, and no two may become one.
        taken = {old: new for old, new in taken.items() if old not in wanted}
        if len(taken) > len(best) and len(set(taken.values())) == len(taken):
            best = taken
    return Renamed(source, best) if best else source


class Renamed:
    """A source some of whose tensors have other names.

    Attributes:
        id: Name of the source in recipes.
    """

    def __init__(self, source: SourceLike, new_names: Mapping[str, str]) -> None:
        """Args: new_names: name in the source's files -> name to use; others stay."""
        self.id = source.id
        self._source = source
        self._new = dict(new_names)
        self._old = {new: old for old, new in new_names.items()}

    @property
    def digest(self) -> str:
        """Content digest of the source as it is stored."""
        return self._source.digest

    def header(self) -> SourceHeader:
        """Return the source's header under the new names."""
        header = self._source.header()
        tensors = {
            self._shown(name): replace(spec, name=self._shown(name))
            for name, spec in header.tensors.items()
        }
        digests = {self._shown(name): digest for name, digest in header.digests.items()}
        tied = {self._shown(alias): self._shown(target) for alias, target in header.tied.items()}
        return SourceHeader(header.id, header.architecture, tensors, digests, tied)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        return self._source.read(self._stored(name))

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,)."""
        return self._source.read_range(self._stored(name), start, stop)

    def exact_delta(self, name: str) -> Tensor | None:
        """Return the source's exact task vector, None when it knows none."""
        return self._source.exact_delta(self._stored(name))

    def factors(self, name: str) -> tuple[Tensor, Tensor, bool] | None:
        """Return the factors of the exact task vector, None when it knows none."""
        return self._source.factors(self._stored(name))

    def _shown(self, name: str) -> str:
        return self._new.get(name, name)

    def _stored(self, name: str) -> str:
        return self._old.get(name, name)


def _names(header: SourceHeader) -> set[str]:
    return {*header.tensors, *header.tied}


def _roots(names: set[str]) -> list[str]:
    return sorted({name.partition(".")[0] for name in names})


def _without(root: str) -> Callable[[str], str]:
    return lambda name: name.removeprefix(f"{root}.")


def _below(root: str) -> Callable[[str], str]:
    return lambda name: f"{root}.{name}"
