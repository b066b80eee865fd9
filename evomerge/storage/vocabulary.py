"""Lining up token rows by token text, for models whose vocabularies differ.

Shapes: R base rows, S source rows, W width. Never the top-left submatrix: row 7 of one
model and row 7 of another are different words once a tokenizer was edited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.core.model_space import SourceHeader, TensorSpec
from evomerge.errors import ModelSpaceError, SourceError
from evomerge.storage.safetensors_file import TORCH_DTYPES
from evomerge.storage.source_like import SourceLike
from evomerge.storage.token_tensors import HEAD_BIASES, token_embedding, token_head
from evomerge.storage.untrusted_files import contained_file, read_json_object

MAX_TOKENIZER_BYTES = 64_000_000
_MAX_ROW = 2**31
_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Return token -> row from the folder's tokenizer files.

    Reads tokenizer.json (BPE, WordPiece, WordLevel, Unigram, and added tokens), else
    vocab.json with added_tokens.json, else vocab.txt.

    Returns:
        None when there is none of them, as in a folder with only a SentencePiece model.

    Raises:
        SourceError: A file is too large, malformed, or lies outside the folder.
    """
    if (folder / "tokenizer.json").exists():
        return _from_tokenizer(folder)
    if (folder / "vocab.json").exists():
        vocabulary = _rows(_read(folder, "vocab.json"), folder / "vocab.json")
        if (folder / "added_tokens.json").exists():
            added = folder / "added_tokens.json"
            vocabulary |= _rows(_read(folder, added.name), added)
        return vocabulary
    if (folder / "vocab.txt").exists():
        path = contained_file(folder, "vocab.txt")
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise SourceError(
                f"{folder / 'vocab.txt'}: is larger than {MAX_TOKENIZER_BYTES:,} bytes. "
                "Check that it belongs to the model."
            )
        try:
            lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{folder / 'vocab.txt'}: is not UTF-8 text ({error}). Download the file again."
            ) from None
        return {line.removesuffix("\r"): row for row, line in enumerate(lines)}
    return None


