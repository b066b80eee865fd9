"""Write a merge as a PEFT LoRA adapter of its base, all or nothing.

A tensor that is linear in adapters of the base is written exactly, at the sum of their ranks; any
other change is cut down to a rank by SVD, and the error is reported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.core.model_space import ModelSpace, SpaceTensor
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.export.adapter_card import AdapterFacts
from evomerge.export.adapter_layout import has_conv1d, slot_of, task_type
from evomerge.export.card import CardFacts, ParentModel, hub_name, render_card
from evomerge.export.folder import check_vacant, new_folder, write_json
from evomerge.export.record import check_parents, recipe_record
from evomerge.export.writer import ExportResult
from evomerge.merging.adapter_change import AdapterChange
from evomerge.merging.derived import Derived
from evomerge.merging.low_rank import LowRank, extract, recompress
from evomerge.merging.manifest import manifest_of
from evomerge.merging.materialize import DTYPES, materialize
from evomerge.merging.source import TensorSource
from evomerge.merging.sums import square_sum
from evomerge.merging.weights_digest import WeightsDigest
from evomerge.storage.lora_config import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from evomerge.storage.model_folder import CONFIG_FILE, SINGLE_FILE
from evomerge.storage.tensor_writer import ShardedWriter
from evomerge.storage.untrusted_files import contained_file, read_json_object

_PREFIX = "base_model.model."


class NoChangeError(ConfigError):
    """A merge equals its base, so there is nothing to write."""


@dataclass(frozen=True)
class AsAdapter:
    """The wish for an adapter instead of a full model.

    Attributes:
        rank: Largest rank of a tensor; None writes the change exactly or not at all.

    Raises:
        ConfigError: The rank is not positive.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        """Check the rank."""
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"--rank is {self.rank}, expected a positive number")


def export_adapter(
    out: Path,
    *,
    recipe: Recipe,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    derived: Derived | None,
    donor: Path,
    card: CardFacts,
    rank: int | None = None,
    device: str = "cpu",
) -> ExportResult:
    """Write merged - base as a PEFT adapter folder, which appears complete or not at all.

    Written: adapter_model.safetensors (float32 factors; modules and biases that LoRA cannot
    change whole, in the base's dtype), adapter_config.json, recipe.json and README.md.

    Args:
        out: New or empty folder.
        recipe: What to compute.
        space: The aligned models, with a base.
        sources: Source id -> model.
        derived: What `derive_for` computed; None computes it here.
        donor: Folder of the base.
        card: Facts for README.md and recipe.json.
        rank: Largest rank of a tensor; None writes the change exactly or not at all.
        device: Where to compute the merge.

    Raises:
        ConfigError: `out` holds something; there is no plain base; the change equals nothing, is
            not low-rank and `rank` is None, or touches a parameter that LoRA has no place for.
        PreflightError: The disk is too small.
        RunError: The folder cannot be written.
    """
    check_parents(card, space)
    check_vacant(out)
    parent = next(parent for parent in card.parents if parent.id == space.sources[0])
    config = _check_base(space, parent, donor)
    draft = _Draft(sources[space.sources[0]], space, rank, conv1d=has_conv1d(config))
    change = AdapterChange(recipe, space, sources)
    digest = WeightsDigest()
    by_name = {tensor.spec.name: tensor for tensor in space.tensors}
    # One pass gives the change in float32 and the digest of the merge as it was scored. float64
    # tensors keep their dtype, since a copy of them would lose digits.
    is_wide = any(tensor.spec.dtype == "F64" for tensor in space.tensors)
    wide = None if is_wide else torch.float32
    for name, merged in materialize(recipe, space, sources, derived, device=device, out_dtype=wide):
        tensor = by_name[name]
        if tensor.action == "copy":
            digest.add(name, draft.base.read(name))
            continue
        stored = _rounded(merged.cpu(), DTYPES[tensor.spec.dtype])
        digest.add(name, stored)
        draft.add(tensor, merged.cpu().float(), stored, change.factors(tensor))
    tensors = draft.tensors()
    facts = draft.facts(parent.public_names[0], sum(item.nbytes for item in tensors.values()))
    with new_folder(out, facts.n_bytes) as partial:
        with ShardedWriter(partial, max_shard_bytes=max(facts.n_bytes, 1)) as writer:
            for name, item in tensors.items():
                writer.add(name, item)
        (partial / SINGLE_FILE).rename(partial / ADAPTER_FILE)
        write_json(partial / ADAPTER_CONFIG_FILE, draft.config(parent, config))
        weights = digest.hexdigest()
        record = recipe_record(recipe, space, sources, card, weights_digest=weights, dtype=None)
        write_json(partial / "recipe.json", record | {"adapter": facts.to_json()})
        write_json(partial / "manifest.json", manifest_of(recipe, space, sources))
        readme = render_card(
            card, recipe, space, weights_digest=weights, mergekit=None, adapter=facts
        )
        (partial / "README.md").write_text(readme, encoding="utf-8")
    return ExportResult(out, weights, "an adapter was written", facts)


