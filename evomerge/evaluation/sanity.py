"""Is a merged model alive? Looked at in the forward passes that score it, so it costs no other.

A merge can be finite in every weight and still be broken: activations overflow, or a layer is
flat and every input gets the same answer. Such a candidate is worth no score.

Shapes: B rows of a batch, T tokens, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import EvaluationError

# So many different inputs with one and the same output, bit for bit, are no coincidence.
ENOUGH = 4
_INPUTS = ("input_ids", "pixel_values", "inputs_embeds")


@contextmanager
def watched_outputs(model: nn.Module, name: str) -> Iterator[None]:
    """Check the model's own outputs while a `with` block scores it.

    The outputs at the last token of each row, of the first batch, have to be finite; over the
    batches, until two differ, they have to depend on the input.

    Args:
        model: A transformers model; what calls only parts of it is not seen.
        name: For messages.

    Raises:
        EvaluationError: They are not finite, or `ENOUGH` different inputs had equal outputs.
    """
    watch = _Watch(name)
    hook = model.register_forward_hook(watch.look, with_kwargs=True)
    watch.stop = hook.remove
    try:
        yield
    finally:
        hook.remove()
    if watch.n_equal + 1 >= ENOUGH:
        raise EvaluationError(
            f"{name}: gives the same output for {watch.n_equal + 1} different inputs; the merge "
            "has lost what its parents could do"
        )


class _Watch:
    """What was seen of one model while one task was scored."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._input: Tensor | None = None  # first row seen
        self._output: Tensor | None = None  # (V,) of that row
        self.n_equal = 0  # other inputs with the same output
        self.stop: Callable[[], None] = lambda: None

    def look(
        self, _: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any
    ) -> None:
        rows = _inputs(arguments, keywords)
        outputs = _last_outputs(output, keywords.get("attention_mask"))
        if rows is None or outputs is None or len(rows) != len(outputs):
            self.n_equal = 0
            self.stop()  # a model of another kind: its evaluator has to look itself
            return
        if self._input is None or self._output is None:
            if not bool(torch.isfinite(outputs).all()):
                raise EvaluationError(
                    f"{self._name}: outputs of the first batch are not finite; the merged weights "
                    "are probably broken"
                )
            self._input, self._output = rows[0].clone(), outputs[0].clone()
        if outputs.shape[1:] != self._output.shape:
            return
        is_equal = (outputs == self._output).all(dim=1)
        if not bool(is_equal.all()):
            self.n_equal = 0
            self.stop()
        elif rows.shape[1:] != self._input.shape:
            self.n_equal += len(rows)
        else:
            self.n_equal += int((rows != self._input).flatten(1).any(dim=1).sum())


def _inputs(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
    """Return the (B, …) inputs of a forward pass."""
    given = [keywords.get(key) for key in _INPUTS] + list(arguments[:1])
    return next((value for value in given if isinstance(value, Tensor)), None)


def _last_outputs(output: Any, mask: Any) -> Tensor | None:
    """Return (B, V) logits or states, of texts those at the last token that is no padding.

    Where a mask hides tokens from each other (B, 1, T, S), which token is last is not known:
    the largest over all tokens.
    """
    found = getattr(output, "logits", None)
    if found is None:
        found = getattr(output, "last_hidden_state", None)
    if not isinstance(found, Tensor) or found.dim() not in (2, 3):
        return None
    if found.dim() == 2:
        return found
    if isinstance(mask, Tensor) and mask.shape == found.shape[:2]:
        places = torch.arange(mask.shape[1], device=mask.device)
        last = (mask.bool() * places).argmax(dim=1)
        return found[torch.arange(len(found), device=found.device), last]
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return found.amax(dim=1)
    return found[:, -1]
