"""Which tensors sparse methods leave whole: those of which every element matters."""

from __future__ import annotations

from typing import Literal

from evomerge.core.tensor_names import place

Vectors = Literal["auto", "exempt", "include"]


def exempt_kind(
    name: str, shape: tuple[int, ...], vectors: Vectors, compat: Literal["paper", "mergekit"]
) -> str | None:
    """Return why a tensor is neither thinned out nor voted on, or None when it is.

    Norms and biases have at most one axis; a router with holes sends tokens to other experts.

    Args:
        name: Tensor name as in the base's files.
        shape: Its shape.
        vectors: "include" leaves nothing whole; "auto" is that for `compat: mergekit`.
        compat: Whose rules hold.

    Source: operators.md, section 3.
    """
    if vectors == "include" or (vectors == "auto" and compat == "mergekit"):
        return None
    if len(shape) <= 1:
        return "at most one axis"
    return "router" if place(name).kind == "router" else None
