"""What can be found out about a config in seconds, before anything is scored: ✓, ! and ✗."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.config.findings.data import example_findings
from evomerge.config.findings.dry_run import dry_run_findings
from evomerge.config.findings.finding import Finding, warn
from evomerge.config.findings.lineage import lineage_findings
from evomerge.config.findings.papers import (
    chat_template_finding,
    dtype_finding,
    licence_findings,
    token_findings,
)
from evomerge.config.findings.resources import disk_finding, memory_finding
from evomerge.config.model_size import is_from_scratch
from evomerge.config.session import Prepared

__all__ = ["Finding", "findings_of"]


def findings_of(
    prepared: Prepared, *, worker_bytes: int, export_bytes: int, dry_run: bool | None = None
) -> tuple[list[Finding], dict[str, Any]]:
    """Return all findings and the figures behind some of them, JSON-ready.

    Args:
        prepared: A config that passed every check that refuses it.
        worker_bytes: Memory of one worker.
        export_bytes: Size of one exported model.
        dry_run: See `dry_run_findings`.

    Raises:
        SourceError: A tokenizer's file is malformed.
    """
    models = prepared.models
    scratch = is_from_scratch(prepared.config)
    lineage, figures = lineage_findings(models, from_scratch=scratch)
    licence, merged = licence_findings(models)
    template = chat_template_finding(models)
    found = [
        *_left_out(models.space.left_out),
        *lineage,
        *token_findings(models),
        dtype_finding(models),
        *([] if template is None else [template]),
        licence,
        *example_findings(prepared.tasks),
        memory_finding(prepared.config, worker_bytes),
        disk_finding(export_bytes),
        *dry_run_findings(prepared, export_bytes, forced=dry_run),
    ]
    facts = {
        "lineage": figures,
        "licence": {"merged": merged.id, "stated": dict(merged.stated), "text": merged.text},
    }
    return found, facts


def _left_out(tensors: Mapping[str, str]) -> list[Finding]:
    if not tensors:
        return []
    lines = [f"{len(tensors)} left out of the merge"]
    lines += [f"{name}: {why}" for name, why in tensors.items()]
    remedy = "The export keeps the first model's, if it has one; give tasks a `head:` of their own"
    return [warn("tensors", "\n  ".join(lines), remedy)]
