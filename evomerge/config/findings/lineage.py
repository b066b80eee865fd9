"""Do the experts really descend from the base, and are they different models at all?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.config.findings.finding import Finding, bad, good, quoted, warn
from evomerge.config.models import OpenModels
from evomerge.core.model_space import ModelSpace
from evomerge.merging.kinship import (
    Kinship,
    change_cosine,
    cosine_to_first,
    kinship,
    relative_change,
)
from evomerge.merging.source import TensorSource

# Of all weights of two models. Fine-tunes have 0.99 and more; two models trained from other random
# weights have 0 within 0.01. In between lie long further training and small models.
UNRELATED = 0.1
FAR = 0.5
# Of two task vectors. Experts of different skills have at most about 0.3.
SAME_WAY = 0.8
_SHOWN = 8  # experts with a line of their own

_OTHER_BASE = (
    "Give the model they were all tuned from as `base_model:` (an instruct model, perhaps), or "
    "leave the model out"
)


def lineage_findings(
    models: OpenModels, *, from_scratch: bool = False
) -> tuple[list[Finding], dict[str, Any] | None]:
    """Return what samples of the weights say, and the figures behind it, JSON-ready.

    Nothing (`[], None`) for sequences of layers and where only one model is opened: layers of
    different models may well be put in sequence.

    Args:
        models: The models of a config.
        from_scratch: They are evolved from scratch, so that they need not be kin.
    """
    own = _own_sources(models)
    if models.layers is not None or models.stacks or len(own) < 2:
        return [], None
    space = replace(models.space, sources=tuple(own))
    twins = _twins(space, own)
    found = [_twin_finding(space, name, twin) for name, twin in twins.items()]
    kin = kinship(space, own)
    if kin is None:
        return found, None
    figures = _figures(kin, has_base=space.has_base)
    descent = _descent(figures, from_scratch=from_scratch)
    return [*found, *descent, *_same_way(figures, {*twins})], figures


def _own_sources(models: OpenModels) -> dict[str, TensorSource]:
    """Return the models on disk, the base first; of transforms what they are made of."""
    virtual = {name for group in models.virtual for name in group.ids}
    found = {name: source for name, source in models.sources.items() if name not in virtual}
    found |= {source.id: source for group in models.virtual for source in group.run.experts}
    order = [str(item["id"]) for item in models.record]
    return {name: found[name] for name in order if name in found}


def _twins(space: ModelSpace, sources: Mapping[str, TensorSource]) -> dict[str, str]:
    """Return every model that holds the same weights as one before it -> that one."""
    seen: dict[tuple[str, ...], str] = {}
    twins = {}
    for name, source in sources.items():
        header = source.header()
        names = (tensor.spec.name for tensor in space.tensors)
        key = tuple(header.digests.get(header.tied.get(n, n), "") for n in names)
        if key in seen:
            twins[name] = seen[key]
        seen.setdefault(key, name)
    return twins


def _twin_finding(space: ModelSpace, name: str, twin: str) -> Finding:
    is_base = space.has_base and twin == space.sources[0]
    return bad(
        "lineage",
        f"{name!r} holds the same weights as {'the base ' if is_base else ''}{twin!r}",
        "Check its path, or leave it out: it adds a dimension and no skill",
    )


def _figures(kin: Kinship, *, has_base: bool) -> dict[str, Any]:
    whole, n = kin.whole(), len(kin.sources)

    def facts(gram: Any, k: int) -> dict[str, float]:
        return {
            "cosine": cosine_to_first(gram, k),
            "relative_norm": min(relative_change(gram, k), 1e9),
        }

    experts = {
        kin.sources[k]: {
            **facts(whole, k),
            "groups": [
                {"group": label, **facts(gram, k)}
                for label, gram in zip(kin.groups, kin.grams, strict=True)
            ],
        }
        for k in range(1, n)
    }
    pairs = [
        {
            "models": [kin.sources[i], kin.sources[j]],
            "cosine": change_cosine(whole, i, j),
            "groups": {
                label: change_cosine(gram, i, j)
                for label, gram in zip(kin.groups, kin.grams, strict=True)
            },
        }
        for i in range(1, n)
        for j in range(i + 1, n)
    ]
    return {
        "reference": kin.sources[0],
        "is_base": has_base,
        "sampled_elements": kin.n_sampled,
        "elements": kin.n_elements,
        "experts": experts,
        "task_vectors": pairs if has_base else [],
    }


def _descent(figures: Mapping[str, Any], *, from_scratch: bool) -> list[Finding]:
    """Return a ✓ for all that are close to the first model, and a finding for each other."""
    experts: Mapping[str, Any] = figures["experts"]
    reference, is_base = figures["reference"], figures["is_base"]
    strange = [name for name, item in experts.items() if item["cosine"] < UNRELATED]
    far = [n for n, item in experts.items() if UNRELATED <= item["cosine"] < FAR]
    found = []
    close = [name for name in experts if name not in {*strange, *far}]
    if close:
        low = min(experts[name]["cosine"] for name in close)
        lines = [_line(name, experts[name], is_base=is_base) for name in close[:_SHOWN]]
        lines += [f"and {len(close) - _SHOWN} more"] if len(close) > _SHOWN else []
        what = f"close to the base {reference!r}" if is_base else f"relatives of {reference!r}"
        read = f"{figures['sampled_elements']:,} of {figures['elements']:,} matrix elements read"
        text = f"{len(close)} of {len(experts)} {what}, cosine {low:.5f} or more ({read})"
        found.append(good("lineage", "\n  ".join([text, *lines])))
    for name in far:
        text = f"{name!r} is far from {reference!r}: {_line(name, experts[name], is_base=is_base)}"
        found.append(warn("lineage", text, _OTHER_BASE if is_base else "Check that they are kin"))
    for name in strange:
        cosine = experts[name]["cosine"]
        text = (
            f"{name!r} is unrelated to {reference!r}: the cosine of their weights is {cosine:.4f}"
        )
        remedy = _OTHER_BASE if is_base else "Merge only fine-tunes of one base; leave one out"
        if from_scratch:
            found.append(warn("lineage", text, "Well so if they know nothing yet (`mutation`)"))
        else:
            found.append(bad("lineage", text, remedy))
    return found


def _line(name: str, item: Mapping[str, Any], *, is_base: bool) -> str:
    rows = sorted(item["groups"], key=lambda row: float(row["relative_norm"]))
    low, high = rows[0], rows[-1]
    what = "task vector" if is_base else "difference"
    spread = (
        f" ({low['group']} {low['relative_norm']:.3g} to {high['group']} "
        f"{high['relative_norm']:.3g})"
        if len(rows) > 1
        else ""
    )
    return (
        f"{name}: cosine {item['cosine']:.5f}, {what} {item['relative_norm']:.3g} of the "
        f"weights' norm{spread}"
    )


def _same_way(figures: Mapping[str, Any], twins: set[str]) -> list[Finding]:
    """Return what the angles between task vectors say; of twins one is enough."""
    pairs = [pair for pair in figures["task_vectors"] if not twins & {*pair["models"]}]
    if not pairs:
        return []
    cosines = np.array([pair["cosine"] for pair in pairs])
    same = [pair["models"] for pair in pairs if pair["cosine"] > SAME_WAY]
    if not same:
        text = f"task vectors have cosines {cosines.min():.3f} to {cosines.max():.3f}"
        if len(pairs) == 1:
            text = f"the two task vectors have cosine {cosines[0]:.3f}"
        return [good("lineage", text)]
    names = sorted({name for models in same for name in models})
    share = f"the task vectors of {quoted(names)} point the same way (cosine over {SAME_WAY:g})"
    return [
        warn(
            "lineage",
            f"{share}: they share more than {figures['reference']!r}",
            f"{_OTHER_BASE}; a search between nearly equal models finds little",
        )
    ]
