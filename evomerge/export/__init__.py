"""A candidate -> a folder that transformers or PEFT loads, with a card of where it came from."""

from evomerge.export.adapter import AsAdapter, export_adapter
from evomerge.export.adapter_card import AdapterFacts
from evomerge.export.card import CardFacts, LineageStep, ParentModel, licence_of
from evomerge.export.card_scores import Gain, ScoreRow
from evomerge.export.licences import MergedLicence
from evomerge.export.stacked import Computed, Stacked
from evomerge.export.transformed import Transformed
from evomerge.export.writer import DONOR_FILES, ExportResult, export_candidate, verify_digest

__all__ = [
    "DONOR_FILES",
    "AdapterFacts",
    "AsAdapter",
    "CardFacts",
    "Computed",
    "ExportResult",
    "Gain",
    "LineageStep",
    "MergedLicence",
    "ParentModel",
    "ScoreRow",
    "Stacked",
    "Transformed",
    "export_adapter",
    "export_candidate",
    "licence_of",
    "verify_digest",
]
