"""Where a tensor sits in a model, read off its name: layer index and kind.

Covers the name grammars of Llama, Qwen, Mistral, Gemma, Phi, GPT-2, GPT-NeoX, BERT, RoBERTa,
DistilBERT and ViT checkpoints; anything else falls back to "other".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")

# First match wins; patterns are tried on the name without ".weight" / ".bias".
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        # The parts of a larger head, its norm included.
        (
            "head",
            r"^(?:cls|lm_head|classifier|generator_predictions|discriminator_predictions)\."
            r"|^vocab_(?:transform|layer_norm|projector)$",
        ),
        # "router.layer" of DBRX, Granite and JetMoE, "router.classifier" of Switch, "gate.wg" of
        # Hunyuan, "mixer.gate" of Nemotron-H, "feed_forward.gate" of LFM2.
        (
            "router",
            r"(?:^|\.)(?:router(?:\.\w+)?|shared_expert_gate"
            r"|(?:mlp|block_sparse_moe|feed_forward|mixer)\.gate(?:\.wg)?)$",
        ),
        (
            "norm",
            r"(?i)(?:^|[._])(?:(?:input_|post_\w+_|pre_\w+_|final_|q_|k_|emb_|sa_|output_)?"
            r"(?:layer_?norm|rms_?norm|norm)(?:_?\w+)?|ln_?\w*)$",
        ),
        ("attn.qkv", r"(?:^|\.)(?:c_attn|qkv_proj|qkv|query_key_value|Wqkv)$"),
        (
            "attn.o",
            r"(?:^|\.)(?:o_proj|out_lin|out_proj|attn\.c_proj|attention\.dense"
            r"|attention\.output\.dense|attn\.proj)$",
        ),
        ("attn.q", r"(?:^|\.)(?:q_proj|query|q_lin)$"),
        ("attn.k", r"(?:^|\.)(?:k_proj|key|k_lin)$"),
        ("attn.v", r"(?:^|\.)(?:v_proj|value|v_lin)$"),
        ("mlp.gate_up", r"(?:^|\.)gate_up_proj$"),
        ("mlp.gate", r"(?:^|\.)(?:gate_proj|w1)$"),
        ("mlp.up", r"(?:^|\.)(?:up_proj|w3|fc1|c_fc|intermediate\.dense|dense_h_to_4h|lin1)$"),
        ("mlp.down", r"(?:^|\.)(?:down_proj|w2|fc2|mlp\.c_proj|output\.dense|dense_4h_to_h|lin2)$"),
        (
            "head",
            r"(?:^|\.)(?:lm_head|embed_out|classifier|score|qa_outputs|vocab_projector"
            r"|pre_classifier|pooler|pooler\.dense|classifier\.\w+|cls\..*|lm_head\..*)$",
        ),
        (
            "embed",
            r"(?i)(?:^|\.)(?:embed_tokens|wte|wpe|embed_in|cls_token|mask_token"
            r"|\w*embeddings?|embeddings\..*|\w*embed\w*)$",
        ),
    )
)


# "embeddings.LayerNorm" of BERT is a norm, but not the final one.
_STEM = re.compile(r"(?i)(?:^|[._])\w*embed\w*[._]")

Section = Literal["stem", "blocks", "tail"]


@dataclass(frozen=True)
class TensorPlace:
    """Layer index (None outside the blocks), kind and section of a tensor.

    Attributes:
        layer: Index of its block.
        kind: What it does: "embed", "attn.q", "norm", …
        section: "stem" before the blocks, "blocks", or "tail": final norm and head.
    """

    layer: int | None
    kind: str
    section: Section

    @property
    def label(self) -> str:
        """Text such as "layer.3.attn.q" or "embed"."""
        return self.kind if self.layer is None else f"layer.{self.layer}.{self.kind}"


@lru_cache(maxsize=1 << 16)  # a pure function, asked thrice per tensor and candidate
def place(name: str) -> TensorPlace:
    """Return where the tensor called `name` sits."""
    found = _LAYER.search(name)
    layer = int(found.group(1)) if found else None
    stem = re.sub(r"\.(?:weight|bias)$", "", name)
    inside = stem[found.end() :] if found else stem
    for kind, pattern in _KINDS:
        if layer is not None and kind in ("head", "embed"):
            continue
        if pattern.search(inside):
            return TensorPlace(layer, kind, _section(layer, kind, inside))
    return TensorPlace(layer, "other", _section(layer, "other", inside))


def _section(layer: int | None, kind: str, inside: str) -> Section:
    if layer is not None:
        return "blocks"
    is_tail = kind == "head" or (kind == "norm" and not _STEM.search(inside))
    return "tail" if is_tail else "stem"


def block_parts(name: str) -> tuple[str, int, str] | None:
    """Return what stands before, is, and follows the layer index; None outside the blocks.

    The index is that of `place`; an expert's index stays in what follows.
    """
    found = _LAYER.search(name)
    if found is None:
        return None
    return name[: found.start(1)], int(found.group(1)), name[found.end(1) :]


def count_layers(names: Iterable[str]) -> int:
    """Return the number of layers of the model with tensors of these names."""
    layers = (place(name).layer for name in names)
    return 1 + max((layer for layer in layers if layer is not None), default=-1)


def order_key(name: str) -> tuple[int, int, str]:
    """Return a sort key: embeddings and stem first, blocks in order, then final norm and head."""
    where = place(name)
    if where.layer is not None:
        return (1, where.layer, name)
    return (2 if where.section == "tail" else 0, 0, name)
