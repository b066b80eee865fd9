"""What a run depends on: versions, seed, models with digests, data, machines."""

from __future__ import annotations

import json
from typing import Any

import evomerge
from evomerge.config.results import RunResults
from evomerge.config.workers import read_sources
from evomerge.report.timing import Timing


def environment(results: RunResults, timing: Timing) -> dict[str, Any]:
    """Return versions, seed, machines, workers, sources and data digests, and the config."""
    header = results.header
    return {
        "versions": {str(k): str(v) for k, v in header.get("versions", {}).items()},
        "report_version": evomerge.__version__,
        "seed": results.config.seed,
        "machines": timing.machines,
        "workers": timing.by_worker,
        "sources": [
            {
                "id": str(source["id"]),
                "model": str(source["model"]),
                "lora": str(source["lora"] or ""),
                "revision": str(source["revision"] or ""),
                "digest": str(source["digest"]),
            }
            for source in read_sources(results.folder)
        ],
        "data": {str(k): str(v) for k, v in header.get("data", {}).items()},
        "config": json.dumps(results.config.model_dump(mode="json"), indent=2),
    }
