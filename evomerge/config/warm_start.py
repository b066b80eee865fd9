"""Begin a new run from the evaluations of an old one.

The old recipes become the first founders of the new run, and their scores wait for them as
already arrived results: nothing is scored twice and nothing about the old run is changed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evomerge.config.build import data_digests, donor_digests
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, JournalError, RunError
from evomerge.search.journal_recipes import JournalRecipes
from evomerge.storage.parked import parked_file
from evomerge.storage.run_store import RunFolder, stored_evaluations
from evomerge.storage.score_log import ScoreLog

if TYPE_CHECKING:
    from evomerge.config.session import Prepared

FILE = "warm_start.json"


@dataclass(frozen=True, eq=False)
class WarmStart:
    """Evaluations taken over from an old run.

    Attributes:
        proposals: Their recipes, in the order they were told.
        evaluations: Their scores; empty when only the recipes are wanted.
        digest: Digest of the file in the new run; "" for a run without a warm start.
    """

    proposals: tuple[Proposal, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    digest: str = ""

    @classmethod
    def of(cls, folder: RunFolder) -> WarmStart:
        """Return what a run was begun from; its scores have been parked already."""
        path = folder.path / FILE
        if not path.exists():
            return cls()
        data = path.read_bytes()
        try:
            items = json.loads(data)
            proposals = []
            known: dict[str, Recipe] = {}
            for i, item in enumerate(items):
                recipe = Recipe.from_json(item["recipe"], where=f"item {i}", known=known)
                proposals.append(Proposal(recipe, (), item["origin"]))
                known |= recipe.lineage(known)
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise RunError(f"{path}: is damaged: {error}") from None
        return cls(tuple(proposals), (), hashlib.blake2b(data, digest_size=16).hexdigest())

    def files(self) -> dict[str, bytes]:
        """Return the files that give a new run these recipes and their scores."""
        items, held = [], set[str]()
        for proposal in self.proposals:
            items.append({"origin": proposal.origin, "recipe": proposal.recipe.to_json(held)})
            held.update(proposal.recipe.lineage(held))
        files = {FILE: json.dumps(items).encode()}
        pairs = zip(self.proposals, self.evaluations, strict=True)
        for index, (proposal, old) in enumerate(pairs):
            candidate = Candidate(index, proposal.recipe)
            name, data = parked_file(replace(old, candidate=candidate))
            files[name] = data
        return files


def read_warm_start(old: RunFolder, new: Prepared) -> WarmStart:
    """Return the successful evaluations of `old` that are valid in the run `new` describes.

    Raises:
        RunError: The old run used other models, tasks or examples.
        JournalError: One of its recipes is damaged, or lacks an ancestor.
    """
    old.require()
    header = old.header()
    sources = {str(record["id"]): record["digest"] for record in new.models.record}
    _same(old, "models", header["sources"], sources)
    _same(old, "tasks", header["tasks"], dict(new.tasks.sizes))
    evaluators = {t["name"]: t["evaluator"] for t in header["config"]["tasks"]}
    wanted = {task.name: task.evaluator for task in new.config.tasks}
    _same(old, "evaluators", evaluators, json.loads(json.dumps(wanted)))
    _same(old, "examples or evaluator code", header["data"], data_digests(new.tasks))
    donor = donor_digests(new.models.donor)
    _same(old, "base model's config or tokenizer", header["donor"], donor)
    events = old.read_events()[1:]
    asked = {int(e["id"]): e["recipe"] for e in events if e["kind"] == "asked"}
    recipes = JournalRecipes.of_events(events)
    scores = ScoreLog.of(old.scores, header)
    proposals, evaluations = [], []
    for event, evaluation in stored_evaluations(events, scores, new.tasks.sizes):
        if evaluation is None or evaluation.error is not None or evaluation.examples is not None:
            continue
        where = f"{old.journal}: candidate {event['id']}"
        try:
            recipe = recipes.read(asked[int(event["id"])], where)
        except ConfigError as error:
            raise JournalError(str(error)) from None
        proposals.append(Proposal(recipe, (), f"warm start: {old.path.name} #{event['id']}"))
        evaluations.append(evaluation)
    if not proposals:
        raise RunError(f"{old.path}: has no successful evaluation to start from")
    return WarmStart(tuple(proposals), tuple(evaluations))


def _same(old: RunFolder, what: str, then: Any, now: Any) -> None:
    if then != now:
        raise RunError(
            f"{old.path}: cannot warm-start from it: its {what} differ from this config's"
        )