@dataclass(eq=False)
class _Draft:
    """The adapter as it grows, tensor by tensor.

    Attributes:
        base: The model the adapter is relative to.
        space: The aligned models.
        rank: Largest rank; None: exact.
        conv1d: The model has (in, out) matrices.
        factors: Module -> factors, and whether it is an embedding.
        stored: Changed tensors that are written whole, in the base's dtype.
        whole: Modules in `modules_to_save`.
        errors: Tensor -> relative error.
        squares: Sums of squares over all tensors: of the change, of what was cut.
    """

    base: TensorSource
    space: ModelSpace
    rank: int | None
    conv1d: bool
    factors: dict[str, tuple[LowRank, bool]] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    errors: dict[str, float] = field(default_factory=dict)
    squares: list[tuple[float, float]] = field(default_factory=list)

    def add(
        self, tensor: SpaceTensor, merged: Tensor, stored: Tensor, exact: LowRank | None
    ) -> None:
        """Add one merged tensor.

        Args:
            tensor: Its place in the space.
            merged: float32.
            stored: The same in the base's dtype.
            exact: Its change, if known as a product.
        """
        name = tensor.spec.name
        delta = merged - self.base.read(name).float()
        is_same = exact.rank == 0 if exact is not None else not bool(delta.any())
        if is_same:
            return
        slot = slot_of(name, tensor.spec.shape, conv1d=self.conv1d)
        module = name.rpartition(".")[0]
        tied = self._tied_with(name)
        if tied:
            # LoRA on one of two tied layers unties them, and merging it on both adds it twice.
            self.whole |= {part.rpartition(".")[0] for part in tied}
            self.stored |= {part: stored for part in tied if part not in self.stored}
            self.stored[name] = stored
        elif slot in ("bias", "whole"):
            self.stored[name] = stored
            if slot == "whole":
                self.whole.add(module)
        else:
            found, size, cut = self._cut(name, delta, exact)
            is_turned = slot in ("conv1d", "embedding")
            self.factors[module] = (found.turned(is_turned), slot == "embedding")
            self.errors[name] = math.sqrt(cut / size) if size else 0.0
            self.squares.append((size, cut))
            return
        self.squares.append((square_sum(delta), 0.0))

    def _tied_with(self, name: str) -> set[str]:
        """Return the names of tensors that share the base's storage, `name` too; none: empty."""
        ties = self.base.header().tied
        root = ties.get(name, name)
        group = {alias for alias, target in ties.items() if target == root}
        return {root, *group} if group else set()

    def _cut(self, name: str, delta: Tensor, exact: LowRank | None) -> tuple[LowRank, float, float]:
        """Return the factors of a change, its square norm and that of what they leave out."""
        if exact is not None:
            size = exact.square_norm()
            if self.rank is None or exact.rank <= self.rank:
                return exact, size, 0.0
            found, error = recompress(exact, self.rank)
            return found, size, error * error * size
        if self.rank is None:
            raise ConfigError(
                f"{name}: what this recipe changes is not the sum of LoRA adapters of the base, "
                "so that no adapter equals it. Say how large an approximation may be with "
                "--rank R (16, for example), or leave out --adapter."
            )
        found = extract(delta, self.rank)
        return found, square_sum(delta), square_sum(delta - found.product())

    def tensors(self) -> dict[str, Tensor]:
        """Return the content of adapter_model.safetensors.

        Raises:
            NoChangeError: The merge equals its base.
        """
        if not self.factors and not self.stored:
            raise NoChangeError("the merge equals its base: there is no adapter to write")
        found: dict[str, Tensor] = {}
        for module, (part, is_embedding) in self.factors.items():
            stem, end = ("lora_embedding_", "") if is_embedding else ("lora_", ".weight")
            found[f"{_PREFIX}{module}.{stem}A{end}"] = part.a.contiguous()
            found[f"{_PREFIX}{module}.{stem}B{end}"] = part.b.contiguous()
        for name, tensor in self.stored.items():
            module, _, leaf = name.rpartition(".")
            if module in self.factors and module not in self.whole:
                found[f"{_PREFIX}{module}.base_layer.{leaf}"] = tensor
            else:
                self.whole.add(module)
        header = self.base.header()
        for module in sorted(self.whole):
            # PEFT wants every tensor of such a module, also those that the merge leaves alone.
            for name in sorted({*header.tensors, *header.tied}):
                if name.startswith(f"{module}."):
                    value = self.stored.get(name)
                    found[_PREFIX + name] = self.base.read(name) if value is None else value
        return found

    def facts(self, base: str, n_bytes: int) -> AdapterFacts:
        """Return what the card says; call it after `tensors`."""
        size = math.fsum(pair[0] for pair in self.squares)
        cut = math.fsum(pair[1] for pair in self.squares)
        return AdapterFacts(
            base=base,
            rank=max((part.rank for part, _ in self.factors.values()), default=0),
            requested_rank=self.rank,
            errors=dict(sorted(self.errors.items())),
            relative_error=math.sqrt(cut / size) if size else 0.0,
            whole=tuple(sorted(self.whole)),
            n_bytes=n_bytes,
        )

    def config(self, parent: ParentModel, base: Mapping[str, Any]) -> dict[str, Any]:
        """Return adapter_config.json; call it after `tensors`. The scale is 1: alpha is rank."""
        ranks = {module: part.rank for module, (part, _) in self.factors.items()}
        usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
        others = {
            module.replace(".", r"\."): rank for module, rank in ranks.items() if rank != usual
        }
        name, commit = hub_name(parent.model)
        architectures = base.get("architectures") or [""]
        has_biases = any(name.rpartition(".")[0] in self.factors for name in self.stored)
        return {
            "peft_type": "LORA",
            "task_type": task_type(str(architectures[0])),
            "base_model_name_or_path": name,
            "revision": parent.revision or commit,
            "r": usual,
            "lora_alpha": usual,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted(ranks),
            "modules_to_save": sorted(self.whole) or None,
            "fan_in_fan_out": self.conv1d,
            "bias": "lora_only" if has_biases else "none",
            "lora_dropout": 0.0,
            "use_rslora": False,
            "inference_mode": True,
        }


def _check_base(space: ModelSpace, parent: ParentModel, donor: Path) -> Mapping[str, Any]:
    """Return the base's config.json."""
    if not space.has_base:
        raise ConfigError(
            "--adapter: an adapter is relative to a base, and this merge has none. Give the common "
            "base of the models as `base_model`, or leave out --adapter."
        )
    if parent.lora is not None or not donor.is_dir():
        what = "has a LoRA adapter of its own" if parent.lora is not None else "is a bare file"
        raise ConfigError(
            f"--adapter: the base {parent.model} {what}, and PEFT needs a plain model folder "
            "under an adapter. Merge them into one first, or leave out --adapter."
        )
    return read_json_object(contained_file(donor, CONFIG_FILE))


def _rounded(merged: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a float32 merge as `TensorInputs.round` does."""
    if dtype == torch.float16:
        merged = merged.clamp(-65504.0, 65504.0)
    return merged.to(dtype)
