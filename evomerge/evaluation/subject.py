"""Subject: one resident transformers model, overwritten in place by every candidate.

Parameters keep their storage for the life of the subject, so that nothing is allocated per
candidate and captured CUDA graphs stay valid.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evomerge.core.arrays import FloatArray
from evomerge.errors import EvaluationError
from evomerge.evaluation.batching import Limits, TokenBudget, Tokens
from evomerge.evaluation.choices import ChoicePlan, can_share, choice_logprobs
from evomerge.evaluation.generation import PromptPlan, generate
from evomerge.evaluation.installer import Installer, head_parameters
from evomerge.evaluation.language import token_logprobs
from evomerge.evaluation.resident import Loaded, load_model
from evomerge.evaluation.text_model import TextModel


class Subject(TextModel):
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
        n_token_rows: Token ids the model has an embedding for; None for models of images.
        budget: Tokens a forward pass may hold, found as memory runs out.
    """

    def __init__(self, loaded: Loaded, *, auto_class: str, name: str) -> None:
        """Use `Subject.load`."""
        super().__init__(loaded, name)
        self.auto_class = auto_class
        self.device = torch.device(loaded.device)
        self.uninitialised: tuple[str, ...] = loaded.uninitialised
        self.reloads = loaded.weight_map is None
        self._installer = Installer(loaded)
        self._dirty: str | None = None
        self._has_head = False
        self.budget = TokenBudget(self.device, self.n_token_rows)
        self._shares_prefixes: bool | None = None

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
        spread: Mapping[int | str, int] | None = None,
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
            spread: Device number -> bytes, to divide the layers over several devices, `device`
                the first of them; needs accelerate.

        Raises:
            ConfigError: `auto_class` or `dtype` is not known, or the model does not fit.
            SourceError: transformers cannot load the folder.
        """
        loaded = load_model(
            Path(folder),
            auto_class=auto_class,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            untied=untied,
            spread=spread,
        )
        return cls(loaded, auto_class=auto_class, name=name or Path(folder).name)

    def destinations(self) -> Mapping[str, Tensor]:
        """Return {name in the safetensors files: parameter} for tensors that need no conversion.

        What `install` is given for such a name may be this very tensor, already overwritten.
        """
        return self._installer.destinations

    def held(self) -> Mapping[str, Tensor]:
        """Return {name in the safetensors files: parameter} of tensors that are held as they are.

        What is installed can be compared with what it should be by them.
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
                    module.out_features = value.shape[0]  # type: ignore[assignment]
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
        """Check that the subject can be scored by an evaluator made for `auto_class`."""
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
    def shares_prefixes(self) -> bool:
        """Whether tokens that texts begin with can be computed once; tried at first use."""
        if self._shares_prefixes is None:
            self._shares_prefixes = can_share(self)
        return bool(self._shares_prefixes)

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

    def score_options(
        self, plan: ChoicePlan, examples: Sequence[int], limits: Limits
    ) -> list[FloatArray]:
        """Return the log-likelihood of every option; see `TextModel` and `choices`."""
        self._check_clean()
        return choice_logprobs(self, plan, examples, limits)

    def continue_prompts(
        self,
        plan: PromptPlan,
        examples: Sequence[int],
        *,
        limits: Limits,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        cache: Literal["dynamic", "static"] = "dynamic",
    ) -> list[str]:
        """Return the greedy continuation of prompts; see `TextModel` and `generation`."""
        self._check_clean()
        return generate(
            self,
            plan,
            examples,
            limits=limits,
            max_new_tokens=max_new_tokens,
            stop=stop,
            cache=cache,
        )

    def token_nll(
        self,
        sequences: Sequence[Tokens],
        *,
        batch_size: int | None = None,
        starts: Sequence[int] | None = None,
        limits: Limits | None = None,
    ) -> list[FloatArray]:
        """Return the negative log-likelihood (nats) of every token but the first."""
        self._check_clean()
        first = [1] * len(sequences) if starts is None else starts
        limits = limits or Limits(rows=batch_size)
        return [-values for values in token_logprobs(self, sequences, first, limits=limits)]

    def forward(self, batch: Mapping[str, Any], **options: Any) -> Tensor:
        """Return the logits tensor of one forward pass; `options` go to the model as they are."""
        logits: Tensor | None = getattr(self._outputs(batch, options), "logits", None)
        if logits is None:
            raise EvaluationError(f"{self.name}: {type(self.model).__name__} gives no logits")
        return logits

    def hidden_states(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the (B, T, width) states after the last layer, in the model's dtype."""
        with torch.inference_mode():
            found = self._outputs(batch, {})
            states: Tensor | None = getattr(found, "last_hidden_state", None)
        if states is None:
            raise EvaluationError(f"{self.name}: {type(self.model).__name__} gives no states")
        return states

    def _outputs(self, batch: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        self._check_clean()
        if "input_ids" in batch:
            self.check_rows(np.asarray(batch["input_ids"]).reshape(-1))
        inputs = {
            key: torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value).to(
                self.device
            )
            for key, value in batch.items()
        }
        for key, value in inputs.items():
            if value.is_floating_point():
                inputs[key] = value.to(self.model.dtype)
        return self.model(**inputs, **options)

    def _check_clean(self) -> None:
        if self._dirty is not None:
            raise EvaluationError(
                f"{self.name}: the resident model is half-written ({self._dirty}); "
                "install a candidate successfully before scoring."
            )
