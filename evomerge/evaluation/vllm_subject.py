"""VllmSubject: one vLLM engine whose weights every candidate replaces."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.tensor_names import order_key
from evomerge.errors import ConfigError, EvaluationError, ExecutorError, first_line
from evomerge.evaluation.batching import Limits, Tokens
from evomerge.evaluation.choices import ChoicePlan
from evomerge.evaluation.empty_model import empty_model
from evomerge.evaluation.generation import PromptPlan, until_end
from evomerge.evaluation.language import cut_at
from evomerge.evaluation.resident import Loaded
from evomerge.evaluation.sanity import ENOUGH
from evomerge.evaluation.text_model import TextModel
from evomerge.evaluation.vllm_engine import Engine, VllmEngine, start_engine
from evomerge.evaluation.vllm_feed import Expected, Feed

AUTO_CLASS = "AutoModelForCausalLM"
_WATCHED = 2 * ENOUGH  # requests of a call whose log-probabilities are looked at


class VllmSubject(TextModel):
    """A causal language model in vLLM, in this process.

    Keys and values that vLLM keeps belong to the weights that made them, so they are dropped
    after every installation. Answers carry the version of the weights they were made with; any
    other than that of the last installation ends the worker.

    Attributes:
        name: For messages; the worker sets "candidate 17".
    """

    def __init__(self, loaded: Loaded, engine: Engine, *, name: str) -> None:
        """Use `VllmSubject.load`.

        Args:
            loaded: The folder, its model without weights.
            engine: Running, with the folder's weights.
            name: For messages.
        """
        super().__init__(loaded, name)
        self._engine = engine
        self._expected = _expected(loaded)
        self._n_installed = 0
        self._version: str | None = engine.llm.llm_engine.get_weight_version()
        self._salt: str | None = None  # of prompts that share keys and values with no other
        self._n_salts = 0
        self._held = self._held_as_they_are()
        self._stop = weakref.finalize(self, _shut_down, engine.llm)

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: VllmEngine,
        *,
        device: str,
        dtype: torch.dtype,
        trust_remote_code: bool = False,
        name: str = "",
    ) -> VllmSubject:
        """Return a running engine with the model of a folder.

        Args:
            folder: Config, safetensors and the tokenizer's files.
            settings: Of the engine.
            device: Torch device name.
            dtype: Of the weights.
            trust_remote_code: Run code that comes with the model.
            name: For messages; the folder's name when empty.

        Raises:
            ConfigError: vLLM is not installed, not for this device, or cannot renew the model.
            SourceError: The folder cannot be loaded.
        """
        loaded = empty_model(folder, auto_class=AUTO_CLASS, trust_remote_code=trust_remote_code)
        if device == "cpu" and loaded.model.config.get_text_config().tie_word_embeddings:
            # Seen with vLLM 0.32: scores of candidates with the head of the first one.
            raise ConfigError(
                f"{folder}: ties its embeddings, of which vLLM on a CPU keeps a packed copy that "
                "no reload of weights renews; use a GPU, or leave `engine:` out"
            )
        engine = start_engine(
            settings,
            folder,
            dtype=str(dtype).removeprefix("torch."),
            device=device,
            trust_remote_code=trust_remote_code,
        )
        return cls(loaded, engine, name=name or folder.name)

    @property
    def max_tokens(self) -> int | None:
        """Most tokens the engine takes at once; it always generates one more."""
        return int(self._engine.llm.model_config.max_model_len) - 1

    def destinations(self) -> Mapping[str, Tensor]:
        """Return nothing: vLLM lays its parameters out itself."""
        return {}

    def held(self) -> Mapping[str, Tensor]:
        """Return {name in the files: parameter} of tensors that vLLM holds as they are."""
        if not self._held:
            return {}
        parameters = self._parameters()
        return {name: parameters[name] for name in self._held}

    def complete(self, names: Iterable[str]) -> None:
        """Return None: vLLM fuses tensors and reloads whole layers, so that all have to come."""

    def install(
        self, tensors: Iterable[tuple[str, Tensor]], *, unchanged: Collection[str] = frozenset()
    ) -> None:
        """Replace the weights by a candidate's and drop everything made with the old ones.

        Args:
            tensors: (name in the safetensors files, value): every tensor of the folder once, in
                the order of layers, so that vLLM never holds more than one layer twice.
            unchanged: Has to be empty.

        Raises:
            EvaluationError: A tensor is missing, unknown, came twice or does not fit. Nothing can
                be scored before another installation. The same holds for what `tensors` raises.
            ExecutorError: vLLM refused the weights, or kept something of the old ones.

        Source: vLLM 0.33, `Worker.reload_weights` and docs/training/layerwise; its caches are
        those that `LLMEngine` can reset.
        """
        if unchanged:
            raise EvaluationError(f"{self.name}: vLLM takes whole models, nothing stays unchanged")
        self._version = None
        feed = Feed(tensors, self._expected, self._loaded.read, self.name)
        llm = self._engine.llm
        try:
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(feed)})
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # whatever a model's loader raises
            feed_error = f"{type(error).__name__}: {first_line(error)}"
            raise ExecutorError(f"{self.name}: vLLM refused its weights ({feed_error})") from error
        feed.finish()
        self._drop_caches()
        self._n_installed += 1
        version = f"evomerge-{self._n_installed}"
        llm.llm_engine.set_weight_version(version)
        held = llm.llm_engine.get_weight_version()
        if held != version:
            raise ExecutorError(
                f"{self.name}: vLLM holds weights {held!r}, {version!r} were installed; does "
                "something else write to this engine?"
            )
        self._version = version

    def _drop_caches(self) -> None:
        """Forget keys, values and encoded inputs; they belong to the weights that made them."""
        llm = self._engine.llm
        llm.llm_engine.reset_encoder_cache()
        llm.reset_mm_cache()
        if not llm.reset_prefix_cache():
            raise ExecutorError(
                f"{self.name}: vLLM's prefix cache cannot be reset, so its next answers would mix "
                "two candidates; a request must have been left unfinished. Resume the run"
            )

    def require(self, auto_class: str, *, initialised: bool = True) -> None:  # noqa: ARG002
        """Check that a candidate is installed and that the evaluator asks a causal model."""
        self._check_clean()
        if auto_class != AUTO_CLASS:
            raise EvaluationError(f"{self.name}: vLLM holds an {AUTO_CLASS}, not an {auto_class}")

    def _check_clean(self) -> None:
        if self._version is None:
            raise EvaluationError(
                f"{self.name}: the weights in vLLM are not those of one candidate; install one "
                "successfully before scoring."
            )

    def score_options(
        self,
        plan: ChoicePlan,
        examples: Sequence[int],
        limits: Limits,  # noqa: ARG002 (vLLM makes the batches)
    ) -> list[FloatArray]:
        """Return n arrays, (options,) float64: the log-likelihood of every option, in nats."""
        flat = [
            (whole, start)
            for i in examples
            for whole, start in zip(plan.choices[i].options, plan.choices[i].starts, strict=True)
        ]
        found = iter(self.token_nll([w for w, _ in flat], starts=[s for _, s in flat]))
        return [np.array([-next(found).sum() for _ in plan.choices[i].options]) for i in examples]

    def token_nll(
        self,
        sequences: Sequence[Tokens],
        *,
        batch_size: int | None = None,  # noqa: ARG002 (vLLM makes the batches)
        starts: Sequence[int] | None = None,
        limits: Limits | None = None,  # noqa: ARG002
    ) -> list[FloatArray]:
        """Return the negative log-likelihood (nats) of every token but the first."""
        outputs = self._ask(sequences, max_tokens=1, prompt_logprobs=0)
        first = [1] * len(sequences) if starts is None else starts
        return [
            np.array([-output.prompt_logprobs[t][tokens[t]].logprob for t in range(s, len(tokens))])
            for output, tokens, s in zip(outputs, sequences, first, strict=True)
        ]

    def continue_prompts(
        self,
        plan: PromptPlan,
        examples: Sequence[int],
        *,
        limits: Limits,  # noqa: ARG002 (vLLM makes the batches)
        max_new_tokens: int,
        stop: Sequence[str] = (),
        cache: Literal["dynamic", "static"] = "dynamic",  # noqa: ARG002 (paged)
    ) -> list[str]:
        """Return the greedy continuation of prompts, cut before the first stop string."""
        prompts = [plan.prompts[i] for i in examples]
        outputs = self._ask(prompts, max_tokens=max_new_tokens, stop=list(stop) or None)
        texts = []
        for output in outputs:
            tokens = until_end(self, list(output.outputs[0].token_ids))
            texts.append(cut_at(self.tokenizer.decode(tokens, skip_special_tokens=True), stop))
        return texts

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Neither read nor leave keys and values of prompts, for the duration of a `with` block."""
        self._n_salts += 1
        self._salt = f"evomerge-{self._n_salts}"
        try:
            yield
        finally:
            self._salt = None

    def close(self) -> None:
        """End the engine and give its memory back."""
        self._version = None
        self._stop()

    def _ask(self, prompts: Sequence[Tokens], **settings: Any) -> list[Any]:
        """Return vLLM's greedy outputs, checked to come from the installed weights."""
        self._check_clean()
        if not prompts:
            return []
        greedy: dict[str, Any] = {
            "temperature": 0.0,
            "ignore_eos": True,  # the same end tokens as with transformers
            "stop_token_ids": list(self.end_token_ids) or None,
            **settings,
        }
        plain = self._engine.sampling(**greedy)
        watched = self._engine.sampling(**greedy, logprobs=0)
        salt = {} if self._salt is None else {"cache_salt": self._salt}
        outputs = self._engine.llm.generate(
            [{"prompt_token_ids": list(tokens), **salt} for tokens in prompts],
            [watched if i < _WATCHED else plain for i in range(len(prompts))],
            use_tqdm=False,
        )
        for output in outputs:
            versions = {span.version for span in output.outputs[0].weight_versions or ()}
            if versions != {self._version}:
                raise ExecutorError(
                    f"{self.name}: vLLM answered with weights {sorted(versions)}, "
                    f"{self._version!r} are installed; nothing it says can be trusted"
                )
        self._check_alive(prompts[:_WATCHED], outputs[:_WATCHED])
        return list(outputs)

    def _check_alive(self, prompts: Sequence[Tokens], outputs: Sequence[Any]) -> None:
        """Refuse a model whose next token is not finite, or the same after every prompt."""
        seen = {}
        for tokens, output in zip(prompts, outputs, strict=True):
            answer = output.outputs[0]
            token = answer.token_ids[0]
            seen[tuple(tokens)] = (token, answer.logprobs[0][token].logprob)
        if not np.isfinite([value for _, value in seen.values()]).all():
            raise EvaluationError(
                f"{self.name}: outputs of the first prompts are not finite; the merged weights "
                "are probably broken"
            )
        if len(seen) >= ENOUGH and len(set(seen.values())) == 1:
            raise EvaluationError(
                f"{self.name}: gives the same output for {len(seen)} different inputs; the merge "
                "has lost what its parents could do"
            )

    def _held_as_they_are(self) -> tuple[str, ...]:
        """Return the tensors that are a parameter of vLLM's as they are in the files.

        Found by comparing them: others are fused, padded or packed.
        """
        found = []
        for name, parameter in self._parameters().items():
            wanted = self._expected.get(name)
            if wanted == Expected(tuple(parameter.shape), parameter.dtype) and torch.equal(
                parameter, self._loaded.read(name).to(parameter.device)
            ):
                found.append(name)
        return tuple(found)

    def _parameters(self) -> dict[str, Tensor]:
        (found,) = self._engine.llm.apply_model(_named_parameters)
        return dict(found)


def _named_parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in model.named_parameters()}


def _shut_down(llm: Any) -> None:
    llm.llm_engine.engine_core.shutdown()
    gc.collect()


def _expected(loaded: Loaded) -> dict[str, Expected]:
    """Return what the folder's tensors are, in the order of layers, from its files' headers."""
    from safetensors import safe_open

    found: dict[str, Expected] = {}
    for path in dict.fromkeys(loaded.files.values()):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (no mapping)
                part = stored.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise ConfigError(
                        f"{path}: {name} is {part.get_dtype()}, which `engine: vllm` does not take"
                    )
                found[name] = Expected(tuple(part.get_shape()), _DTYPES[part.get_dtype()])
    return {name: found[name] for name in sorted(found, key=order_key)}


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
    "U8": torch.uint8,
}
