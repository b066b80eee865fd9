"""Subject: one resident transformers model, overwritten in place by every candidate.

Parameters keep their storage for the life of the subject, so that nothing is allocated per
candidate and captured CUDA graphs stay valid.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evomerge.core.arrays import FloatArray
from evomerge.errors import EvaluationError
from evomerge.evaluation import language
from evomerge.evaluation.installer import Installer, head_parameters
from evomerge.evaluation.resident import Loaded, load_model, load_tokenizer, n_token_rows


class Subject:
    """A model on its device, its tokenizer, and the scoring helpers evaluators use.

    Attributes:
        name: For messages; change it freely (the worker sets "candidate 17").
        folder: Where the model was loaded from.
        auto_class: The transformers Auto class it was loaded with.
        model: The transformers model, in eval mode, without gradients.
        device: Torch device it lives on.
        uninitialised: Names (in memory) of parameters the files do not have, such as a
            newly made classifier. Sorted; seeded, hence the same in every process.
        reloads: Whether `install` has to go through from_pretrained (slow) because the
            names of the files could not be mapped onto the parameters.
    """

    def __init__(self, loaded: Loaded, *, auto_class: str, name: str) -> None:
        """Use `Subject.load`."""
        self.name = name
        self.folder = loaded.folder
        self.auto_class = auto_class
        self.model = loaded.model
        self.device = torch.device(loaded.device)
        self.uninitialised: tuple[str, ...] = loaded.uninitialised
        self.reloads = loaded.weight_map is None
        self._loaded = loaded
        self._installer = Installer(loaded)
        self._dirty: str | None = None
        self._has_head = False
        self._tokenizer: Any = None
        self._encoded: dict[str, tuple[int, ...]] = {}
        self._special_prefix: tuple[int, ...] | None = None
        self._n_token_rows = n_token_rows(loaded.model)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        auto_class: str,
        device: str = "cpu",
        dtype: torch.dtype | str | None = None,
        trust_remote_code: bool = False,
        name: str = "",
        untied: bool = False,
    ) -> Subject:
        """Return the model of `folder`, resident on `device`.

        Args:
            folder: config.json, safetensors and, for text, the tokenizer's files.
            auto_class: "AutoModelForCausalLM", "AutoModelForSequenceClassification",
                "AutoModelForImageClassification" or "AutoModel".
            device: Torch device name.
            dtype: Parameter dtype or its name; None keeps the checkpoint's.
            trust_remote_code: Run code that comes with the model.
            name: For messages; the folder's name when empty.
            untied: Give output embeddings their own storage although the config ties them
                to the input embeddings (`ModelSpace.untied`).

        Raises:
            ConfigError: `auto_class` or `dtype` is not known.
            SourceError: transformers cannot load the folder.
        """
        loaded = load_model(
            Path(folder),
            auto_class=auto_class,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            untied=untied,
        )
        return cls(loaded, auto_class=auto_class, name=name or Path(folder).name)

    def destinations(self) -> Mapping[str, Tensor]:
        """Return {name in the safetensors files: parameter} for tensors that need no conversion.

        What `install` is given for such a name may be this very tensor, already overwritten.
        """
        return self._installer.destinations

    def complete(self, names: Iterable[str]) -> set[str] | None:
        """Return the tensors that have to be installed together with `names`; None for all."""
        return self._installer.complete(names)

    def install(
        self, tensors: Iterable[tuple[str, Tensor]], *, unchanged: Collection[str] = frozenset()
    ) -> None:
        """Overwrite parameters with a candidate's tensors; storages stay where they are.

        Names that are fused in memory are held until the last member of their group has
        arrived; members that never arrive keep the files' values. A tensor that the model
        does not use (an unused pooler) is skipped. Every name that an earlier call
        installed has to be there again, else a candidate would inherit weights from the
        one before it.

        Args:
            tensors: (name in the safetensors files, value), each name once, any order.
            unchanged: Names that keep the value an earlier call installed; see `complete`.

        Raises:
            EvaluationError: A name or shape does not fit the model, tied tensors differ, or
                a tensor is missing. The subject then is dirty: it refuses to score until an
                `install` succeeds. The same holds when the iterable itself raises.
        """
        if self._has_head:
            raise EvaluationError(f"{self.name}: cannot install weights inside `with_head`")
        self._dirty = "an install did not finish"
        written = self._installer.install(tensors, self.name, unchanged)
        self.uninitialised = tuple(n for n in self.uninitialised if n not in written)
        self._dirty = None

    @contextmanager
    def with_head(self, head: Path | None) -> Iterator[None]:
        """Swap in the parameters of a safetensors file for the duration of a `with` block.

        Args:
            head: Tensors named as in checkpoint files; the first axis may differ from the
                model's (another number of labels). None changes nothing.

        Raises:
            DataError: The file is missing or does not fit the model.
        """
        if head is None:
            yield
            return
        if self._has_head:
            raise EvaluationError(f"{self.name}: heads cannot be nested")
        swaps = head_parameters(self._loaded, Path(head))
        before = {
            target: (module, leaf, getattr(module, leaf), getattr(module, "out_features", None))
            for target, (module, leaf, _) in swaps.items()
        }
        uninitialised = self.uninitialised
        self._has_head = True
        try:
            for module, leaf, value in swaps.values():
                setattr(module, leaf, nn.Parameter(value, requires_grad=False))
                if leaf == "weight" and hasattr(module, "out_features"):
                    module.out_features = value.shape[0]
            self.uninitialised = tuple(n for n in uninitialised if n not in swaps)
            yield
        finally:
            for module, leaf, parameter, out_features in before.values():
                setattr(module, leaf, parameter)
                if out_features is not None:
                    module.out_features = out_features
            self.uninitialised = uninitialised
            self._has_head = False

    def require(self, auto_class: str, *, initialised: bool = True) -> None:
        """Check that the subject can be scored by an evaluator made for `auto_class`.

        Args:
            auto_class: The class it must have been loaded with.
            initialised: Whether every parameter must come from a file.

        Raises:
            EvaluationError: It is dirty, of another class, or has parameters that no file
                ever set.
        """
        self._check_clean()
        if self.auto_class != auto_class:
            raise EvaluationError(
                f"{self.name} was loaded with {self.auto_class}, this evaluator needs "
                f"{auto_class}; load a subject with that class."
            )
        if initialised and self.uninitialised:
            shown = ", ".join(self.uninitialised[:3])
            raise EvaluationError(
                f"{self.name}: {len(self.uninitialised)} parameters are in no file of "
                f"{self.folder} and would be random ({shown}); give the task a `head:` file "
                "that has them."
            )

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
            if value is not None and 0 <= value < (self._n_token_rows or value + 1):
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

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of `text` behind the tokenizer's usual prefix (bos), no suffix."""
        if self._special_prefix is None:
            plain = self.tokenizer.encode("a", add_special_tokens=False)
            full = self.tokenizer.encode("a", add_special_tokens=True)
            length = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
            self._special_prefix = tuple(full[:length])
        if text not in self._encoded:
            if len(self._encoded) >= 200_000:
                self._encoded.clear()
            ids = self.tokenizer.encode(text, add_special_tokens=False) if text else []
            self._check_rows(ids)
            self._encoded[text] = (*self._special_prefix, *ids)
        return self._encoded[text]

    def logits(self, batch: Mapping[str, Any]) -> NDArray[np.float32]:
        """Return the model's logits as float32.

        Args:
            batch: Forward argument -> array or tensor, batch first.

        Returns:
            (B, labels) or (B, T, V).

        Raises:
            EvaluationError: The subject is dirty or gives no logits.
        """
        with torch.inference_mode():
            return self.forward(batch).float().cpu().numpy()

    def option_logprobs(
        self,
        prompts: Sequence[str],
        options: Sequence[Sequence[str]],
        *,
        batch_size: int,
        normalise: language.Normalise = "none",
        max_length: int | None = None,
    ) -> FloatArray:
        """Return (N, most options) log-likelihoods; see `language.option_logprobs`."""
        self._check_clean()
        return language.option_logprobs(
            self,
            prompts,
            options,
            batch_size=batch_size,
            normalise=normalise,
            max_length=max_length,
        )

    def generate(
        self,
        prompts: Sequence[str],
        *,
        batch_size: int,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        max_length: int | None = None,
    ) -> list[str]:
        """Return the greedy continuation of every prompt; see `language.generate`."""
        self._check_clean()
        return language.generate(
            self,
            prompts,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            stop=stop,
            max_length=max_length,
        )

    def token_nll(
        self,
        sequences: Sequence[Sequence[int]],
        *,
        batch_size: int,
        starts: Sequence[int] | None = None,
    ) -> list[FloatArray]:
        """Return the negative log-likelihood (nats) of every token but the first.

        Args:
            sequences: N token sequences of at least two tokens.
            batch_size: Sequences per forward pass.
            starts: (N,) first token to score, at least 1; None: 1 everywhere.

        Returns:
            N arrays; the i-th is (len(sequences[i]) - starts[i],).
        """
        self._check_clean()
        first = [1] * len(sequences) if starts is None else starts
        found = language.token_logprobs(self, sequences, first, batch_size=batch_size)
        return [-values for values in found]

    def forward(self, batch: Mapping[str, Any], **options: Any) -> Tensor:
        """Return the logits tensor of one forward pass; `options` go to the model as they are."""
        self._check_clean()
        if "input_ids" in batch:
            self._check_rows(np.asarray(batch["input_ids"]).reshape(-1))
        inputs = {
            key: torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value).to(
                self.device
            )
            for key, value in batch.items()
        }
        for key, value in inputs.items():
            if value.is_floating_point():
                inputs[key] = value.to(self.model.dtype)
        logits = getattr(self.model(**inputs, **options), "logits", None)
        if logits is None:
            raise EvaluationError(f"{self.name}: {type(self.model).__name__} gives no logits")
        return logits

    def _check_rows(self, ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Refuse tokens without an embedding; on a GPU they would end the whole process."""
        rows = self._n_token_rows
        top = max(ids, default=0) if isinstance(ids, list) else int(np.max(ids, initial=0))
        if rows is not None and top >= rows:
            raise EvaluationError(
                f"{self.name}: token {self.tokenizer.convert_ids_to_tokens(int(top))!r} has row "
                f"{top}, but the model has {rows} rows; the tokenizer in {self.folder} has tokens "
                "that the model was never resized for."
            )

    def _check_clean(self) -> None:
        if self._dirty is not None:
            raise EvaluationError(
                f"{self.name}: the resident model is half-written ({self._dirty}); "
                "install a candidate successfully before scoring."
            )
