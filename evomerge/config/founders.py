"""The zero-search recipes that are scored before an algorithm's own proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Proposal
from evomerge.core.choice_space import ChoiceSpace, Space
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import SEGMENTS, Recipe, Setting
from evomerge.core.search_space import SWITCH, SearchSpace
from evomerge.merging.grams import change_basis
from evomerge.merging.layer_scale import ALPHA, BETA
from evomerge.merging.model_stock import ModelStock
from evomerge.merging.parameters import default_settings
from evomerge.merging.ties import Ties

INITIAL = "founder: initial values"
RAW_LINEAR: dict[str, Setting] = {"normalize": False}


def founders_of(
    space: Space,
    model: ModelSpace,
    which: str,
    *,
    in_span: bool,
    virtual: Mapping[str, tuple[str, ...]],
    grams: Mapping[str, FloatArray] | None = None,
) -> tuple[Proposal, ...]:
    """Return each parent, the mean, task arithmetic at three scales, Model Stock and TIES.

    All but the parents are those of the models; a transform whose results add up to a merge
    contributes that merge.

    Parents, mean and task arithmetic are raw linear recipes over the sources, so a one-hot row is
    that parent bit for bit. Where the space itself can say the same thing, its own form is used,
    so that algorithms that search its vectors can learn from it. For an algorithm in the span
    Model Stock is a linear recipe with a segment per tensor; TIES is not in the span and left out.
    Where the method is searched too, each has its initial values, and the first that can say one
    of the others says it.

    Args:
        space: The search space, its founders not yet set.
        model: The aligned models.
        which: "all" or "parents".
        in_span: The algorithm works in the span of the sources.
        virtual: Label of a transform -> ids of the sources it makes.
        grams: Gram matrix of every merged tensor, see `Derived`. Where it is needed and None, a
            recipe of the operator stands for Model Stock: enough to count founders.

    Source: operators.md, section 9; Jang et al. 2024, arXiv:2403.19522; Yadav et al. 2023,
        arXiv:2306.01708 (density 0.2, scale 1).
    """
    if isinstance(space, ChoiceSpace):
        own = [
            founders_of(branch, model, which, in_span=in_span, virtual=virtual, grams=grams)
            for branch in space.branches
        ]
        if which == "all":  # a method without anything to search is tried here, if nowhere else
            own = [
                founders if branch.searched else (*founders, _initial(branch))
                for founders, branch in zip(own, space.branches, strict=True)
            ]
        return _of_branches(space, own)
    proposals: list[Proposal] = []
    seen: set[bytes] = set()
    for origin, row in _linear_rows(model, which, virtual).items():
        key = np.round(row, 12).tobytes()
        if key not in seen:
            seen.add(key)
            recipe = _raw(space, row) if in_span else _say(space, row)
            proposals.append(Proposal(recipe, (), origin))
    if which != "all":
        return tuple(proposals)
    sources = _real(model, virtual)
    if model.has_base and len(sources) > 2:  # both ask how far experts agree
        stock = _model_stock(sources)
        if in_span and grams is not None:
            stock = _stock_in_span(space, model, sources, grams)
        proposals.append(Proposal(_own_form(space, stock), (), "founder: model stock"))
        if not in_span:
            proposals.append(Proposal(_own_form(space, _ties(sources)), (), "founder: ties"))
    if not in_span and space.searched:
        initial = _initial(space)
        if initial.recipe.digest() not in {proposal.recipe.digest() for proposal in proposals}:
            proposals.append(initial)
    return tuple(proposals)


def _initial(space: SearchSpace) -> Proposal:
    return Proposal(space.decode(space.initial()), (), INITIAL)


def _of_branches(space: ChoiceSpace, own: Sequence[tuple[Proposal, ...]]) -> tuple[Proposal, ...]:
    """Return the founders of all branches, each once, in a form of the space where there is one."""
    found: dict[str, Proposal] = {}
    for label, proposals in zip(space.labels, own, strict=True):
        for proposal in proposals:
            origin = proposal.origin + (f" of {label}" if proposal.origin == INITIAL else "")
            if origin not in found or space.encode(found[origin].recipe) is None:
                found[origin] = replace(proposal, origin=origin)
    once: dict[str, Proposal] = {}
    for proposal in found.values():
        once.setdefault(proposal.recipe.digest(), proposal)
    return tuple(once.values())


def _real(model: ModelSpace, virtual: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the ids of the models that no transform made, the base first."""
    made = {source for ids in virtual.values() for source in ids}
    return tuple(source for source in model.sources if source not in made)


