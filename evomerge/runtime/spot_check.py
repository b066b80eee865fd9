"""After a swap of weights: is what the resident model holds what the recipe says?"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.errors import ExecutorError
from evomerge.merging.derived import Derived
from evomerge.merging.materialize import materialize
from evomerge.merging.source import TensorSource

# A tensor with more of the merged elements than this is not computed a second time.
LARGEST_SHARE = 0.01


def check_resident(
    recipe: Recipe,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    derived: Derived,
    *,
    held: Mapping[str, Tensor],
    installed: Collection[str],
    device: str,
    name: str,
) -> None:
    """Compute one tensor of a recipe again, by plain torch, and compare it with the model's.

    Which one depends on the recipe; tensors that were left as an earlier candidate had them take
    part. So a kernel, a copy or a shortcut that goes wrong does not stay unseen for long.

    Args:
        recipe: What was installed.
        space: The aligned models.
        sources: Source id -> model.
        derived: From `derive_for`.
        held: Tensor name -> parameter of the resident model, of those that need no conversion.
        installed: Names of all tensors that the recipe was installed to.
        device: Where the recipe was merged.
        name: Of the model, for messages.

    Raises:
        ExecutorError: They differ, so no score of this process can be trusted.
    """
    checked = _candidates(space, held, installed)
    if not checked:
        return
    chosen = checked[int(recipe.digest(), 16) % len(checked)]
    ((_, expected),) = materialize(
        recipe, space, sources, derived, device=device, names={chosen}, is_plain=True
    )
    parameter = held[chosen]
    expected = expected.to(device=parameter.device, dtype=parameter.dtype)
    if torch.equal(parameter, expected):
        return
    n_wrong = int((parameter != expected).sum())
    raise ExecutorError(
        f"{name}: {n_wrong} of {parameter.numel()} elements of {chosen} in the resident model are "
        "not what its recipe gives. The scores of this process cannot be trusted; nothing told "
        "is lost. Look whether an evaluator writes to the model and check the machine's memory, "
        "then resume the run"
    )


def _candidates(
    space: ModelSpace, held: Mapping[str, Tensor], installed: Collection[str]
) -> list[str]:
    """Return the tensors that are small enough to be computed twice; the smallest at least."""
    sizes = {
        tensor.spec.name: tensor.spec.n_elements
        for tensor in space.merged
        if tensor.spec.name in held and tensor.spec.name in installed
    }
    most = max(LARGEST_SHARE * space.n_elements, min(sizes.values(), default=0))
    return [tensor for tensor, size in sizes.items() if size <= most]
