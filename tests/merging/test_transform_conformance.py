"""The suite passes sound transforms and finds every broken promise."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from evomerge.merging.transform import TransformDefaults, mean_parts
from evomerge.testing import check_delta_transform

from .delta_helpers import Halves, Shares


@pytest.mark.parametrize("transform", [Halves, Shares])
def test_sound_transforms_pass(transform):
    check_delta_transform(transform)


def test_parameters_are_passed_on():
    check_delta_transform(Halves, parameters={"scale": 0.1})
    with pytest.raises(TypeError, match="scales"):
        check_delta_transform(Halves, parameters={"scales": 0.1})


@dataclass(frozen=True)
class Faulty(TransformDefaults):
    fault: str

    def transform(self, tensors, survey):
        first, total = tensors.deltas[0], torch.stack(tensors.deltas).sum(0)
        if self.fault != "mean" and self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        if self.fault == "writes":
            first.mul_(2.0)
        if self.fault == "random":
            total = total + torch.rand(())
        if self.fault == "order":
            total = total + first
        if self.fault == "zero":
            total = total + 1.0
        if self.fault == "nan":
            total = total / total.abs().max()
        if self.fault == "scale":
            total = total * total.abs().max()
        if self.fault == "dtype":
            total = total.double()
        if self.fault == "shape":
            total = total.reshape(-1)
        return (total, total) if self.fault == "count" else (total,)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("writes", "an input tensor was written to"),
        ("random", "other bits"),
        ("order", "the order of the experts matters"),
        ("zero", "experts equal to the base change it"),
        ("nan", "not finite"),
        ("scale", "differs from"),
        ("dtype", "float64"),
        ("shape", "the result is"),
        ("count", "2 results, expected 1"),
        ("mean", "no mean"),
    ],
)
def test_a_fault_is_found(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_delta_transform(Faulty, parameters={"fault": fault})


def test_opting_out_and_being_ordered_are_respected():
    check_delta_transform(Faulty, parameters={"fault": "scale"}, scale_equivariant=False)

    @dataclass(frozen=True)
    class Ordered(Faulty):
        is_ordered: ClassVar = True
        fault: str = field(default="order")

    check_delta_transform(Ordered)


def test_a_class_that_is_not_frozen_is_refused():
    @dataclass
    class Loose(TransformDefaults):
        pass

    with pytest.raises(AssertionError, match="not frozen"):
        check_delta_transform(Loose)