def _linear_rows(
    model: ModelSpace, which: str, virtual: Mapping[str, tuple[str, ...]]
) -> dict[str, FloatArray]:
    """Return origin -> (K,) coefficients over the sources; two may be the same merge."""
    k = len(model.sources)
    real = _real(model, virtual)
    experts = np.array([float(source in real) for source in model.sources])
    if model.has_base:
        experts[0] = 0.0
    rows: dict[str, FloatArray] = {
        f"founder: {source}": np.eye(k)[i] for i, source in enumerate(model.sources)
    }
    if which == "all":
        for label, ids in virtual.items():
            row = np.array([float(source in ids) for source in model.sources])
            row[0] = 1.0 - row.sum()
            rows[f"founder: {label}"] = row
    if which == "all" and experts.any():
        rows["founder: mean of the models"] = experts / experts.sum()
        if model.has_base:
            for scale in (0.3, 0.5, 1.0):
                row = scale * experts
                row[0] = 1.0 - row.sum()
                rows[f"founder: task arithmetic {scale:g}"] = row
    return rows


def _raw(space: SearchSpace, row: FloatArray) -> Recipe:
    return Recipe("linear", space.sources, {"weights": row[None]}, "global", None, RAW_LINEAR)


def _say(space: SearchSpace, row: FloatArray) -> Recipe:
    """Return source coefficients (K,) as a recipe of the space if it can, else raw linear."""
    raw = _raw(space, row)
    if [item.name for item in space.searched if item.name != SWITCH] != ["weights"]:
        return raw
    if space.operator == "task_arithmetic" and np.isclose(row.sum(), 1.0):
        lambda_ = space.fixed.get("lambda_")
        weights = row[1:]
        plain = space.settings.get("normalize") is False and lambda_ is not None
        if not plain or not np.all(lambda_ == 1.0):
            return raw
    elif space.operator == "linear":
        weights = row
        if space.settings.get("normalize") is not False and not np.isclose(row.sum(), 1.0):
            return raw
    else:
        return raw
    if ALPHA in space.fixed:  # the space scales whatever it says
        return raw
    params = dict(space.fixed) | {"weights": np.tile(weights, (space.n_groups, 1))}
    own = space.recipe(params)
    return own if space.encode(own) is not None else raw


def _model_stock(sources: tuple[str, ...]) -> Recipe:
    params = {"multiplier": np.ones(1)}
    return Recipe("model_stock", sources, params, settings=default_settings(ModelStock))


def _ties(sources: tuple[str, ...]) -> Recipe:
    weights = np.ones((1, len(sources) - 1))
    params = {"weights": weights, "density": np.array([0.2]), "lambda_": np.ones(1)}
    return Recipe("ties", sources, params, settings=default_settings(Ties))


def _own_form(space: SearchSpace, recipe: Recipe) -> Recipe:
    """Return a recipe for the whole model in the space's groups if it can say it, else itself."""
    if recipe.operator != space.operator or recipe.breaks is not None:
        return recipe
    searched = {item.name for item in space.searched}
    unscaled = {ALPHA: np.ones(1), BETA: np.zeros(1)}
    params = {
        name: np.repeat(value, space.n_groups, axis=0)
        for name, value in (unscaled | dict(recipe.params)).items()
        if name in recipe.params or name in searched or name in space.fixed
    }
    says = recipe.sources == space.sources and recipe.settings == dict(space.settings)
    own = space.recipe(params)
    return own if says and space.encode(own) is not None else recipe


def _stock_in_span(
    space: SearchSpace,
    model: ModelSpace,
    sources: tuple[str, ...],
    grams: Mapping[str, FloatArray],
) -> Recipe:
    """Return Model Stock as a raw linear recipe: one row of coefficients per tensor."""
    columns = [space.sources.index(source) for source in sources]
    tensors = [tensor for tensor in model.merged if tensor.spec.n_elements]
    rows = np.zeros((len(tensors), len(space.sources)))
    for row, tensor in zip(rows, tensors, strict=True):
        gram = change_basis(grams[tensor.spec.name], model, sources)
        row[columns] = ModelStock().coefficients(gram)
    breaks = np.array([*(tensor.offset for tensor in tensors), model.n_elements])
    return Recipe("linear", space.sources, {"weights": rows}, SEGMENTS, breaks, RAW_LINEAR)
