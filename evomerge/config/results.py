"""What a run found, read from its journal without opening models or taking the lease."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.config.build import build_objectives
from evomerge.config.merge_choice import method_text
from evomerge.config.workers import read_run_config
from evomerge.core.candidate import Candidate
from evomerge.core.constrained_front import ConstrainedFront
from evomerge.core.counts import shown_count
from evomerge.core.feasibility import Feasibility
from evomerge.core.front_rows import best_members, front_rows
from evomerge.core.hypervolume_estimate import VolumeEstimate, estimate_hypervolume
from evomerge.core.pareto import ParetoFront, frozen_reference
from evomerge.errors import ConfigError, JournalError, RunError
from evomerge.evaluation.http_client import Usage, logged_usage
from evomerge.search.events import Event, candidate_of
from evomerge.search.journal_recipes import JournalRecipes
from evomerge.seeding import generator
from evomerge.storage.journal_events import check_events
from evomerge.storage.run_store import RunFolder, check_header


class RunResults:
    """A snapshot of a run's journal."""

    def __init__(self, folder: RunFolder, *, events: Sequence[Event] | None = None) -> None:
        """Take in a journal.

        Args:
            folder: The run.
            events: Its journal, where the caller has read it already; None: read and verify it.

        Raises:
            RunError: There is no run.
            JournalError: The journal is damaged.
        """
        self.folder = folder
        self.config = read_run_config(folder)
        self.objectives = build_objectives(self.config)
        if events is not None:
            check_events(events, folder.journal)
        events = list(folder.read_events() if events is None else events)
        self.header = check_header(events.pop(0), folder.journal) if events else {}
        self.asked: dict[int, Event] = {int(e["id"]): e for e in events if e["kind"] == "asked"}
        self._recipes = JournalRecipes.of_events(self.asked.values())
        self.told: list[Event] = [e for e in events if e["kind"] == "told"]
        unknown = next((e["id"] for e in self.told if e["id"] not in self.asked), None)
        if unknown is not None:
            raise JournalError(
                f"{folder.journal}: has a result of {unknown}, which was never asked"
            )
        self._front = ConstrainedFront(
            self.objectives.constraints, n_objectives=len(self.objectives)
        )
        for event in self.scored:
            candidate_id = int(event["id"])
            try:
                self._front.add(
                    candidate_id,
                    np.array(event["objectives"]),
                    np.array(event.get("measured", [])),
                    str(self.asked[candidate_id]["origin"]),
                )
            except ValueError as error:
                raise JournalError(f"{folder.journal}: does not fit config.yaml: {error}") from None

    @property
    def scored(self) -> list[Event]:
        """The told events with objectives, in order: all examples are scored."""
        return [event for event in self.told if "objectives" in event]

    @property
    def n_failed(self) -> int:
        """How many candidates could not be scored."""
        return sum("error" in event for event in self.told)

    def failures(self) -> dict[str, list[int]]:
        """Return reason -> candidates that failed by it; the reason with most of them first."""
        groups: dict[str, list[int]] = {}
        for event in self.told:
            if "error" in event:
                candidate_id = int(event["id"])
                text = str(event["error"]).removeprefix(f"candidate {candidate_id}: ")
                groups.setdefault(text, []).append(candidate_id)
        return dict(sorted(groups.items(), key=lambda item: -len(item[1])))

    def n_examples_of(self, candidate_id: int) -> int:
        """Return of how many examples a candidate was asked for."""
        some = self.asked[candidate_id].get("examples")
        return self.n_examples if some is None else int(some.split(":")[0])

    @property
    def n_examples(self) -> int:
        """How many examples all tasks have; 1 before anything was evaluated."""
        return sum(self.header.get("tasks", {}).values()) or 1

    @property
    def done(self) -> float:
        """How many evaluations of all examples were told, or as many examples of more of them."""
        # Of whole numbers, for a sum of shares may miss a budget by its rounding.
        return sum(self.n_examples_of(int(event["id"])) for event in self.told) / self.n_examples

    def front(self) -> ParetoFront:
        """Return the Pareto front; see `ConstrainedFront` for runs with constraints."""
        return self._front.front()

    def objectives_of(self, candidate_id: int) -> dict[str, float]:
        """Return objective -> value of a scored candidate.

        Raises:
            ConfigError: It does not exist or has no objectives.
        """
        event = self.told_of(candidate_id)
        if "objectives" not in event:
            raise ConfigError(
                f"{self._named(candidate_id)} was scored on {self.n_examples_of(candidate_id)} of "
                f"{self.n_examples} examples only, so it has no objectives"
            )
        return dict(zip(self.objectives.names, event["objectives"], strict=True))

    def told_of(self, candidate_id: int) -> Event:
        """Return the event with a candidate's scores.

        Raises:
            ConfigError: It does not exist, failed, or is not scored yet.
        """
        self.candidate(candidate_id)
        event = next((e for e in self.told if int(e["id"]) == candidate_id), None)
        if event is None:
            raise ConfigError(f"{self._named(candidate_id)} has not been scored yet")
        if "error" in event:
            raise ConfigError(
                f"{self._named(candidate_id)} failed, so it has no scores: {event['error']}"
            )
        return event

    def _named(self, candidate_id: int) -> str:
        return f"{self.folder.where}: candidate {candidate_id}"

    def weights_digest(self, candidate_id: int) -> str:
        """Return the digest of the tensors that were scored."""
        return next(str(e["weights"]) for e in self.scored if int(e["id"]) == candidate_id)

    def candidate(self, candidate_id: int) -> Candidate:
        """Return a candidate as it was asked.

        Raises:
            ConfigError: It does not exist.
        """
        if candidate_id not in self.asked:
            known = f"0 to {max(self.asked)}" if self.asked else "none yet"
            raise ConfigError(f"{self._named(candidate_id)} does not exist (there are {known})")
        return candidate_of(self.asked[candidate_id], self.config.seed, self._recipes)

    @property
    def front_is_feasible(self) -> bool:
        """Whether the front's members keep all constraints."""
        return self._front.is_feasible

    @property
    def feasibility(self) -> Feasibility:
        """The constraints and what is known of their bounds."""
        return self._front.feasibility

    def measured_of(self, candidate_id: int) -> dict[str, float]:
        """Return constraint -> measured value of a scored candidate; {} without constraints."""
        event = next(e for e in self.scored if int(e["id"]) == candidate_id)
        names = (str(item) for item in self.objectives.constraints)
        return dict(zip(names, event.get("measured", []), strict=True))

    def is_feasible(self, candidate_id: int) -> bool:
        """Return whether a scored candidate keeps all constraints."""
        return self.feasibility.is_feasible(np.array(list(self.measured_of(candidate_id).values())))

    def front_members(self, front: ParetoFront | None = None) -> list[dict[str, Any]]:
        """Return a front (None: the run's) as JSON-ready rows, best first objective first."""
        digests = {candidate_id: str(asked["digest"]) for candidate_id, asked in self.asked.items()}
        rows = front_rows(self.front() if front is None else front, self.objectives.names, digests)
        return [self._with_facts(row) for row in rows]

    def _with_facts(self, row: dict[str, Any]) -> dict[str, Any]:
        asked = self.asked[row["candidate"]]
        row = row | {"origin": asked["origin"], "parents": asked["parents"]}
        if self.objectives.constraints:
            row |= {
                "feasible": self.is_feasible(row["candidate"]),
                "constraints": self.measured_of(row["candidate"]),
            }
        return row

    def hypervolume(self) -> float | None:
        """Return the hypervolume over the reference frozen when the founders were scored."""
        pending = set(range(int(self.header.get("founders", 0))))  # as in the search loop
        seen = []
        for event in self.told:
            pending.discard(int(event["id"]))
            if "objectives" in event:
                seen.append(event["objectives"])
            if not pending and seen:
                self._front.set_reference(frozen_reference(np.array(seen)))
                return self._front.hypervolume()
        return None

    def hypervolume_estimate(self) -> VolumeEstimate | None:
        """Return the hypervolume of a front of more objectives than are computed exactly.

        The same at every call; None where `hypervolume` has the exact value, or before the
        founders are scored.
        """
        exact, reference = self.hypervolume(), self._front.reference
        if exact is not None or reference is None:
            return None
        if not self.front_is_feasible:
            return VolumeEstimate(0.0, 0.0, 0.0)
        rng = generator(self.config.seed, "hypervolume")
        return estimate_hypervolume(self.front().objectives, reference, rng)

    def status(self) -> dict[str, Any]:
        """Return state (running, interrupted or done), counts, best values and front size."""
        if not self.folder.journal.exists():
            raise RunError(f"{self.folder.path}: was created but never started")
        # What a warm start took over was told as well, and is no part of the budget.
        budget = self.config.budget.evaluations + int(self.header.get("warm", 0))
        state, waiting = self._state(budget), len(self.asked) - len(self.told)
        facts = {
            "run": self.folder.where,
            "state": state,
            "done": shown_count(self.done),
            "budget": budget,
            "in_flight": waiting if state == "running" else 0,
            "unfinished": 0 if state == "running" else waiting,
            "failed": self.n_failed,
            "front": len(self.front()),
            "hypervolume": self.hypervolume(),
            "best": best_members(self.front(), self.objectives.names),
            "algorithm": self.config.algorithm["name"],
            "merge": method_text(self.config.merge),
        }
        estimate = self.hypervolume_estimate()
        if estimate is not None:
            facts["hypervolume"] = estimate.value
            facts["hypervolume_interval"] = [estimate.low, estimate.high]
        usage = self._usage()
        if usage is not None:
            facts["usage"] = dataclasses.asdict(usage)
        if self.objectives.constraints:
            facts["feasible"] = self._front.n_feasible
            facts["constraints"] = self.feasibility.describe()
        return facts

    def _usage(self) -> Usage | None:
        """Return what the servers of the run were asked and cost, from events.log."""
        try:
            return logged_usage(self.folder.events.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return None

    def _state(self, budget: int) -> str:
        if self.folder.is_driven():
            return "running"
        return "done" if self.done >= budget else "interrupted"
