"""The merge methods that decide element by element, each beside its float64 oracle.

`ELEMENTWISE` maps a method and mode to a `Case`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from evomerge.merging import (
    arcee_fusion,
    breadcrumbs,
    consensus,
    dare,
    della,
    evo_merging,
    localize_and_stitch,
    magmax,
    nearswap,
    ram,
    sce,
    task_arithmetic,
    ties,
)
from evomerge.merging.layer_scale import LayerScale, LayerScaled
from evomerge.merging.philox import philox_uniform
from evomerge.merging.quantiles import STEPS, snapped
from evomerge.merging.rank_codes import row_length
from evomerge.seeding import derive
from tests.merging import oracles
from tests.merging.oracle_cases import Case, Reference, is_exempt, total_of

# Sparse ------------------------------------------------------------------------------------------


def undecided_votes(kept, weights, *, is_weighted):
    """Where ballots cancel to the rounding of their float64 sum.

    Two unweighted ones cancel exactly; weighted ones not with a fused multiply-add.
    """
    ballots = oracles.votes(kept, weights, is_weighted=is_weighted)
    size = np.abs(ballots).sum(0)
    return (is_weighted or len(kept) > 2) & (np.abs(ballots.sum(0)) <= 1e-13 * size) & (size > 0.0)


def _voted(s, operator, kept, gain=1.0):
    """Return the reference of an operator that votes on `kept`."""
    w, scale = operator.weights, operator.lambda_
    is_weighted, divisor = operator.resolved_sign == "weighted", operator.resolved_divisor
    if is_exempt(s, operator):
        expected = oracles.without_vote(s.base, s.deltas, w, lambda_=scale, divisor=divisor)
        return Reference(operator, expected, 2 * total_of(w))
    fixed = {"lambda_": scale, "is_weighted": is_weighted, "divisor": divisor}
    expected = oracles.vote(s.base, kept, w, **fixed)
    undecided = undecided_votes(kept, w, is_weighted=is_weighted)
    return Reference(operator, expected, 2 * gain * total_of(w), undecided)


def _summed(s, operator, kept, gain=1.0):
    """Return the reference of an operator that adds `kept`."""
    deltas = s.deltas if is_exempt(s, operator) else kept
    w, scale = operator.weights, operator.lambda_
    expected = oracles.task_arithmetic(s.base, deltas, w, scale)
    return Reference(operator, expected, 2 * gain * total_of(w))


def _growth(kept, whole):
    """How many times larger the largest element became."""
    largest = np.abs(whole).max()
    return max(1.0, float(np.abs(kept).max() / largest)) if largest else 1.0


def _ties(**settings):
    def case(s):
        # The plain sum of weights may cancel; every other divisor is as large as its terms.
        low = 0.1 if settings.get("divisor") in (None, "signed_weights") else -0.6
        w = s.weights(low, 1.0)
        fixed = {"density": s.density(), "lambda_": s.number(0.3, 2.0)}
        operator = ties.Ties(weights=w, **fixed, **settings)
        kept, gain = s.deltas, 1.0
        if operator.density < 1.0:
            is_global = operator.resolved_threshold == "global"
            find = s.global_thresholds if is_global else s.tensor_thresholds
            kept = oracles.trim(s.deltas, find(operator.density))
            if operator.rescale == "l1":
                kept = oracles.restore_l1(kept, s.deltas)
                gain = _growth(kept, s.deltas)
        return _voted(s, operator, kept, gain)

    return case


def _uniforms(s, seed):
    draws = [
        philox_uniform(derive(seed, "mask", key, s.inputs.name), s.base.size).double().numpy()
        for key in s.inputs.source_keys
    ]
    return np.stack(draws).reshape(s.deltas.shape)


def _dare(cls, **settings):
    def case(s):
        # A whole number of 2**-16, so that masks of that resolution keep just that fraction.
        density = round(s.density() * 2**16) / 2**16
        fixed = {"density": density, "lambda_": s.number(0.3, 1.5)}
        operator = cls(weights=s.weights(0.1, 1.0), seed=s.choice(range(9)), **fixed, **settings)
        kept = s.deltas
        if density < 1.0:
            kept = oracles.dropped(s.deltas, _uniforms(s, operator.seed), density)
            if operator.resolved_rescale == "l1":
                kept = oracles.restore_l1(kept, s.deltas)
            elif operator.resolved_rescale == "inverse" and density > 0.0:
                kept = kept / density
        finish = _voted if cls is dare.DareTies else _summed
        return finish(s, operator, kept, _growth(kept, s.deltas))

    return case


def _della(cls, **settings):
    def case(s):
        fixed = {"density": s.density(), "epsilon": s.number(0.0, 0.5)}
        if row_length(s.base.shape) == 1 or not fixed["epsilon"]:  # no ranks: as in `_dare`
            fixed["density"] = round(fixed["density"] * 2**16) / 2**16
        w = s.weights(0.1, 1.0)
        operator = cls(weights=w, lambda_=0.9, seed=s.choice(range(9)), **fixed, **settings)
        kept, undecided = s.deltas, np.array(False)
        if operator.density < 1.0:
            pi = np.stack([oracles.della_probabilities(d, **fixed) for d in s.deltas])
            uniforms = _uniforms(s, operator.seed)
            # Probabilities are float32.
            undecided = (np.abs(uniforms - pi) < 1e-6).any(0)
            kept = oracles.dropped(s.deltas, uniforms, pi)
            if operator.resolved_rescale == "inverse":
                kept = np.where(pi > 0.0, kept / np.where(pi > 0.0, pi, 1.0), 0.0)
            elif undecided.any():
                return None
            elif operator.resolved_rescale == "l1":
                kept = oracles.restore_l1(kept, s.deltas)
        finish = _voted if cls is della.Della else _summed
        found = finish(s, operator, kept, 2 * _growth(kept, s.deltas))
        found.undecided = found.undecided | undecided
        return found

    return case


def _breadcrumbs(cls, compat):
    def case(s):
        fixed = {
            "density": s.density(),
            "gamma": s.share_of_ranks([0.0, 0.01, 0.1, 0.7]),
        }
        operator = cls(weights=s.weights(0.1, 1.0), lambda_=0.9, compat=compat, **fixed)
        kept = np.stack(
            [oracles.band(d, **fixed, is_mergekit=compat == "mergekit") for d in s.deltas]
        )
        finish = _voted if cls is breadcrumbs.BreadcrumbsTies else _summed
        return finish(s, operator, s.deltas if operator.density >= 1.0 else kept)

    return case


def _is_clear_cut(s, select):
    """Whether float32 ranks the variances around the last selected one as float64 does."""
    ranked = np.sort(oracles.variances(s.deltas).reshape(-1))[::-1]
    ranked = ranked[ranked > 0.0]
    if len(ranked) and not 1e-30 < ranked[-1] <= ranked[0] < 1e30:
        return False
    place = max(int(select * len(ranked)), 1)
    if place >= len(ranked) or ranked[place] == ranked[place - 1]:
        return True
    return ranked[place] < (1 - 1e-6) * ranked[place - 1]


def _sce(**settings):
    def case(s):
        select, q = s.number(0.0, 1.2, highest=1.0), s.choice([0.0, 1.0, 2.0])
        n_nonzero = np.count_nonzero(oracles.variances(s.deltas))
        if n_nonzero > STEPS + 1 and select < 1.0:
            # A rank that tables hold; others are snapped to it.
            select = (snapped(max(int(select * n_nonzero), 1), n_nonzero) + 0.5) / n_nonzero
        operator = sce.Sce(select=select, q=q, lambda_=0.8, **settings)
        exempt = is_exempt(s, operator)
        if not exempt and select < 1.0 and not _is_clear_cut(s, select):
            return None
        expected = oracles.sce(
            s.base,
            s.deltas,
            select=select,
            q=q,
            lambda_=0.8,
            is_exempt=exempt,
            is_mergekit=operator.compat == "mergekit",
            masks_deltas=operator.select_scope == "deltas",
        )
        undecided = undecided_votes(s.deltas, [1.0] * s.n, is_weighted=False)
        return Reference(operator, expected, 2.0, undecided)

    return case


def _localize_and_stitch(threshold, vectors):
    def case(s):
        density, scale = s.density(), s.number(0.3, 2.0)
        w = s.weights(-0.5, 1.0)
        operator = localize_and_stitch.LocalizeAndStitch(
            weights=w, density=density, lambda_=scale, threshold=threshold, vectors=vectors
        )
        if is_exempt(s, operator):
            expected = oracles.without_vote(s.base, s.deltas, w, lambda_=scale, divisor="mean")
            return Reference(operator, expected, 2 * total_of(w))
        find = s.global_thresholds if threshold == "global" else s.tensor_thresholds
        edges = find(density) if density < 1.0 else [0.0] * s.n
        expected = oracles.localize_and_stitch(s.base, s.deltas, w, scale, edges)
        return Reference(operator, expected, 2 * total_of(w))

    return case


def _consensus(s):
    w, scale, edge = s.weights(-0.5, 1.0), s.number(0.3, 1.5), s.number(0.2, 0.6)
    agreement = s.choice([0, 1, 2, 3])
    operator = consensus.Consensus(
        weights=w, mask_threshold=edge, lambda_=scale, agreement=agreement
    )
    if is_exempt(s, operator):
        expected = oracles.task_arithmetic(s.base, s.deltas, w, scale)
        return Reference(operator, expected, 2 * total_of(w))
    fixed = {"mask_threshold": edge, "agreement": agreement}
    expected = oracles.consensus(s.base, s.deltas, w, scale, **fixed)
    others = edge * np.abs(s.deltas.sum(0) - s.deltas)
    gap = np.abs(np.abs(s.deltas) - others)
    undecided = ((gap <= 1e-12 * np.abs(s.deltas).sum(0)) & (gap > 0.0)).any(0)
    return Reference(operator, expected, 2 * total_of(w), undecided)


def _evo_merging(s):
    """Dense task vectors; `test_evo_merging` has the couplings of adapters."""
    shares = tuple(s.density() for _ in range(s.n))
    operator = evo_merging.EvoMerging(alpha=shares, beta=s.weights(-1.5, 1.5))
    kept = s.deltas
    if not is_exempt(s, operator):
        edges = [
            oracles.trim_threshold([delta], share) if share < 1.0 else 0.0
            for delta, share in zip(s.deltas, shares, strict=True)
        ]
        kept = oracles.trim(s.deltas, edges)
    expected = oracles.task_arithmetic(s.base, kept, operator.beta)
    return Reference(operator, expected, 2 * total_of(operator.beta))


def _magmax(s):
    scale = s.number(0.3, 1.0)
    return Reference(magmax.MagMax(lambda_=scale), oracles.magmax(s.base, s.deltas, scale), 2)


def _ram(s):
    fixed = {"epsilon": s.choice([0.0, 1e-5, 0.05]), "lambda_": s.number(0.3, 1.5)}
    return Reference(ram.Ram(**fixed), oracles.ram(s.base, s.deltas, **fixed), 2)


def _ram_plus(s):
    fixed = {"epsilon": s.choice([0.0, 1e-5, 0.05]), "lambda_": s.number(0.3, 1.5)}
    fixed |= {"r": s.number(0.0, 0.5), "alpha": s.number(0.0, 1.0)}
    return Reference(ram.RamPlus(**fixed), oracles.ram(s.base, s.deltas, **fixed), 2)


def _layer_scale(method):
    def case(s):
        w = s.weights(0.1, 1.0)
        alpha, beta, density = s.number(0.0, 1.0), s.number(0.0, 1.5), s.density()
        layer, n_layers = s.choice([(None, 4), (0, 1), (0, 4), (2, 4), (3, 4)])
        name = "model.norm.weight" if layer is None else f"model.layers.{layer}.mlp.w.weight"
        s.inputs = dataclasses.replace(s.inputs, name=name, n_layers=n_layers)
        is_ties = method == "ties"
        inner = (
            ties.Ties(weights=w, density=density)
            if is_ties
            else task_arithmetic.TaskArithmetic(weights=w)
        )
        operator = LayerScaled(inner, LayerScale(alpha=alpha, beta=beta))
        zero = np.zeros_like(s.base)
        undecided = np.array(False)
        if not is_ties:
            merged = oracles.task_arithmetic(zero, s.deltas, w)
        elif is_exempt(s, operator):
            merged = oracles.without_vote(zero, s.deltas, w, lambda_=1.0, divisor="mean")
        else:
            kept = oracles.trim(s.deltas, s.global_thresholds(density))
            fixed = {"is_weighted": False, "divisor": "mean"}
            merged = oracles.vote(zero, kept, w, lambda_=1.0, **fixed)
            undecided = undecided_votes(kept, w, is_weighted=False)
        place = {"alpha": alpha, "beta": beta, "layer": layer, "n_layers": n_layers}
        expected = oracles.layer_scale(s.base, merged, **place)
        return Reference(operator, expected, 3 * total_of(w), undecided)

    return case


# Pairs -------------------------------------------------------------------------------------------


def _nearswap(compat):
    def case(s):
        t = s.number(0.01, 2.0)
        expected = oracles.nearswap(*s.pair, t, is_mergekit=compat == "mergekit")
        return Reference(nearswap.NearSwap(t=t, compat=compat), expected, 2)

    return case


def _arcee_fusion(s):
    multiplier = s.number(0.0, 4.0)
    divergences = oracles.arcee_divergences(*s.pair)
    if np.any((divergences < 1e-9) & (divergences != 0.0)):
        return None  # as small as its rounding
    scores = oracles.arcee_scores(*s.pair)
    edge = oracles.arcee_threshold(scores, multiplier)
    undecided = (np.abs(scores - edge) <= 4e-6 * (1 + multiplier) * abs(edge)) & (edge != 0.0)
    operator = arcee_fusion.ArceeFusion(multiplier=multiplier)
    expected = oracles.arcee_fusion(*s.pair, multiplier)
    return Reference(operator, expected, 1.0, undecided)


def _ties_modes():
    yield "ties paper", {}
    yield "ties mergekit", {"compat": "mergekit"}
    yield "ties l1", {"compat": "mergekit", "rescale": "l1"}
    for divisor in ("mean", "weights", "signed_weights", "none"):
        for sign in ("weighted", "unweighted"):
            fixed = {"threshold": "tensor", "vectors": "include"}
            yield f"ties {divisor} {sign}", {**fixed, "divisor": divisor, "sign": sign}


ELEMENTWISE = {
    **{name: Case(_ties(**settings)) for name, settings in _ties_modes()},
    "layer_scale task_arithmetic": Case(_layer_scale("task_arithmetic")),
    "layer_scale ties": Case(_layer_scale("ties")),
    "dare_linear": Case(_dare(dare.DareLinear)),
    "dare_linear mergekit": Case(_dare(dare.DareLinear, compat="mergekit")),
    "dare_linear plain": Case(_dare(dare.DareLinear, rescale="none", vectors="include")),
    "dare_ties": Case(_dare(dare.DareTies)),
    "dare_ties mergekit": Case(_dare(dare.DareTies, compat="mergekit", divisor="auto")),
    "della_linear": Case(_della(della.DellaLinear)),
    "della_linear mergekit": Case(_della(della.DellaLinear, compat="mergekit")),
    "della": Case(_della(della.Della)),
    "della mergekit": Case(_della(della.Della, compat="mergekit")),
    "breadcrumbs": Case(_breadcrumbs(breadcrumbs.Breadcrumbs, "paper")),
    "breadcrumbs mergekit": Case(_breadcrumbs(breadcrumbs.Breadcrumbs, "mergekit")),
    "breadcrumbs_ties": Case(_breadcrumbs(breadcrumbs.BreadcrumbsTies, "paper")),
    "breadcrumbs_ties mergekit": Case(_breadcrumbs(breadcrumbs.BreadcrumbsTies, "mergekit")),
    "sce": Case(_sce()),
    "sce mergekit": Case(_sce(compat="mergekit")),
    "sce weights": Case(_sce(select_scope="weights", vectors="include")),
    "localize_and_stitch": Case(_localize_and_stitch("global", "auto")),
    "localize_and_stitch tensor": Case(_localize_and_stitch("tensor", "include")),
    "consensus": Case(_consensus),
    "evo_merging": Case(_evo_merging),
    "magmax": Case(_magmax),
    "ram": Case(_ram),
    "ram_plus": Case(_ram_plus),
    "nearswap": Case(_nearswap("paper"), 1, 2),
    "nearswap mergekit": Case(_nearswap("mergekit"), 1, 2),
    "arcee_fusion": Case(_arcee_fusion, 1, 2),
}