def row_map(
    base_vocabulary: Mapping[str, int], other_vocabulary: Mapping[str, int], n_rows: int
) -> NDArray[np.int64]:
    """Return for each base row the row of the same token in another model.

    Args:
        base_vocabulary: Token -> row of the base.
        other_vocabulary: Token -> row of the other model.
        n_rows: Rows of the base's embedding, padding included.

    Returns:
        (n_rows,) int64; -1 where the other model lacks the token and for padding rows.
    """
    rows = np.full(n_rows, -1, dtype=np.int64)
    pairs = np.array(
        [
            (row, other_vocabulary[token])
            for token, row in base_vocabulary.items()
            if row < n_rows and token in other_vocabulary
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    rows[pairs[:, 0]] = pairs[:, 1]
    return rows


def map_vocabulary(
    source: SourceLike,
    base: SourceLike,
    base_vocabulary: Mapping[str, int] | None,
    source_vocabulary: Mapping[str, int] | None,
) -> SourceLike:
    """Return `source` with its token rows in the base's order; itself when they are already.

    Unknown vocabularies (None) are taken for equal when the embeddings have as many rows.

    Raises:
        ModelSpaceError: The numbers of rows differ and a vocabulary is unknown.
    """
    n_source, n_base = (_n_token_rows(model.header()) for model in (source, base))
    if n_source is None or n_base is None:
        return source
    if source_vocabulary is None or base_vocabulary is None:
        if n_source != n_base:
            unknown = source if source_vocabulary is None else base
            raise ModelSpaceError(
                f"{source.id!r} has {n_source} token rows, {base.id!r} has {n_base}, and the "
                f"vocabulary of {unknown.id!r} is unknown. Put its tokenizer.json into its folder."
            )
        return source
    if n_source == n_base and dict(source_vocabulary) == dict(base_vocabulary):
        return source
    return VocabularyMapped(source, base, base_vocabulary, source_vocabulary)


@dataclass(frozen=True)
class _Mapped:
    """One tensor with a row per token: new spec, and source row of each row (-1: base's)."""

    spec: TensorSpec
    rows: NDArray[np.int64]
    digest: str


class VocabularyMapped:
    """A source whose embedding and head rows are gathered into the base's token order.

    A token that the source lacks, and every padding row, takes the base's row, so that its
    task vector is exactly zero; for that the dtype is promoted when the two differ.

    Attributes:
        id: Name of the source in recipes.
    """

    def __init__(
        self,
        source: SourceLike,
        base: SourceLike,
        base_vocabulary: Mapping[str, int],
        source_vocabulary: Mapping[str, int],
    ) -> None:
        """Wrap `source`; nothing is read until it is asked for.

        Args:
            source: The model whose rows are gathered.
            base: The model whose token order the result has.
            base_vocabulary: Token -> row of `base`.
            source_vocabulary: Token -> row of `source`.
        """
        self.id = source.id
        self._source = source
        self._base = base
        self._source_vocabulary = source_vocabulary
        self._base_vocabulary = base_vocabulary

    @property
    def digest(self) -> str:
        """Content digest: 32 hex digits over source, base and the row maps."""
        parts = [self._source.digest, self._base.digest]
        parts += [f"{name}={self._plan[name].digest}" for name in sorted(self._plan)]
        return _digest(*parts)

    def header(self) -> SourceHeader:
        """Return the source's header with the mapped tensors in the base's shape."""
        header = self._source.header()
        tensors = dict(header.tensors) | {name: m.spec for name, m in self._plan.items()}
        digests = dict(header.digests) | {name: m.digest for name, m in self._plan.items()}
        tied = {
            alias: target
            for alias, target in header.tied.items()
            if alias not in self._plan or alias in self._base.header().tied
        }
        return SourceHeader(header.id, header.architecture, tensors, digests, tied)

    def read(self, name: str) -> Tensor:
        """Return one tensor; rows are gathered where there is one per token."""
        stored = self._mapped_name(name)
        if stored is None:
            return self._source.read(name)
        spec = self._plan[stored].spec
        return self._gather(stored, 0, spec.shape[0]).reshape(spec.shape)

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,).

        Raises:
            ValueError: The range does not lie inside the tensor.
        """
        stored = self._mapped_name(name)
        if stored is None:
            return self._source.read_range(name, start, stop)
        spec = self._plan[stored].spec
        if not 0 <= start <= stop <= spec.n_elements:
            raise ValueError(
                f"{name}: range [{start}, {stop}) is outside its {spec.n_elements} elements"
            )
        width = max(prod(spec.shape[1:]), 1)
        first = start // width
        gathered = self._gather(stored, first, -(-stop // width)).flatten()
        return gathered[start - first * width : stop - first * width]

    def exact_delta(self, name: str) -> Tensor | None:
        """Return the source's exact task vector; None for mapped tensors."""
        return None if self._mapped_name(name) is not None else self._source.exact_delta(name)

    def factors(self, name: str) -> tuple[Tensor, Tensor, bool] | None:
        """Return the factors of the exact task vector; None for mapped tensors."""
        return None if self._mapped_name(name) is not None else self._source.factors(name)

    def _mapped_name(self, name: str) -> str | None:
        if name in self._plan:
            return name
        target = self._source.header().tied.get(name)
        return target if target in self._plan else None

    def _gather(self, name: str, first: int, last: int) -> Tensor:
        """Return rows [first, last) of a mapped tensor, in its new dtype."""
        mapped = self._plan[name]
        dtype = TORCH_DTYPES[mapped.spec.dtype]
        rows = torch.from_numpy(mapped.rows[first:last])
        gathered = self._base.read(name)[first:last].to(dtype, copy=True)
        found = rows >= 0
        gathered[found] = self._source.read(name)[rows[found]].to(dtype)
        return gathered

    @cached_property
    def _plan(self) -> dict[str, _Mapped]:
        """Tensors to map; lazily, since headers hash the files."""
        header, base = self._source.header(), self._base.header()
        embedding = token_embedding(header.tensors)
        if embedding is None or embedding not in base.tensors:
            raise ModelSpaceError(
                f"the token embedding of {self.id!r} is {embedding!r}, and {base.id!r} has no such "
                "tensor. Merge only fine-tunes of one base."
            )
        head = token_head(header.tensors, header.architecture)
        n_source = header.tensors[embedding].shape[0]
        n_base = base.tensors[embedding].shape[0]
        rows = row_map(self._base_vocabulary, self._source_vocabulary, n_base)
        rows[rows >= n_source] = -1  # a tokenizer may know tokens that have no row
        plan: dict[str, _Mapped] = {}
        for name in (embedding, head, *HEAD_BIASES):
            # A head that the source ties but the base stores apart needs the base's head rows.
            is_untied = name in header.tied and name in base.tensors and name not in base.tied
            if name not in header.tensors and not is_untied:
                continue
            own = header.tied.get(name, name) if name not in header.tensors else name
            theirs = base.tied.get(name, name) if name not in base.tensors else name
            if theirs not in base.tensors:
                continue
            old, new = header.tensors[own], base.tensors[theirs]
            if old.shape[:1] != (n_source,) or new.shape[:1] != (n_base,):
                continue
            if old.shape[1:] != new.shape[1:]:
                raise ModelSpaceError(
                    f"{name} is {old.shape} in {self.id!r}, {new.shape} in {base.id!r}: only the "
                    "number of rows may differ. Merge only fine-tunes of one base."
                )
            dtype = _DTYPE_NAMES[
                torch.promote_types(TORCH_DTYPES[old.dtype], TORCH_DTYPES[new.dtype])
            ]
            digest = _digest(header.digests[own], base.digests[theirs], rows.tobytes().hex(), dtype)
            plan[name] = _Mapped(TensorSpec(name, dtype, new.shape), rows, digest)
        return plan


def _n_token_rows(header: SourceHeader) -> int | None:
    embedding = token_embedding(header.tensors)
    return None if embedding is None else header.tensors[embedding].shape[0]


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(("vocabulary", *parts)).encode(), digest_size=16).hexdigest()


def _read(folder: Path, name: str) -> dict[str, Any]:
    return read_json_object(contained_file(folder, name), max_bytes=MAX_TOKENIZER_BYTES)


def _from_tokenizer(folder: Path) -> dict[str, int]:
    where = folder / "tokenizer.json"
    raw = _read(folder, where.name)
    model = raw.get("model")
    stored = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(stored, list):  # Unigram: [piece, score] in row order
        if not all(isinstance(entry, list) and len(entry) == 2 for entry in stored):
            raise _malformed(where, "model.vocab must hold [piece, score] pairs")
        stored = {str(entry[0]): row for row, entry in enumerate(stored)}
    if not isinstance(stored, dict):
        raise _malformed(where, "model.vocab is missing")
    vocabulary = _rows(stored, where)
    added = raw.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise _malformed(where, "added_tokens must be a list of objects")
    return vocabulary | _rows({str(t.get("content")): t.get("id") for t in added}, where)


def _rows(raw: Mapping[str, Any], where: Path) -> dict[str, int]:
    for token, row in raw.items():
        if type(row) is not int or not 0 <= row < _MAX_ROW:
            raise _malformed(where, f"row of token {token!r:.100} is {row!r:.40}, not a row number")
    return dict(raw)


def _malformed(where: Path, what: str) -> SourceError:
    return SourceError(f"{where}: {what}. Download the tokenizer again.")
