"""What vLLM's engine does with prompts and weights, on a small transformers model; no misuse passes.

Kept from vLLM 0.32 and 0.33, where each was seen or read (`vllm/entrypoints/llm.py`,
`v1/engine/llm_engine.py`, `model_executor/model_loader/reload`): the names and arguments of the
calls; keys and values are kept by the tokens of a prompt, in blocks, whatever weights made them;
prompts whose log-probabilities are asked for do not read them; answers carry the weight version.
vLLM accepts missing and repeated tensors and casts dtypes in silence; here they are misuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from evomerge.evaluation.vllm_engine import Engine

BLOCK = 4


class MisuseError(BaseException):
    """The engine was called in a way that gives wrong answers; nothing may catch it."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    ignore_eos: bool = False
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class FakeLLM:
    """`vllm.LLM` in the caller's process.

    Attributes:
        strict: Whether scoring with something left of older weights is refused (as misuse), or
            gives the wrong answers that vLLM would give.
        hits: Blocks that were not computed again.
    """

    def __init__(self, folder, *, strict=True):
        self.model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.strict, self.hits = strict, 0
        self.installed = 0
        self.is_down = False
        self.model_config = SimpleNamespace(max_model_len=64)
        self._kv = {}
        self._to_reset = set()
        self._version = "default"
        self.llm_engine = SimpleNamespace(
            get_weight_version=lambda: self._version,
            set_weight_version=self._set_version,
            reset_encoder_cache=lambda: self._to_reset.discard("encoder cache"),
            engine_core=SimpleNamespace(shutdown=self._shut_down),
        )

    def engine(self):
        return Engine(self, SamplingParams)

    # Weights

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        if method != "reload_weights" or args or timeout is not None:
            raise MisuseError(f"{method} is not what reloads weights")
        (given,) = (kwargs or {}).items()
        if given[0] != "weights_iterator":
            raise MisuseError(f"{given[0]} is not an iterator of weights")
        self._to_reset = {"prefix cache", "encoder cache", "input cache", "weight version"}
        self._load(given[1])
        self.installed += 1
        return [None]

    def _load(self, weights):
        parameters = self.model.state_dict()
        seen, layers = set(), []
        for name, value in weights:
            if name not in parameters:
                raise ValueError(f"There is no module or parameter named {name!r}")
            parameter = parameters[name]
            if name in seen:
                raise MisuseError(f"{name} came twice")
            if value.shape != parameter.shape or value.dtype != parameter.dtype:
                raise MisuseError(f"{name} is {tuple(value.shape)} {value.dtype}")
            layer = next((part for part in name.split(".") if part.isdigit()), None)
            if layer is not None and layer in layers[:-1]:
                raise MisuseError(f"{name}: layer {layer} was finished, its buffers are gone")
            if layer is not None and layer not in layers:
                layers.append(layer)
            seen.add(name)
            parameter.copy_(value)
        if missing := parameters.keys() - seen:
            raise MisuseError(f"{min(missing)} never came; vLLM would leave it undefined")

    def _set_version(self, version):
        if self.strict and self._to_reset - {"weight version"}:
            raise MisuseError(f"{sorted(self._to_reset)} belong to the weights before")
        self._version = version
        self._to_reset.discard("weight version")

    def apply_model(self, func):
        return [func(_Fused(self.model))]

    # Caches

    def reset_prefix_cache(self, reset_running_requests=False, reset_connector=False):
        self._kv.clear()
        self._to_reset.discard("prefix cache")
        return True

    def reset_mm_cache(self):
        self._to_reset.discard("input cache")

    # Answers

    @torch.inference_mode()
    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        if self.is_down:
            raise MisuseError("the engine was shut down")
        if self.strict and self._to_reset:
            raise MisuseError(f"scored with {sorted(self._to_reset)} of older weights")
        if use_tqdm or len(sampling_params) != len(prompts):
            raise MisuseError("one setting for each prompt, and no progress bar")
        pairs = zip(prompts, sampling_params, strict=True)
        if any(prompt.keys() - {"prompt_token_ids", "cache_salt"} for prompt in prompts):
            raise MisuseError(f"{prompts[0].keys()} are not the keys of a prompt")
        return [
            self._answer(prompt["prompt_token_ids"], prompt.get("cache_salt"), params)
            for prompt, params in pairs
        ]

    def _answer(self, ids, salt, params):
        if len(ids) + params.max_tokens > self.model_config.max_model_len:
            raise ValueError(f"The prompt of {len(ids)} tokens is too long")
        if params.temperature != 0.0:
            raise MisuseError("a sampled answer is not repeatable")
        prompt_logprobs = None
        if params.prompt_logprobs is not None:
            output = self.model(torch.tensor([ids]), use_cache=True)
            table = output.logits[0].float().log_softmax(-1)
            prompt_logprobs = [None] + [
                {token: SimpleNamespace(logprob=float(table[t, token]))}
                for t, token in enumerate(ids[1:])
            ]
        else:
            output = self._prefill(ids, salt)
        tokens, logprobs = [], []
        while True:
            last = output.logits[0, -1].float().log_softmax(-1)
            token = int(last.argmax())
            tokens.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(last[token]))})
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if (
                len(tokens) == params.max_tokens
                or token in (params.stop_token_ids or ())
                or (not params.ignore_eos and token == self.tokenizer.eos_token_id)
                or any(stop in text for stop in params.stop or ())
            ):
                break
            output = self.model(
                torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
            )
        answer = SimpleNamespace(
            token_ids=tokens,
            text=text,
            logprobs=None if params.logprobs is None else logprobs,
            weight_versions=[SimpleNamespace(version=self._version, start=0, end=len(tokens))],
        )
        return SimpleNamespace(prompt_logprobs=prompt_logprobs, outputs=[answer])

    def _prefill(self, ids, salt):
        known = range(BLOCK * ((len(ids) - 1) // BLOCK), 0, -BLOCK)
        n = next((n for n in known if (salt, *ids[:n]) in self._kv), 0)
        self.hits += n // BLOCK
        cache = DynamicCache(self._kv[salt, *ids[:n]]) if n else DynamicCache()
        output = self.model(torch.tensor([ids[n:]]), past_key_values=cache, use_cache=True)
        for m in range(BLOCK, len(ids) + 1, BLOCK):
            layers = [
                (layer.keys[:, :, :m].clone(), layer.values[:, :, :m].clone())
                for layer in output.past_key_values.layers
            ]
            self._kv.setdefault((salt, *ids[:m]), layers)
        return output

    def _shut_down(self):
        self.is_down = True


class _Fused:
    """The model as vLLM lays it out: projections fused, norms as they are."""

    def __init__(self, model):
        self.model = model

    def named_parameters(self):
        for name, parameter in self.model.named_parameters():
            if "norm" in name:
                yield name, parameter
            if name.endswith("q_proj.weight"):
                yield name.replace("q_proj", "qkv_proj"), parameter.repeat(2, 1)
