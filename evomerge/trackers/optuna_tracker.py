"""A run as an Optuna study: a trial per result, for optuna-dashboard and Optuna's plots."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, RunError, first_line, without_secrets
from evomerge.trackers.places import address, of_another_run, own_place
from evomerge.trackers.tracker import Ending, Parameter, RunFacts, Sent, Step, tracker

RUN_ATTRIBUTE = "evomerge:run"
JOURNAL_FILE = "optuna.journal"
_MAX_TEXT = 2000  # what the narrowest databases take as an attribute


@tracker("optuna")
@dataclass(eq=False)
class OptunaTracker:
    """Writes a study: objectives to maximize, searched numbers with their ranges, failures.

    Attributes:
        storage: A file (Optuna's journal storage), or the URL of a database, or $NAME of an
            environment variable that holds either; None: trackers/optuna.journal in the run folder.
        study: Name of the study; None: that of the run.
    """

    storage: str | None = None
    study: str | None = None
    _open: Any = field(default=None, init=False, repr=False)
    _where: str = field(default="", init=False, repr=False)

    def check(self) -> None:
        """Raise ConfigError if the storage is an address that a config must not hold."""
        if self.storage is not None:
            address(self.storage, "storage")

    def start(self, run: RunFacts) -> Sent:
        """Open or create the study.

        Raises:
            RunError: The storage cannot be used, or the study is of another run.
        """
        import optuna

        given = None if self.storage is None else address(self.storage, "storage")
        target = str(own_place(run, JOURNAL_FILE)) if given is None else given
        name = self.study or run.name
        self._where = without_secrets(f"study {name!r} in {target}")
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would announce a new study
        try:
            self._open = self._study(_storage(target), name, run)
        except (RunError, ConfigError):
            raise
        except Exception as error:  # drivers of databases have errors of their own
            raise RunError(
                f"{self._where}: cannot be opened: {without_secrets(first_line(error))}. "
                "Check the address, and that the database is one of Optuna's"
            ) from None
        finally:
            optuna.logging.set_verbosity(before)
        trials = self._open.get_trials(deepcopy=False)
        if not trials:
            return Sent()
        return Sent(len(trials), str(trials[-1].user_attrs.get("mark", "")))

    def _study(self, storage: Any, name: str, run: RunFacts) -> Any:
        import optuna

        directions = ["maximize"] * len(run.objectives)
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        owner = study.user_attrs.get(RUN_ATTRIBUTE)
        is_empty = not study.get_trials(deepcopy=False)
        # One without trials may be what a crash right after its creation left.
        if owner is None and is_empty and len(study.directions) == len(directions):
            study.set_user_attr(RUN_ATTRIBUTE, run.identity)
            with warnings.catch_warnings():  # Optuna calls names of metrics experimental
                warnings.simplefilter("ignore")
                study.set_metric_names(list(run.objectives))
        elif owner != run.identity:
            raise of_another_run(self._where)
        return study

    def log(self, steps: Sequence[Step]) -> None:
        """Add a trial per step."""
        for step in steps:
            self._open.add_trial(_trial(step))

    def finish(self, ending: Ending) -> None:
        """Do nothing: Optuna finds the front itself."""

    def close(self) -> None:
        """Give connections to a database back."""
        storage = getattr(self._open, "_storage", None)
        if storage is not None:
            storage.remove_session()

    def where(self) -> str:
        """Return study and storage."""
        return self._where


def _storage(target: str) -> Any:
    """Return Optuna's storage for a URL or a file."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in target:
        return RDBStorage(target)
    path = Path(target)
    if not path.parent.is_dir():
        raise ConfigError(f"storage: there is no folder {path.parent}")
    return JournalStorage(JournalFileBackend(target))


def _trial(step: Step) -> Any:
    from optuna.trial import TrialState, create_trial

    states = {
        "scored": TrialState.COMPLETE, "partial": TrialState.PRUNED, "failed": TrialState.FAIL,
    }  # fmt: skip
    attributes: dict[str, Any] = {
        "candidate": step.candidate,
        "recipe": step.digest,
        "origin": step.origin[:_MAX_TEXT],
        "parents": list(step.parents),
        "examples": step.examples,
        "mark": step.mark,
    }
    if step.error is not None:
        attributes["error"] = step.error[:_MAX_TEXT]
    trial = create_trial(
        state=states[step.state],
        values=list(step.objectives.values()) or None,
        params={item.name: item.value for item in step.parameters},
        distributions={item.name: _distribution(item) for item in step.parameters},
        user_attrs=attributes,
        # Where Optuna looks for them since version 2: feasible is 0 or less.
        system_attrs={"constraints": list(step.gaps.values())} if step.gaps else {},
    )
    trial.datetime_complete = datetime.fromtimestamp(step.ended)
    trial.datetime_start = datetime.fromtimestamp(step.ended - (step.seconds or 0.0))
    return trial


def _distribution(item: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if item.choices:
        return CategoricalDistribution(item.choices)
    return FloatDistribution(item.low, item.high)
