"""Candidates on a server: joins a config's models with the way they get there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from evomerge.config.models import OpenModels
from evomerge.config.parents import parents_of, transformed_of
from evomerge.core.recipe import Recipe
from evomerge.evaluation.http_client import Client
from evomerge.evaluation.installs import LoraInstall, RecipeInstall
from evomerge.evaluation.served_subject import Install, ServedModel
from evomerge.evaluation.server import ServedCandidate
from evomerge.export.adapter import NoChangeError, export_adapter
from evomerge.export.card import CardFacts
from evomerge.runtime.worker import MergeInputs


def serve(
    candidate: ServedCandidate, inputs: MergeInputs, models: OpenModels, *, device: str
) -> ServedModel:
    """Return the candidates of a server; nothing is sent before the first is installed.

    Args:
        candidate: The server and how it is used.
        inputs: What adapters are merged from; recipes need none of it.
        models: The run's models.
        device: Where adapters are computed.
    """
    client = Client(candidate.server)
    install: Install
    if candidate.install == "recipe":
        digests = {str(record["id"]): str(record["digest"]) for record in models.record}
        install = RecipeInstall(client, digests)
    else:
        assert candidate.adapters is not None  # checked by the settings
        assert candidate.base is not None
        install = LoraInstall(
            client,
            folder=candidate.adapters,
            folder_on_server=candidate.adapters_on_server or str(candidate.adapters),
            base=candidate.base,
            export=partial(_export, inputs, models, candidate.rank, device),
        )
    return ServedModel(client, install)


def _export(
    inputs: MergeInputs,
    models: OpenModels,
    rank: int | None,
    device: str,
    recipe: Recipe,
    folder: Path,
) -> str | None:
    """Write an adapter and return its merge's digest, or None when the merge equals the base."""
    card = CardFacts(
        title=folder.name,
        parents=parents_of(models.record),
        transformed=transformed_of(models.virtual),
    )
    try:
        result = export_adapter(
            folder,
            recipe=recipe,
            space=inputs.space,
            sources=inputs.sources,
            derived=inputs.derived,
            donor=models.donor,
            card=card,
            rank=rank,
            device=device,
        )
    except NoChangeError:
        return None
    return result.weights_digest
