"""Which linear maps a stored tensor consists of: fused projections, stacks of experts, kernels.

Files hold several maps in one tensor, and a few models store them inputs first. Methods that look
at singular values or columns must see each map by itself, outputs first.

Shape letters: m rows (outputs), n columns (inputs), X experts of a stack, G groups of rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.low_rank import LowRank

_STEM = re.compile(r"\.(?:weight|bias)$")
_QKV = re.compile(r"(?:^|\.)(?:c_attn|qkv_proj|qkv|query_key_value|[Ww]qkv|in_proj_weight)$")
_GATE_UP = re.compile(r"(?:^|\.)(?:gate_up_proj|Wi|experts\.input_linear|moe\.input_linear)$")
_STACK = re.compile(r"(?:^|\.)(?:experts?|moe)\.\w+$")
_STACKED_BIAS = re.compile(r"(?:^|\.)experts\.\w+(?:_bias|\.bias)$")
# Conv1D of transformers: GPT, GPT-2 and their kin keep these as (inputs, outputs).
_CONV1D = re.compile(r"(?:^|\.)(?:c_attn|c_proj|c_fc|q_attn)\.weight$")
# Query, key and value rows of each group of heads lie together.
_GROUPED = (
    "bloom", "falcon", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "internlm2", "persimmon",
)  # fmt: skip
# (X, n, m) in the files.
_INPUTS_FIRST_STACKS = ("aria", "aria_text", "gpt_oss", "llama4", "llama4_text", "qwen3_vl_moe")

Rows = slice | Tensor


@dataclass(frozen=True)
class Attention:
    """The shape of a model's attention, from its config.json.

    Attributes:
        model_type: `model_type` of that config.
        heads: Query heads.
        kv_heads: Key (and value) heads.
        head_dim: Rows of one head.
    """

    model_type: str
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Attention | None:
        """Return what one config, or a nested part of one, says; None when it says too little."""
        heads = _number(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
        width = _number(config, "hidden_size", "n_embd", "d_model", "embed_dim")
        head_dim = _number(config, "head_dim") or (width // heads if heads else 0)
        if not heads or not head_dim:
            return None
        kind = str(config.get("model_type", ""))
        names = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
        kv_heads = _number(config, *names) or heads
        if kind in ("falcon", "gpt_bigcode") and not config.get("new_decoder_architecture"):
            kv_heads = 1 if config.get("multi_query", True) else heads
        return cls(kind, heads, kv_heads, head_dim)

    def blocks(self, n_rows: int) -> tuple[Rows, ...] | None:
        """Return the rows of query, key and value of a fused projection, None if it is not one."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if query + 2 * key != n_rows:
            return None
        if self.model_type == "codegen" and self.heads % 4 == 0:
            return _grouped_rows(4, (query // 4,) * 3)  # written for four tensor-parallel shards
        if self.model_type in _GROUPED and self.heads % self.kv_heads == 0:
            return _grouped_rows(
                self.kv_heads, (query // self.kv_heads, self.head_dim, self.head_dim)
            )
        return _grouped_rows(1, (query, key, key))


@dataclass(frozen=True)
class BlockLayout:
    """How the tensors of one model divide into linear maps.

    A fused projection whose layout cannot be told stays one matrix.

    Attributes:
        attentions: What config.json says, its nested parts (text, vision) included.
        model_types: Every `model_type` in it.
        has_conv1d: Matrices named like GPT-2's are stored inputs first.
    """

    attentions: tuple[Attention, ...] = ()
    model_types: tuple[str, ...] = ()
    has_conv1d: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> BlockLayout:
        """Return the layout of a model.

        Args:
            config: Parsed config.json; {} when there is none.
            shapes: Tensor name -> shape, as stored.
        """
        parts = [config, *(value for value in config.values() if isinstance(value, Mapping))]
        found = [Attention.read(part) for part in parts]
        kinds = {str(part["model_type"]) for part in parts if "model_type" in part}
        # A fused projection has three outputs per input (GPT-BigCode has a Linear of that name).
        has_conv1d = any(
            name.endswith("c_attn.weight") and len(shape) == 2 and shape[1] == 3 * shape[0]
            for name, shape in shapes.items()
        )
        attentions = dict.fromkeys(attention for attention in found if attention is not None)
        return cls(tuple(attentions), tuple(sorted(kinds)), has_conv1d)

    def describe(self) -> dict[str, object]:
        """Return everything the division depends on, JSON-ready; part of cache keys."""
        return {
            "attentions": [
                [item.model_type, item.heads, item.kv_heads, item.head_dim]
                for item in self.attentions
            ],
            "model_types": list(self.model_types),
            "has_conv1d": self.has_conv1d,
        }

    def split(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the (m, n) maps of a tensor, or its vectors, in a fixed order.

        Args:
            name: Its name in the files.
            tensor: Any shape; at most one axis comes back as it is.
        """
        return tuple(view[rows].contiguous() for view, rows in self._pieces(name, tensor))

    def split_factors(
        self, name: str, factors: LowRank | None, shape: tuple[int, ...]
    ) -> tuple[LowRank | None, ...]:
        """Return the low-rank products of the parts that `split` returns, None where unknown.

        Args:
            name: The tensor's name.
            factors: The whole tensor as a product, None when it is not known as one.
            shape: Its shape.
        """
        rows = [rows for _, rows in self._pieces(name, torch.empty(shape, device="meta"))]
        if factors is None or len(shape) != 2 or any(not _is_run(part) for part in rows):
            return (None,) * len(rows)
        if self._is_turned(name):
            factors = factors.transposed()
        n_rows = factors.shape[0]
        return tuple(factors.rows(*part.indices(n_rows)[:2]) for part in rows)

    def join(self, name: str, parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        """Return the float32 tensor of this shape that `split` divides into `parts`."""
        whole = torch.empty(shape, dtype=torch.float32)
        for (view, rows), part in zip(self._pieces(name, whole), parts, strict=True):
            view[rows] = part
        return whole

    def _pieces(self, name: str, tensor: Tensor) -> Iterator[tuple[Tensor, Any]]:
        """Yield (view, which of its rows); a view without axes has all of them."""
        for view in self._views(name, tensor):
            if view.dim() < 2:
                yield view, ...
                continue
            for rows in self._rows(name, view.shape[0], view.shape[1]):
                yield view, rows

    def _views(self, name: str, tensor: Tensor) -> Iterator[Tensor]:
        if tensor.dim() == 2 and _STACKED_BIAS.search(name):
            yield from tensor
        elif tensor.dim() == 3 and _STACK.search(_STEM.sub("", name)):
            is_turned = any(kind in _INPUTS_FIRST_STACKS for kind in self.model_types)
            yield from tensor.transpose(1, 2) if is_turned else tensor
        elif tensor.dim() > 2:
            yield tensor.view(tensor.shape[0], -1)
        elif tensor.dim() == 2 and self._is_turned(name):
            yield tensor.T
        else:
            yield tensor

    def _is_turned(self, name: str) -> bool:
        return self.has_conv1d and _CONV1D.search(name) is not None

    def _rows(self, name: str, n_rows: int, n_columns: int) -> tuple[Rows, ...]:
        stem = _STEM.sub("", name)
        if _GATE_UP.search(stem) and n_rows % 2 == 0:
            if "gpt_oss" in self.model_types:
                return slice(0, None, 2), slice(1, None, 2)
            return _grouped_rows(1, (n_rows // 2,) * 2)
        if _QKV.search(stem):
            for attention in self.attentions:
                found = attention.blocks(n_rows)
                if found is not None:
                    return found
            is_grouped = any(kind in _GROUPED for kind in self.model_types)
            if n_rows in (2 * n_columns, 3 * n_columns) and not is_grouped:
                return _grouped_rows(1, (n_columns,) * (n_rows // n_columns))
        return (slice(None),)


def _grouped_rows(n_groups: int, sizes: Sequence[int]) -> tuple[Rows, ...]:
    """Return the rows of each block when every one of G groups holds `sizes` rows of them."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    if n_groups == 1:
        return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    rows = torch.arange(n_groups * sum(sizes)).view(n_groups, -1)
    return tuple(
        rows[:, start : start + size].reshape(-1) for start, size in zip(starts, sizes, strict=True)
    )


def _number(config: Mapping[str, Any], *names: str) -> int:
    """Return the first positive whole number under one of these keys, 0 without any."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _is_run(rows: Any) -> bool:
    return isinstance(rows, slice) and rows.step in (None, 1)
