"""The `transforms:` section: cached transforms whose results are sources of the merge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.config.construct import construct
from evomerge.config.schema import ModelConfig, TransformConfig
from evomerge.errors import ConfigError, nearest
from evomerge.merging.cache import TensorCache
from evomerge.merging.source import TensorSource
from evomerge.merging.transform import DeltaTransform, delta_transforms
from evomerge.merging.transform_run import TransformRun
from evomerge.merging.virtual_source import VirtualSource, virtual_sources

# (label, tensors done, tensors in all, name of the one just done)
FillProgress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, eq=False)
class VirtualGroup:
    """What one entry of the section makes.

    Attributes:
        config: The entry, with all defaults.
        run: The transform over base and experts.
        sources: (V,) its results.
    """

    config: TransformConfig
    run: TransformRun
    sources: tuple[VirtualSource, ...]

    @property
    def label(self) -> str:
        """Prefix of the sources' ids."""
        return str(self.config.label)

    @property
    def experts(self) -> tuple[str, ...]:
        """(E,) names of the models it is made of."""
        return tuple(self.config.of or ())

    @property
    def ids(self) -> tuple[str, ...]:
        """(V,) ids of the sources."""
        return tuple(source.id for source in self.sources)

    def records(self) -> list[dict[str, Any]]:
        """Return the entries of sources.json: those of a model, and what it is computed from."""
        made_of = {**self.config.model_dump(mode="json"), "version": self.run.transform.version}
        return [
            {
                "id": source.id,
                "model": f"{self.config.name} of {', '.join(self.experts)}",
                "lora": None,
                "revision": None,
                "digest": source.digest,
                "files": [],
                "tensors": {},
                "transform": made_of,
                "output": source.output,
            }
            for source in self.sources
        ]


def resolve_transforms(
    transforms: Sequence[TransformConfig],
    base_model: ModelConfig | None,
    models: Sequence[ModelConfig],
    base_dir: Path,
) -> list[TransformConfig]:
    """Return the section with every default spelled out.

    Args:
        transforms: The section.
        base_model: The base, with its unique name.
        models: The experts, with their unique names.
        base_dir: Folder that relative paths of parameters start from.

    Raises:
        ConfigError: There is no base, or an entry names an unknown transform, parameter or model,
            or two sources get one id.
    """
    if transforms and base_model is None:
        raise ConfigError("transforms: work on task vectors; give a `base_model:`")
    names = [str(model.name) for model in models]
    taken = {*names, *([] if base_model is None else [str(base_model.name)])}
    resolved = []
    for index, item in enumerate(transforms):
        where = f"transforms.{index}"
        transform, body = construct(delta_transforms, _body(item), where, base_dir)
        experts = names if item.of is None else item.of
        _check_experts(experts, names, where)
        label = item.label or item.name
        ids = _ids(label, experts, transform)
        clash = next((id for id in (label, *ids) if id in taken or ids.count(id) > 1), None)
        if clash is not None:
            raise ConfigError(
                f"{where}.label: there is a source {clash!r} already; give the transform another "
                "`label:`"
            )
        taken |= {label, *ids}
        _refuse_infinity(body, where)
        update = {**body, "of": list(experts), "label": label, "keep_parents": item.keep_parents}
        resolved.append(TransformConfig.model_validate(update))
    return resolved


def open_transforms(
    transforms: Sequence[TransformConfig],
    sources: Mapping[str, TensorSource],
    *,
    cache: TensorCache,
    config: Mapping[str, Any],
) -> tuple[VirtualGroup, ...]:
    """Return the virtual sources of a resolved section; nothing is computed.

    Args:
        transforms: The section from `resolve_transforms`.
        sources: Base and experts by id, the base first, under the base's tensor names.
        cache: Where task vectors are kept.
        config: The base's parsed config.json; {} when there is none.

    Raises:
        ModelSpaceError: The models of an entry cannot be merged, or all equal the base.
    """
    base = next(iter(sources.values()))
    groups = []
    for index, item in enumerate(transforms):
        where = f"transforms.{index}"
        transform, body = construct(delta_transforms, _body(item), where, Path())
        experts = item.of or []
        run = TransformRun(
            item.name,
            transform,
            {key: value for key, value in body.items() if key != "name"},
            base,
            [sources[name] for name in experts],
            cache=cache,
            config=config,
        )
        ids = _ids(str(item.label), experts, transform)
        groups.append(VirtualGroup(item, run, virtual_sources(run, ids)))
    return tuple(groups)


def fill_transforms(groups: Sequence[VirtualGroup], progress: FillProgress | None = None) -> None:
    """Compute every task vector that the cache lacks; what is there is only looked at.

    Args:
        groups: `OpenModels.virtual`.
        progress: Called after every tensor.

    Raises:
        EvaluationError: A transform returned NaN, infinity or tensors of a wrong shape.
        ConfigError: The cache's budget is too small.
        PreflightError: The cache cannot be written.
    """
    for group in groups:
        report = None
        if progress is not None:
            report = _labelled(progress, group.label)
        group.run.fill(report)


def _labelled(progress: FillProgress, label: str) -> Callable[[int, int, str], None]:
    return lambda done, total, name: progress(label, done, total, name)


def _body(item: TransformConfig) -> dict[str, Any]:
    return {"name": item.name, **item.parameters}


def virtual_ids(item: TransformConfig) -> tuple[str, ...]:
    """Return the ids of the sources that a resolved entry makes."""
    transform, _ = construct(delta_transforms, _body(item), "transforms", Path())
    return tuple(_ids(str(item.label), item.of or [], transform))


def _ids(label: str, experts: Sequence[str], transform: DeltaTransform) -> list[str]:
    own = [f"{label}:{name}" for name in experts] if transform.outputs == "experts" else [label]
    return own + [f"{label}:{name}" for name in transform.extra_outputs]


def _refuse_infinity(body: Mapping[str, Any], where: str) -> None:
    """Refuse a number that JSON, and so the cache's key and the journal, cannot hold."""
    for key, value in body.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}.{key} is {value}; expected a finite number")


def _check_experts(experts: Sequence[str], known: Sequence[str], where: str) -> None:
    if not experts:
        raise ConfigError(f"{where}.of: names no model; leave it out to transform all of them")
    for name in experts:
        if name not in known:
            raise ConfigError(
                f"{where}.of: {name!r} is none of `models:`.{nearest(name, known)} "
                f"They are {', '.join(known)}."
            )
    if len(set(experts)) < len(experts):
        raise ConfigError(f"{where}.of: names a model twice: {', '.join(experts)}")
