"""Which tensors have one row per token, and when the output head is the embedding.

Names are those in files, not those of modules in memory (transformers 5 renames some).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from evomerge.core.model_space import TensorSpec

# Most specific first: encoder-decoders store `shared` beside copies of it.
_EMBEDDINGS = (
    re.compile(r"(?:.*\.)?shared\.weight"),
    re.compile(r"(?:.*\.)?decoder\.embed_tokens\.weight"),
    re.compile(r"(?:.*\.)?(?:embed_tokens|tok_embeddings)\.weight"),
    re.compile(r"(?:.*\.)?(?:wte|embed_in|word_embeddings)\.weight"),
)

HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "lm_head.decoder.weight",
    "cls.predictions.decoder.weight",
    "vocab_projector.weight",
    "proj_out.weight",
    "language_model.lm_head.weight",
    "output.weight",
)
"""Names of output heads: Llama and GPT-2, GPT-NeoX, RoBERTa, BERT, DistilBERT, Whisper, …"""

HEAD_BIASES = (
    "lm_head.bias",
    "embed_out.bias",
    "lm_head.decoder.bias",
    "cls.predictions.bias",
    "cls.predictions.decoder.bias",
    "vocab_projector.bias",
)
"""Names of biases with one element per token."""

_HEAD_OF_FAMILY = (
    (re.compile(r"GPTNeoXFor"), "embed_out.weight"),
    (re.compile(r"(?:Roberta|XLMRoberta|Camembert)\w*ForMaskedLM"), "lm_head.decoder.weight"),
    (re.compile(r"DistilBertForMaskedLM"), "vocab_projector.weight"),
    (re.compile(r"BertFor(?:MaskedLM|PreTraining)"), "cls.predictions.decoder.weight"),
    (re.compile(r"WhisperFor"), "proj_out.weight"),
)
_LANGUAGE_MODEL = re.compile(
    r"\w+(?:ForCausalLM|LMHeadModel|ForConditionalGeneration|ForMaskedLM|ForPreTraining)"
)


def token_embedding(specs: Mapping[str, TensorSpec]) -> str | None:
    """Return the name of the (vocabulary, width) token embedding, None when there is none.

    None also when two tensors could be it, since guessing would tie the wrong one.
    """
    for pattern in _EMBEDDINGS:
        found = [name for name in specs if pattern.fullmatch(name) and len(specs[name].shape) == 2]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def token_head(specs: Mapping[str, TensorSpec], architecture: str) -> str:
    """Return the name of the output head: the one stored, else the one of the family."""
    for name in HEADS:
        if name in specs:
            return name
    for family, name in _HEAD_OF_FAMILY:
        if family.match(architecture):
            return name
    embedding = token_embedding(specs) or ""
    if embedding.startswith("language_model.model."):
        return "language_model.lm_head.weight"
    return "lm_head.weight"


def tied_names(
    specs: Mapping[str, TensorSpec],
    config: Mapping[str, Any],
    architecture: str,
    is_same: Callable[[str, str], bool],
) -> dict[str, str]:
    """Return head -> embedding when the model shares one tensor for both, else {}.

    A stored head counts as tied only when the config says so and its content equals the
    embedding's. Without `tie_word_embeddings` in the config the default depends on the
    model class (transformers 5); a language model that stores no head must then be tied.

    Args:
        specs: Tensors in the files.
        config: Parsed config.json; `text_config` is consulted when the key is absent.
        architecture: `architectures[0]`, "" when unknown.
        is_same: Whether two stored tensors have identical content; called at most once.
    """
    embedding = token_embedding(specs)
    if embedding is None:
        return {}
    head = token_head(specs, architecture)
    text_config = config.get("text_config")
    inner = text_config if isinstance(text_config, dict) else {}
    declared = config.get("tie_word_embeddings", inner.get("tie_word_embeddings"))
    if head not in specs:
        # A classifier's config may declare tying although it has no such head.
        has_head = not architecture or _LANGUAGE_MODEL.fullmatch(architecture) is not None
        is_tied = has_head and bool(architecture if declared is None else declared)
    else:
        is_tied = bool(declared) and head != embedding and is_same(head, embedding)
    return {head: embedding} if is_tied else {}
