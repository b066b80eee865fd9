"""Sets of synthetic models with the tensors of a small Llama: one base and experts near it.

    python -m benchmarks.synthetic_models --size 125m --experts 4 --dir /tmp/models

Every matrix of the base is N(0, 0.02^2), every norm N(1, 0.1^2); an expert is the base plus
noise of a hundredth of each tensor's root mean square, stored in bfloat16. Everything is a
function of (seed, size, source, tensor), so that two machines make the same files; a set that is
already in the folder is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from evomerge.seeding import derive
from evomerge.storage.tensor_writer import ShardedWriter

RELATIVE_CHANGE = 1e-2
_MATRIX_STD = 0.02
_NORM_STD = 0.1
_PASS = 1 << 22


@dataclass(frozen=True)
class Size:
    """Shape of a Llama with heads of 64.

    Attributes:
        layers: Transformer layers.
        hidden: Width of the residual stream.
        inner: Width of the MLP.
        key_value: Width of keys and values (grouped-query attention when below `hidden`).
        vocabulary: Rows of the embedding.
        is_tied: Whether the embedding is the output head too.
    """

    layers: int
    hidden: int
    inner: int
    key_value: int
    vocabulary: int
    is_tied: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return tensor name -> shape, in checkpoint order."""
        wide, inner, narrow = self.hidden, self.inner, self.key_value
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, wide)}
        for layer in range(self.layers):
            stem = f"model.layers.{layer}"
            shapes |= {
                f"{stem}.input_layernorm.weight": (wide,),
                f"{stem}.self_attn.q_proj.weight": (wide, wide),
                f"{stem}.self_attn.k_proj.weight": (narrow, wide),
                f"{stem}.self_attn.v_proj.weight": (narrow, wide),
                f"{stem}.self_attn.o_proj.weight": (wide, wide),
                f"{stem}.post_attention_layernorm.weight": (wide,),
                f"{stem}.mlp.gate_proj.weight": (inner, wide),
                f"{stem}.mlp.up_proj.weight": (inner, wide),
                f"{stem}.mlp.down_proj.weight": (wide, inner),
            }
        shapes["model.norm.weight"] = (wide,)
        if not self.is_tied:
            shapes["lm_head.weight"] = (self.vocabulary, wide)
        return shapes

    def config(self) -> dict[str, object]:
        """Return the config.json that transformers loads the tensors with."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.key_value // 64,
            "head_dim": 64,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": self.is_tied,
            "dtype": "bfloat16",
        }


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "tiny": Size(2, 128, 344, 64, 512, is_tied=True),
        "125m": Size(12, 768, 2048, 768, 32_000),
        "500m": Size(14, 1536, 4096, 1536, 32_000),
        "1b": Size(22, 2048, 5632, 256, 32_000),
    }
)
"""Name -> shape: 0.4, 134.1, 494.7 and 1,100.0 million parameters."""


@dataclass(frozen=True)
class ModelSet:
    """Folders of one base and its experts.

    Attributes:
        base: The base.
        experts: (E,) the experts.
        n_elements: Parameters of one model.
    """

    base: Path
    experts: tuple[Path, ...]
    n_elements: int

    @property
    def folders(self) -> tuple[Path, ...]:
        """All models, the base first; a folder's name serves as the source's id."""
        return (self.base, *self.experts)


def build_models(
    folder: Path, size: str, n_experts: int, *, seed: int = 0, shard_bytes: int = 500_000_000
) -> ModelSet:
    """Return a set of models under `folder`, making those that are not there yet.

    Args:
        folder: Where the sets are kept; each size and seed has its own folder in it.
        size: Key of `SIZES`.
        n_experts: How many experts.
        seed: Of all numbers.
        shard_bytes: Size of a shard of a model.
    """
    shape = SIZES[size]
    home = folder / f"{size}-seed{seed}"
    names = ["base", *(f"expert{k}" for k in range(1, n_experts + 1))]
    for source, name in enumerate(names):
        if not (home / name).exists():
            _write_model(home / name, size, source, seed, shard_bytes)
    n_elements = sum(torch.Size(dims).numel() for dims in shape.shapes().values())
    return ModelSet(home / names[0], tuple(home / name for name in names[1:]), n_elements)


def _write_model(folder: Path, size: str, source: int, seed: int, shard_bytes: int) -> None:
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    shape = SIZES[size]
    with ShardedWriter(partial, max_shard_bytes=shard_bytes) as writer:
        for name, dims in shape.shapes().items():
            writer.add(name, _tensor(size, name, dims, source, seed))
    (partial / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    partial.rename(folder)


def _tensor(size: str, name: str, dims: tuple[int, ...], source: int, seed: int) -> Tensor:
    """Return one tensor of the base (source 0) or of an expert, in bfloat16."""
    mean, std = (1.0, _NORM_STD) if len(dims) == 1 else (0.0, _MATRIX_STD)
    change = RELATIVE_CHANGE * (mean**2 + std**2) ** 0.5
    first = torch.Generator().manual_seed(derive(seed, size, "base", name) >> 1)
    second = torch.Generator().manual_seed(derive(seed, size, str(source), name) >> 1)
    flat = torch.empty(torch.Size(dims).numel(), dtype=torch.bfloat16)
    for part in flat.split(_PASS):
        part.copy_(torch.randn(part.shape, generator=first).mul_(std).add_(mean))
        if source:
            noise = torch.randn(part.shape, generator=second)
            part.copy_(part.float().add_(noise, alpha=change))
    return flat.reshape(dims)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="125m")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    models = build_models(args.dir, args.size, args.experts, seed=args.seed)
    folders = [str(folder) for folder in models.folders]
    shape = asdict(SIZES[args.size])
    print(json.dumps({"folders": folders, "n_elements": models.n_elements, "shape": shape}))


if __name__ == "__main__":
    main()
