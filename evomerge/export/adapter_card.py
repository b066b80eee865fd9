"""What the card and the JSON of an exported adapter say about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """A merge written as a LoRA adapter of its base.

    Attributes:
        base: Name of the model it belongs to.
        rank: Largest rank of a tensor.
        requested_rank: What `--rank` said; None for an exact adapter.
        errors: Tensor -> relative Frobenius error |change - B A| / |change|; 0 where exact.
        relative_error: The same over the whole change.
        whole: Modules stored whole, which plain LoRA cannot change.
        n_bytes: Size of the weights.
    """

    base: str
    rank: int
    requested_rank: int | None
    errors: Mapping[str, float]
    relative_error: float
    whole: tuple[str, ...]
    n_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the content for recipe.json and `--json`."""
        return {
            "base": self.base,
            "rank": self.rank,
            "relative_error": self.relative_error,
            "errors": dict(self.errors),
            "whole": list(self.whole),
            "n_bytes": self.n_bytes,
        }

    def front(self) -> dict[str, Any]:
        """Return the entries of the card's front matter that differ from a full model's."""
        return {
            "base_model": [self.base],
            "base_model_relation": "adapter",
            "library_name": "peft",
            "tags": ["merge", "lora", "evomerge"],
        }

    def section(self) -> str:
        """Return how far the adapter is from the merge."""
        lines = [
            "## Adapter",
            "",
            f"A LoRA adapter of `{self.base}`, rank up to {self.rank}, "
            f"{self.n_bytes / 1e6:.1f} MB; load it with PEFT.",
            "",
        ]
        if self.relative_error == 0.0:
            lines.append("It is the merge exactly, up to float32 rounding.")
        else:
            lines += [
                f"It is the merge cut down to rank {self.rank}: relative error of the whole change "
                f"{self.relative_error:.3g} (Frobenius). The scores on this card are those of the "
                "merge before the cut.",
                "",
                "| tensor | relative error |",
                "|---|---|",
            ]
            worst = sorted(self.errors.items(), key=lambda item: (-item[1], item[0]))
            lines += [f"| `{name}` | {error:.3g} |" for name, error in worst[:_MAX_ROWS]]
            if len(worst) > _MAX_ROWS:
                lines.append(f"| {len(worst) - _MAX_ROWS} more, all smaller | see recipe.json |")
        if self.whole:
            shown = ", ".join(f"`{name}`" for name in self.whole[:_MAX_ROWS])
            more = len(self.whole) - _MAX_ROWS
            lines += ["", f"Stored whole: {shown}{f' and {more} more' if more > 0 else ''}."]
        return "\n".join(lines)

    def reproduce(self, digest: str, scored_digest: str) -> str:
        """Return how to compute it again."""
        rank = "" if self.requested_rank is None else f" --rank {self.requested_rank}"
        scored = " That merge is bit for bit what was scored." if scored_digest == digest else ""
        return "\n".join(
            [
                "## Reproduce",
                "",
                "```",
                f"evomerge merge recipe.json --adapter{rank} --out OUT",
                "```",
                "",
                f"Weights digest of the full merge: `{digest}`.{scored}",
                "Without `--adapter` the same command writes the full model.",
            ]
        )
