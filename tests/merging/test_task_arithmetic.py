import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging.task_arithmetic import TaskArithmetic
from tests.merging.tensors import inputs_of, random_tensors, relative_error


@pytest.mark.parametrize("normalize", [True, False])
def test_task_arithmetic_matches_its_formula(normalize):
    base, experts = random_tensors((6, 5), 3)
    weights = (0.4, -0.2, 1.1)
    merged = TaskArithmetic(weights=weights, lambda_=0.6, normalize=normalize).merge(
        inputs_of(base, experts)
    )
    tau = sum(w * (e.double() - base.double()) for w, e in zip(weights, experts, strict=True))
    tau = tau / sum(weights) if normalize else tau
    assert relative_error(merged, base.double() + 0.6 * tau) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_and_one_hot_weights_are_bit_exact(dtype):
    base, experts = random_tensors((31, 7), 3, dtype=dtype, scale=5.0)
    inputs = inputs_of(base, experts)
    assert torch.equal(TaskArithmetic(weights=(0.0, 0.0, 0.0)).merge(inputs), base)
    assert torch.equal(TaskArithmetic(weights=(0.5, 1.0, 2.0), lambda_=0.0).merge(inputs), base)
    assert torch.equal(TaskArithmetic(weights=(0.0, 1.0, 0.0)).merge(inputs), experts[1])


def test_exact_low_rank_deltas_replace_rounded_differences():
    base, _ = random_tensors((8, 8), 1, dtype=torch.bfloat16)
    delta = 1e-4 * torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    expert = (base.float() + delta).to(torch.bfloat16)
    inputs = inputs_of(base, [expert], out_dtype=torch.float32)
    inputs = type(inputs)(**{**inputs.__dict__, "exact_deltas": (delta,)})
    merged = TaskArithmetic(weights=(2.0,)).merge(inputs)
    assert relative_error(merged - base.float(), 2.0 * delta.double()) < 1e-2
    assert relative_error(merged, base.double() + 2.0 * delta.double()) < 1e-6


def test_normalized_weights_that_cancel_are_refused():
    with pytest.raises(ConfigError, match="task_arithmetic: the weights"):
        TaskArithmetic(weights=(0.5, -0.5), normalize=True)
