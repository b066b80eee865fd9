"""LoraConfig: the parts of PEFT's adapter_config.json that change the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, TypeVar

from evomerge.errors import SourceError
from evomerge.storage.untrusted_files import contained_file, read_json_object

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"

_Value = TypeVar("_Value", int, float)

# Initialisations that also change the base weights: B @ A is not the whole task vector.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REFUSED_FLAGS: Mapping[str, str] = {
    "use_dora": "DoRA rescales whole columns, so its change is not a low-rank product",
    "lora_bias": "biases of the factors are not supported",
    "layer_replication": "replicated layers change the architecture",
    "target_parameters": "adapters on bare parameters are not supported",
    "alora_invocation_tokens": "the adapter is active for some tokens only",
    "use_qalora": "QA-LoRA pools its inputs, so its change is not a low-rank product",
}
_MERGE_FIRST = "Merge it into its base with PEFT (merge_and_unload) and give the full model."
# A quantified group, as in (a+)+, can make a regular expression run for ever.
_QUANTIFIED_GROUP = re.compile(r"\)[*+{?]")


@dataclass(frozen=True)
class LoraConfig:
    """How one adapter scales its products.

    Attributes:
        rank: Default rank r.
        alpha: Default lora_alpha.
        rank_pattern: Regular expression over the module's path -> rank.
        alpha_pattern: Regular expression over the module's path -> lora_alpha.
        use_rslora: Scale by alpha / sqrt(r) instead of alpha / r.
        fan_in_fan_out: The base stores (in, out) matrices (GPT-2's Conv1D).
        modules_to_save: Names of modules that are stored whole.
        keeps_tying: A tied head follows the adapted embedding (`ensure_weight_tying`).
        path: adapter_config.json, for messages.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    fan_in_fan_out: bool
    modules_to_save: tuple[str, ...]
    keeps_tying: bool
    path: Path

    def scale(self, module: str, rank: int) -> float:
        """Return what B @ A of `module` is multiplied by; `rank` is the stored A's.

        Raises:
            SourceError: `rank` is not what the config says for this module.

        Source: Hu et al. 2022, arXiv:2106.09685; rank-stabilised: arXiv:2312.03732.
        """
        expected = _by_pattern(self.rank_pattern, module, self.rank)
        if rank != expected:
            raise SourceError(
                f"{self.path}: rank of {module} is {expected} in the config and {rank} in the "
                "weights. Use the config that was saved with these weights."
            )
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / sqrt(rank) if self.use_rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Return whether `module` lies in one of `modules_to_save`."""
        path = f".{module}."
        return any(f".{name}." in path for name in self.modules_to_save)


def parse_lora_config(raw: Mapping[str, Any], path: Path) -> LoraConfig:
    """Return the adapter's config.

    Raises:
        SourceError: Not plain LoRA, or a value is missing or malformed.
    """
    kind = raw.get("peft_type", "LORA")
    if kind != "LORA":
        raise SourceError(f"{path}: peft_type is {kind!r:.40}, expected 'LORA'. {_MERGE_FIRST}")
    for key, reason in _REFUSED_FLAGS.items():
        if raw.get(key):
            raise SourceError(f"{path}: {key} is set: {reason}. {_MERGE_FIRST}")
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise SourceError(
            f"{path}: init_lora_weights is {init!r:.40}, which changed the base weights too. Save "
            "the adapter with path_initial_model_for_weight_conversion, or merge it with PEFT."
        )
    if raw.get("bias", "none") not in ("none", "all", "lora_only"):
        raise SourceError(
            f"{path}: bias is {raw['bias']!r:.40}, expected none, all or lora_only. Correct it."
        )
    modules = raw.get("modules_to_save") or []
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise SourceError(f"{path}: modules_to_save must be a list of names. Correct it.")
    alphas = _patterns(raw, "alpha_pattern", path)
    ranks = _patterns(raw, "rank_pattern", path)
    return LoraConfig(
        rank=_rank(raw.get("r"), "r", path),
        alpha=_number(raw.get("lora_alpha"), "lora_alpha", path),
        rank_pattern={key: _rank(n, f"rank_pattern.{key}", path) for key, n in ranks.items()},
        alpha_pattern={key: _number(n, f"alpha_pattern.{key}", path) for key, n in alphas.items()},
        use_rslora=bool(raw.get("use_rslora")),
        fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        modules_to_save=tuple(modules),
        keeps_tying=bool(raw.get("ensure_weight_tying")),
        path=path,
    )


def adapter_base_name(folder: Path) -> str:
    """Return `base_model_name_or_path` of an adapter folder, "" when it is not recorded.

    Raises:
        SourceError: adapter_config.json is missing or malformed.
    """
    raw = read_json_object(contained_file(folder, ADAPTER_CONFIG_FILE))
    return str(raw.get("base_model_name_or_path") or "")


def no_adapter(path: Path) -> str:
    """Return why a folder without adapter weights is refused."""
    pickled = path / "adapter_model.bin"
    if pickled.exists():
        return (
            f"{pickled}: pickled weights can run code when loaded. Load the adapter with PEFT "
            "where you trust it and call save_pretrained, which writes safetensors."
        )
    return f"{path}: has no {ADAPTER_FILE}. Point at the folder that PEFT's save_pretrained wrote."


def _by_pattern(patterns: Mapping[str, _Value], module: str, default: _Value) -> _Value:
    """Return the value of the first pattern that matches the end of the module's path."""
    for pattern, value in patterns.items():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", module):
            return value
    return default


def _patterns(raw: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    patterns = raw.get(key) or {}
    if not isinstance(patterns, dict):
        raise SourceError(f"{path}: {key} must map patterns to numbers. Correct it.")
    for pattern in patterns:
        is_simple = (
            len(pattern) <= 256
            and sum(map(pattern.count, "*+{")) <= 3
            and not _QUANTIFIED_GROUP.search(pattern)
        )
        try:
            re.compile(pattern)
        except re.error:
            is_simple = False
        if not is_simple:
            raise SourceError(
                f"{path}: {key} has the pattern {pattern!r:.100}, which is not a simple regular "
                "expression. Write module names out."
            )
    return patterns


def _rank(value: Any, key: str, path: Path) -> int:
    if type(value) is not int or value < 1:
        raise SourceError(f"{path}: {key} is {value!r:.40}, expected a positive integer.")
    return value


def _number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise SourceError(f"{path}: {key} is {value!r:.40}, expected a finite number.")
    return float(value)
