"""Models held in memory that implement the TensorSource protocol, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evomerge.core.model_space import ModelSpace, SourceHeader, TensorSpec, align

SHORT = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


@dataclass
class MemorySource:
    """A dict of tensors; counts reads per tensor name."""

    id: str
    tensors: Mapping[str, Tensor]
    deltas: Mapping[str, Tensor] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        parts = [f"{name}:{_digest(tensor)}" for name, tensor in sorted(self.tensors.items())]
        return hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()

    def header(self) -> SourceHeader:
        specs = {n: TensorSpec(n, SHORT[t.dtype], tuple(t.shape)) for n, t in self.tensors.items()}
        digests = {n: _digest(t) for n, t in self.tensors.items()}
        return SourceHeader(self.id, "TestModel", specs, digests, dict(self.tied))

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        return self.tensors[self.tied.get(name, name)]

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        return self.read(name).reshape(-1)[start:stop]

    def exact_delta(self, name: str) -> Tensor | None:
        return self.deltas.get(name)


def _digest(tensor: Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(raw + str(tensor.dtype).encode(), digest_size=16).hexdigest()


SHAPES = {
    "model.embed_tokens.weight": (11, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 5),
    "model.layers.0.mlp.up_proj.weight": (7, 3, 2),
    "model.layers.0.input_layernorm.weight": (5,),
    "model.layers.1.self_attn.q_proj.weight": (4, 5),
    "model.layers.1.mlp.up_proj.weight": (1, 9),
    "model.layers.1.scale": (),
    "model.norm.weight": (3,),
}


def make_sources(
    n_experts: int = 3,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    scale: float = 0.05,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
) -> dict[str, MemorySource]:
    """Return a base and experts that are small changes of it."""
    generator = torch.Generator().manual_seed(seed)
    base = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    sources = {"base": MemorySource("base", {n: t.to(dtype) for n, t in base.items()})}
    for k in range(1, n_experts + 1):
        changed = {
            n: (t + scale * torch.randn(t.shape, generator=generator)).to(dtype)
            for n, t in base.items()
        }
        sources[f"e{k}"] = MemorySource(f"e{k}", changed)
    return sources


def space_of(sources: Mapping[str, MemorySource], *, has_base: bool = True) -> ModelSpace:
    return align([source.header() for source in sources.values()], has_base=has_base)
