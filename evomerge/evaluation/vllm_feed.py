"""A candidate's tensors on their way into vLLM, each one checked.

vLLM takes what it is given: weights that never come leave a layer with whatever was in memory, a
wrong dtype is cast, and a stream that breaks off leaves the engine between two models (seen with
vLLM 0.32). So every tensor is checked here, and a stream that breaks off is brought to its end
with the weights the engine was loaded with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.errors import EvaluationError


@dataclass(frozen=True)
class Expected:
    """What a tensor of the model has to be.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


class Feed:
    """Hands tensors on; afterwards it knows whether all of them were right."""

    def __init__(
        self,
        tensors: Iterable[tuple[str, Tensor]],
        expected: Mapping[str, Expected],
        loaded: Callable[[str], Tensor],
        name: str,
    ) -> None:
        """Read nothing yet.

        Args:
            tensors: (name in the safetensors files, value).
            expected: What there has to be, each exactly once.
            loaded: Name -> the tensor the engine was loaded with.
            name: Of the model, for messages.
        """
        self._tensors, self._expected, self._loaded = tensors, expected, loaded
        self._name = name
        self._given: set[str] = set()
        self._error: BaseException | None = None
        self._has_ended = False

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every expected tensor once, whatever happens."""
        try:
            for name, tensor in self._tensors:
                self._check(name, tensor)
                self._given.add(name)
                yield name, tensor
            missing = self._expected.keys() - self._given
            if missing:
                raise EvaluationError(
                    f"{self._name}: {len(missing)} tensors are missing, the first is "
                    f"{min(missing)}; install every tensor of the model each time"
                )
        except (Exception, KeyboardInterrupt) as error:
            self._error = error
            for name in self._expected:
                if name not in self._given:
                    self._given.add(name)
                    yield name, self._loaded(name)
        self._has_ended = True

    def finish(self) -> None:
        """Raise what went wrong while the tensors were read, if anything.

        Raises:
            EvaluationError: A tensor is missing, unknown, came twice or has another shape or
                dtype, or the engine did not take all of them. Also whatever the stream raised.
        """
        if self._error is not None:
            raise self._error
        if not self._has_ended:
            raise EvaluationError(f"{self._name}: vLLM did not take all tensors")

    def _check(self, name: str, tensor: Tensor) -> None:
        wanted = self._expected.get(name)
        if wanted is None:
            raise EvaluationError(f"{self._name}: the model in vLLM has no tensor {name}")
        if name in self._given:
            raise EvaluationError(f"{self._name}: tensor {name} came twice")
        if (tuple(tensor.shape), tensor.dtype) != (wanted.shape, wanted.dtype):
            raise EvaluationError(
                f"{self._name}: {name} is {tuple(tensor.shape)} {tensor.dtype}, the model in vLLM "
                f"has {wanted.shape} {wanted.dtype}"
            )
