"""What a resident model knows of text: its tokenizer, special tokens and rows of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import EvaluationError
from evomerge.evaluation.resident import (
    Loaded,
    load_tokenizer,
    n_token_rows,
    tokenizer_digest,
)

_MOST_TEXTS = 200_000  # kept with their tokens

T = TypeVar("T")


class Vocabulary:
    """The tokenizer of a model's folder, checked against the model.

    Attributes:
        name: For messages.
        folder: Where the model was loaded from.
        model: The transformers model.
        n_token_rows: Token ids the model has an embedding for; None for models of images.
    """

    def __init__(self, loaded: Loaded, name: str) -> None:
        """Args: loaded: The model; its tokenizer is loaded on first use."""
        self.name = name
        self.folder = loaded.folder
        self.model = loaded.model
        self.n_token_rows = n_token_rows(loaded.model)
        self._loaded = loaded
        self._tokenizer: Any = None
        self._encoded: dict[str, tuple[int, ...]] = {}
        self._special_prefix: tuple[int, ...] | None = None
        self._prepared: dict[Hashable, Any] = {}

    @property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, loaded on first use; SourceError when there is none."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.folder, self._loaded.trust_remote_code)
        return self._tokenizer

    @property
    def max_tokens(self) -> int | None:
        """Most tokens the model takes at once; None when the config does not say."""
        return self._loaded.max_tokens

    @property
    def pad_token_id(self) -> int:
        """Token id used to fill batches; masked, so any id that the model has a row for does.

        Tokenizers often got a padding token behind the last row, and nobody resized the model.
        """
        config = self.model.config.get_text_config()
        known = (self.tokenizer.pad_token_id, getattr(config, "pad_token_id", None))
        for value in (*known, *self.end_token_ids):
            if value is not None and 0 <= value < (self.n_token_rows or value + 1):
                return int(value)
        return 0

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, from the generation config, else from the tokenizer."""
        settings = self._loaded.generation_eos
        ids = self.tokenizer.eos_token_id if settings is None else settings
        if ids is None:
            return ()
        return tuple(int(i) for i in ids) if isinstance(ids, list | tuple) else (int(ids),)

    @property
    def first_tokens(self) -> tuple[int, ...]:
        """Tokens to condition the first real token on: the usual prefix, else bos, else eos."""
        prefix = self.encode("")
        if prefix:
            return prefix
        tokenizer = self.tokenizer
        for value in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if value is not None:
                return (int(value),)
        return ()

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Return the token ids of `text`, no suffix.

        Args:
            text: What to encode.
            special: Put the tokenizer's usual prefix (bos) in front.
        """
        if self._special_prefix is None:
            plain = self.tokenizer.encode("a", add_special_tokens=False)
            full = self.tokenizer.encode("a", add_special_tokens=True)
            length = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
            self._special_prefix = tuple(full[:length])
        ids = self._encoded.get(text)
        if ids is None:
            if len(self._encoded) >= _MOST_TEXTS:
                self._encoded.clear()
            ids = tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()
            self.check_rows(ids)
            self._encoded[text] = ids
        return (*self._special_prefix, *ids) if special else ids

    def prepared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` gives, made once per key for the life of the subject.

        For what follows from data and tokenizer alone, such as tokens: weights change between
        calls. The key has to stand for all that `make` reads.
        """
        if key not in self._prepared:
            self._prepared[key] = make()
        found: T = self._prepared[key]
        return found

    @property
    def tokenizer_digest(self) -> str:
        """16 hex digits that stand for the tokenizer's files and its chat template."""
        return tokenizer_digest(self.folder)

    def check_rows(self, ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Refuse tokens without an embedding; on a GPU they would end the whole process."""
        rows = self.n_token_rows
        top = int(np.max(ids, initial=0)) if isinstance(ids, np.ndarray) else max(ids, default=0)
        if rows is not None and top >= rows:
            raise EvaluationError(
                f"{self.name}: token {self.tokenizer.convert_ids_to_tokens(int(top))!r} has row "
                f"{top}, but the model has {rows} rows; the tokenizer in {self.folder} has tokens "
                "that the model was never resized for."
            )
