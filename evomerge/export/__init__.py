"""A candidate -> a folder that transformers loads, with the card that says where it came from."""

from evomerge.export.card import CardFacts, LineageStep, ParentModel, ScoreRow
from evomerge.export.writer import DONOR_FILES, ExportResult, export_candidate, verify_digest

__all__ = [
    "DONOR_FILES",
    "CardFacts",
    "ExportResult",
    "LineageStep",
    "ParentModel",
    "ScoreRow",
    "export_candidate",
    "verify_digest",
]
