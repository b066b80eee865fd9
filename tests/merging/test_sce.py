import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.sce import Sce, energy_shares
from tests.merging.tensors import inputs_of, random_tensors, relative_error
from tests.merging.test_properties import cases, error_of, fast


def oracle(inputs, *, select, q=1.0, lambda_=1.0, compat="paper", scope="deltas"):
    """Select, calculate, erase on one tensor in float64."""
    base = inputs.base.double().numpy()
    deltas = np.stack([delta.double().numpy() for delta in inputs.deltas])
    is_exempt = compat == "paper" and base.ndim <= 1
    selected = deltas
    if select < 1.0 and not is_exempt:
        variance = deltas.var(0).astype(np.float32)
        n_nonzero = int((variance > 0).sum())
        n_wanted = max(int(select * n_nonzero), int(compat == "paper"))
        if n_wanted == 0 or n_nonzero == 0:
            selected = deltas * 0.0
        else:
            selected = deltas * (variance >= np.sort(variance.reshape(-1))[-n_wanted])
    energy = np.square(selected).reshape(len(deltas), -1).mean(1)
    if energy.max() == 0.0 or (compat == "mergekit" and energy.sum() < 1e-6):
        shares = np.full(len(deltas), 1.0 / len(deltas))
    else:
        shares = np.maximum(energy / energy.max(), 1e-12) ** q
        shares /= shares.sum()
    shares = shares.reshape(-1, *[1] * base.ndim)
    merged = selected if scope == "deltas" else deltas
    if is_exempt:
        return base + lambda_ * (shares * deltas).sum(0)
    elected = np.where(merged.sum(0) >= 0, 1, -1)
    agrees = np.sign(merged) == elected
    below = (shares * agrees).sum(0)
    return base + lambda_ * (shares * merged * agrees).sum(0) / np.where(below == 0, 1, below)


@fast
@given(
    cases(dtypes=st.just(torch.float32)),
    st.floats(0.0, 1.0),
    st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    st.sampled_from(["paper", "mergekit"]),
    st.sampled_from(["deltas", "weights"]),
)
def test_it_matches_its_formula(inputs, select, q, compat, scope):
    operator = Sce(select=select, q=q, lambda_=0.8, compat=compat, select_scope=scope)
    expected = oracle(inputs, select=select, q=q, lambda_=0.8, compat=compat, scope=scope)
    merged = operator.merge(inputs)
    assert torch.isfinite(merged).all()
    assert error_of(merged, expected, inputs) < 5e-6


def test_shares_go_with_the_squared_size():
    assert energy_shares([1.0, 3.0], 1.0) == (0.25, 0.75)
    assert energy_shares([1.0, 3.0], 0.0) == (0.5, 0.5)
    assert energy_shares([0.0, 0.0], 1.0) == (0.5, 0.5)
    assert sum(energy_shares([0.0, 2.0, 1e-30], -1.0)) == pytest.approx(1.0)


def test_mergekits_absolute_guard_ignores_sizes_that_typical_task_vectors_have():
    """sigma 0.02, relative delta 2 %: four experts have a mean square of 6.4e-7 in all."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(64, 64, generator=generator)
    scales = (4e-4, 4e-4, 4e-4, 1.2e-4)
    inputs = inputs_of(base, [base + s * torch.randn(64, 64, generator=generator) for s in scales])
    guarded = Sce(select=1.0, compat="mergekit")
    sizes = [float(delta.double().square().mean()) for delta in inputs.deltas]
    assert guarded.shares(sizes) == (0.25,) * 4
    relative = Sce(select=1.0).shares(sizes)
    assert relative[3] == pytest.approx(0.0144 / 0.4944, rel=0.1)
    # The relative guard does not know the unit: the same experts, ten times as far away.
    far = [100.0 * size for size in sizes]
    assert Sce(select=1.0).shares(far) == pytest.approx(relative)
    assert guarded.shares(far) == pytest.approx(relative)


def test_experts_that_agree_leave_the_base_when_selecting():
    base, (expert,) = random_tensors((6, 6), 1)
    inputs = inputs_of(base, [expert, expert.clone(), expert.clone()])
    assert torch.equal(Sce(select=0.5).merge(inputs), base)
    assert relative_error(Sce(select=1.0).merge(inputs), expert.double()) < 1e-6


def test_disjoint_supports_add_up():
    base = torch.zeros(3, 4)
    experts = [torch.zeros(3, 4) for _ in range(3)]
    for k, expert in enumerate(experts):
        expert[k] = torch.tensor([1.0, -2.0, 3.0, -4.0]) * (k + 1)
    merged = Sce(select=1.0).merge(inputs_of(base, experts))
    assert relative_error(merged, sum(experts).double()) < 1e-6


def test_selected_elements_nest_and_count():
    base, experts = random_tensors((20, 20), 3)
    inputs = inputs_of(torch.zeros_like(base), [e - base for e in experts])
    small, large = (Sce(select=s).merge(inputs) != 0 for s in (0.1, 0.4))
    assert (int(small.sum()), int(large.sum())) == (40, 160)
    assert (small <= large).all()


def test_a_tiny_selection_keeps_one_element_in_paper_mode_only():
    base, experts = random_tensors((2, 3), 2)
    inputs = inputs_of(base, experts)
    assert int((Sce(select=0.01).merge(inputs) != base).sum()) == 1
    assert torch.equal(Sce(select=0.01, compat="mergekit").merge(inputs), base)


def test_vectors_are_weighted_without_a_vote():
    base, experts = random_tensors((50,), 3)
    operator = Sce(select=0.1)
    inputs = inputs_of(base, experts)
    assert operator.fallback("w", (50,))
    assert relative_error(operator.merge(inputs), oracle(inputs, select=0.1)) < 1e-6
    assert Sce(compat="mergekit").fallback("w", (50,)) is None


def test_the_release_of_fuseai_selects_for_the_weights_only():
    base, experts = random_tensors((20, 20), 3)
    inputs = inputs_of(base, experts)
    changed = {
        scope: int((Sce(select=0.1, select_scope=scope).merge(inputs) != base).sum())
        for scope in ("deltas", "weights")
    }
    assert changed == {"deltas": 40, "weights": 400}
