"""Results that wait for their turn: one small JSON file each in ``arrived/``."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.recipe import canonical_json
from evomerge.storage.score_log import row_digest


def parked_file(evaluation: Evaluation) -> tuple[str, bytes]:
    """Return name (inside the run folder) and content of a result that waits for its turn."""
    body: dict[str, Any] = {
        "recipe": evaluation.candidate.recipe.digest(),
        "error": evaluation.error,
        "weights": evaluation.weights_digest,
        "scores": _packed(evaluation.scores),
    }
    if evaluation.margins:
        body["margins"] = _packed(evaluation.margins)
    data = canonical_json({"body": body, "digest": row_digest(canonical_json(body).encode())})
    return f"arrived/{evaluation.candidate.id:08d}.json", data.encode()


def parked_result(data: bytes, candidate: Candidate) -> Evaluation | None:
    """Return what `parked_file` wrote for a candidate; None if it is torn or of another recipe."""
    try:
        record = json.loads(data)
        body = record["body"]
        if record["digest"] != row_digest(canonical_json(body).encode()):
            return None
        if body["recipe"] != candidate.recipe.digest():
            return None
        scores, margins = _unpacked(body["scores"]), _unpacked(body.get("margins", {}))
        return Evaluation(candidate, scores, body["error"], body["weights"], margins=margins)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _packed(values: Mapping[str, ScoreArray]) -> dict[str, str]:
    return {
        task: base64.b64encode(own.astype("<f4").tobytes()).decode() for task, own in values.items()
    }


def _unpacked(texts: Mapping[str, str]) -> dict[str, ScoreArray]:
    return {
        task: np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
        for task, text in texts.items()
    }
