"""Random two-layer models and a word tokenizer, saved as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
VOCABULARY = 262  # 256 bytes, four special tokens, two merges

DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "head_dim": 8,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 258,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 257,
    "eos_token_id": 257,
}
DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 258,
}
VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
}
DINO = {k: v for k, v in VIT.items() if k != "intermediate_size"} | {"use_swiglu_ffn": True}
MIXTRAL = DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = DECODER | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}

CAUSAL, SEQUENCE = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
IMAGE, BARE = "AutoModelForImageClassification", "AutoModel"

# (class that is saved, config class, settings, Auto class it is loaded with)
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER, CAUSAL),
    "llama-tied": (
        "LlamaForCausalLM",
        "LlamaConfig",
        DECODER | {"tie_word_embeddings": True},
        CAUSAL,
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER, CAUSAL),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER, CAUSAL),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", DECODER, CAUSAL),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, CAUSAL),
    "gpt2-bare": ("GPT2Model", "GPT2Config", GPT2, CAUSAL),
    "bert": ("BertModel", "BertConfig", ENCODER, BARE),
    "bert-classifier": (
        "BertForSequenceClassification",
        "BertConfig",
        ENCODER,
        SEQUENCE,
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        DISTILBERT,
        SEQUENCE,
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", VIT, IMAGE),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", MIXTRAL, CAUSAL),
    "qwen-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", QWEN_MOE, CAUSAL),
    "bert-as-classifier": ("BertModel", "BertConfig", ENCODER, SEQUENCE),
    "vit-as-classifier": ("ViTModel", "ViTConfig", VIT, IMAGE),
    "masked-bert-bare": ("BertForMaskedLM", "BertConfig", ENCODER, BARE),
    "roberta": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        ENCODER | {"pad_token_id": 1},
        SEQUENCE,
    ),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", DINO, IMAGE),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER, CAUSAL),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", DECODER, CAUSAL),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", DECODER, CAUSAL),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", ENCODER, CAUSAL),
    "causal-as-classifier": ("LlamaForCausalLM", "LlamaConfig", DECODER, SEQUENCE),
}


def make(class_name: str, config_name: str, settings: dict[str, object], seed: int = 0):
    """Return a random model, its weights spread out enough that predictions differ."""
    config = getattr(transformers, config_name)(**settings)
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(config)
    with torch.no_grad():
        for parameter in dict.fromkeys(model.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save(model, folder: Path, *, tokenizer: bool = True, bos: bool = True) -> Path:
    """Save the model as safetensors, with the byte tokenizer."""
    model.save_pretrained(folder)
    if tokenizer:
        byte_tokenizer(bos=bos).save_pretrained(folder)
    return folder


def byte_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with the merges "th" and "the"; bos is optional."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(alphabet)}
    vocabulary |= {"<s>": 256, "</s>": 257, "<pad>": 258, "<unk>": 259, "th": 260, "the": 261}
    tokenizer = Tokenizer(BPE(vocabulary, [("t", "h"), ("th", "e")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    from tokenizers.decoders import ByteLevel as Decoder

    tokenizer.decoder = Decoder()
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **names,
    )


def file_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a folder's safetensors file, by its name in the file."""
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
