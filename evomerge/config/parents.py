"""The models of a run, as model cards name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.config.transforms import VirtualGroup
from evomerge.export.card import ParentModel
from evomerge.export.transformed import Transformed


def parents_of(record: Sequence[Mapping[str, object]]) -> tuple[ParentModel, ...]:
    """Return the models on disk for a model card, from the content of sources.json."""
    return tuple(
        ParentModel(
            id=str(item["id"]),
            model=str(item["model"]),
            path=Path(str(item["model"])),
            revision=None if item["revision"] is None else str(item["revision"]),
            lora=None if item["lora"] is None else str(item["lora"]),
            lora_path=None if item["lora"] is None else Path(str(item["lora"])),
            digest=str(item["digest"]),
        )
        for item in record
        if "transform" not in item
    )


def transformed_of(groups: Sequence[VirtualGroup]) -> tuple[Transformed, ...]:
    """Return the computed sources for a model card."""
    return tuple(
        Transformed(
            entry=group.config.model_dump(mode="json"),
            of=group.experts,
            digests={source.id: source.digest for source in group.sources},
        )
        for group in groups
    )
