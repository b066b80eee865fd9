"""Journal events: what they hold, and how candidates and evaluations become events and back.

``header``  config, source digests, package versions: everything a replay depends on
``asked``   one proposal: id, recipe, parents
``told``    one result in the order the algorithm learns of it: objectives and the row and
            digest of its per-example scores, or the error; with a number of `examples` and
            without objectives where only so many are scored by now

Events hold nothing that differs between two runs of one seed: no times, hosts or attempts
(those go to events.log). In ordered mode two runs therefore have identical journals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from typing import Any

from evomerge.core.arrays import IntArray
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, JournalError
from evomerge.search.journal_recipes import JournalRecipes
from evomerge.seeding import derive

Event = Mapping[str, Any]


def asked_event(
    candidate: Candidate, examples: IntArray | None = None, held: Container[str] = ()
) -> dict[str, Any]:
    """Return the event that a candidate was proposed.

    Args:
        candidate: What was proposed.
        examples: (n,) those it is to be scored on; None: all.
        held: Ids of ancestors whose recipes the journal has already.
    """
    event: dict[str, Any] = {
        "kind": "asked",
        "id": candidate.id,
        "digest": candidate.recipe.digest(),
        "origin": candidate.origin,
        "parents": list(candidate.parents),
        "recipe": candidate.recipe.to_json(held),
    }
    if examples is not None:
        event["examples"] = examples_digest(examples)
    return event


def examples_digest(examples: IntArray | None) -> str | None:
    """Return what the journal keeps of (n,) positions: how many, and 16 hex digits of them."""
    if examples is None:
        return None
    found = hashlib.blake2b(examples.astype("<i8").tobytes(), digest_size=8).hexdigest()
    return f"{len(examples)}:{found}"


def told_event(
    evaluation: Evaluation,
    objectives: list[float] | None,
    row: int,
    scores_digest: str,
    *,
    measured: list[float] | None = None,
) -> dict[str, Any]:
    """Return the event that a result is now known to the algorithm.

    Args:
        evaluation: The result.
        objectives: (M,) values, None on failure and where not every example is scored.
        row: Row of the per-example scores in the side file (ignored on failure).
        scores_digest: Digest of that row.
        measured: (C,) what the constraints measure; None in a run without constraints.
    """
    event: dict[str, Any] = {"kind": "told", "id": evaluation.candidate.id}
    if evaluation.error is not None:
        return event | {"error": evaluation.error}
    if measured:
        event["measured"] = measured
    if evaluation.examples is not None:
        event["examples"] = len(evaluation.examples)
    else:
        event["objectives"] = objectives
    return event | {
        "row": row,
        "scores": scores_digest,
        "weights": evaluation.weights_digest,
    }


def candidate_of(event: Event, seed: int, recipes: JournalRecipes | None = None) -> Candidate:
    """Return the candidate of an ``asked`` event.

    Args:
        event: The event.
        seed: Of the run.
        recipes: The journal's recipes; None for a candidate that is only looked at, whose
            recipe lacks its ancestors.

    Raises:
        JournalError: The event does not hold a valid recipe, or an ancestor's is lost.
    """
    try:
        where = f"journal: candidate {event['id']}"
        if recipes is None:
            recipe = Recipe.from_json(event["recipe"], where=where, shallow=True)
        else:
            recipe = recipes.read(event["recipe"], where)
        return Candidate(
            int(event["id"]),
            recipe,
            tuple(int(parent) for parent in event["parents"]),
            candidate_seed(seed, int(event["id"])),
            str(event["origin"]),
        )
    except ConfigError as error:  # says where
        raise JournalError(str(error)) from None
    except (KeyError, TypeError, ValueError) as error:
        raise JournalError(f"journal: an asked event is malformed: {error}") from None


def candidate_seed(seed: int, candidate_id: int) -> int:
    """Return the seed for everything random about scoring one candidate."""
    return derive(seed, "candidate", candidate_id)
