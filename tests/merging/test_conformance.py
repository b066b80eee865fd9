import dataclasses
from dataclasses import dataclass
from typing import Annotated

import pytest
import torch

from evomerge.core.genes import Gene
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operators
from evomerge.testing import check_merge_operator


@pytest.mark.parametrize("name", merge_operators.names())
def test_every_registered_operator_conforms(name):
    check_merge_operator(name)


@dataclass(frozen=True, kw_only=True)
class Mean(OperatorDefaults):
    """A correct operator that the broken ones below derive from."""

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]

    def merge(self, tensors: TensorInputs) -> torch.Tensor:
        delta = sum(w * d for w, d in zip(self.weights, tensors.deltas, strict=True))
        return tensors.add_to_base(delta)


def test_a_lone_expert_must_be_exact_unless_waived():
    check_merge_operator(Mean, lone_expert=False)
    with pytest.raises(AssertionError, match="lone expert"):
        check_merge_operator(Mean)


def broken(**members):
    return dataclass(frozen=True, kw_only=True)(
        type("Broken", (Mean,), {"__annotations__": {}, **members})
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"merge": lambda self, tensors: tensors.base.float()}, "the result is"),
        ({"merge": lambda self, tensors: tensors.base.reshape(-1)}, "has shape"),
        ({"merge": lambda self, tensors: tensors.base / 0.0}, "not finite"),
        ({"merge": lambda self, tensors: tensors.base.mul_(2.0)}, "written to"),
        ({"merge": lambda self, t: t.base + torch.rand(t.base.shape).to(t.base)}, "other bits"),
        ({"merge": lambda self, tensors: tensors.base}, "out_dtype is ignored"),
        (
            {"merge": lambda self, t: t.round(t.base.float() * 2)},
            "equal to the base",
        ),
        (
            {"merge": lambda self, t: t.add_to_base(t.deltas[0] * self.weights[0])},
            "order of the experts",
        ),
        (
            {
                "sliceable": True,
                "merge": lambda self, t: t.add_to_base(sum(d - d.mean() for d in t.deltas)),
            },
            "slice differs",
        ),
    ],
)
def test_broken_operators_are_found_out(members, message):
    with pytest.raises(AssertionError, match=message):
        check_merge_operator(broken(**members), lone_expert=False)


def test_an_operator_that_ignores_its_seed_is_found_out():
    @dataclass(frozen=True, kw_only=True)
    class Seeded(Mean):
        seed: int = 0

    with pytest.raises(AssertionError, match="two seeds give one result"):
        check_merge_operator(Seeded, lone_expert=False)


def test_a_class_that_is_no_dataclass_is_found_out():
    class Plain(OperatorDefaults):
        pass

    with pytest.raises(AssertionError, match="not a dataclass"):
        check_merge_operator(Plain)
    assert dataclasses.is_dataclass(Mean)
