"""A run in MLflow."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.errors import without_secrets
from evomerge.trackers.places import address, own_place
from evomerge.trackers.tracker import (
    Ending,
    RunFacts,
    Sent,
    Step,
    front_table,
    require_package,
    tracker,
)

# The second is number and mark of the last step: one tag, for a crash may come between two.
RUN_TAG, SENT_TAG = "evomerge.run", "evomerge.sent"
_PER_CALL = 1000  # metrics that one call of MLflow's takes
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]", flags=re.ASCII)
_MAX_PARAM = 500  # characters of a parameter's value, in every version of MLflow


@tracker("mlflow")
@dataclass(eq=False)
class MlflowTracker:
    """Logs metrics per result; a resume goes on in the same MLflow run, found by a tag.

    Attributes:
        uri: Tracking server, sqlite:///FILE, or $NAME of an environment variable that holds it;
            None: MLFLOW_TRACKING_URI, else trackers/mlflow.db in the run folder.
        experiment: Name of the experiment.
    """

    uri: str | None = None
    experiment: str = "evomerge"
    _client: Any = field(default=None, init=False, repr=False)
    _id: str = field(default="", init=False, repr=False)
    _where: str = field(default="", init=False, repr=False)
    _names: tuple[str, ...] = field(default=(), init=False, repr=False)

    def check(self) -> None:
        """Raise ConfigError unless mlflow is installed and the address may be in a config."""
        require_package("mlflow", "mlflow")
        if self.uri is not None:
            address(self.uri, "uri")

    def start(self, run: RunFacts) -> Sent:
        """Begin a run in the experiment, or go on with the one that has the run's identity.

        Raises:
            ConfigError: mlflow is not installed.
            MlflowException: The server cannot be used.
        """
        self.check()
        # Nothing is sent anywhere that the config does not name.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database is announced
        self._names = run.objectives
        uri, artifacts = self._places(run)
        self._where = without_secrets(f"experiment {self.experiment!r} at {uri}")
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = (
            self._client.create_experiment(self.experiment, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )
        known = self._client.search_runs(
            [experiment], filter_string=f"tags.`{RUN_TAG}` = '{run.identity}'", max_results=1
        )
        if not known:
            made = self._client.create_run(
                experiment,
                start_time=round(run.began * 1000),
                tags={RUN_TAG: run.identity},
                run_name=run.folder.resolve().name,
            )
            self._id = made.info.run_id
            self._log_config(run.config)
            return Sent()
        self._id = known[0].info.run_id
        self._client.update_run(self._id, status="RUNNING")
        number, _, mark = known[0].data.tags.get(SENT_TAG, "0").partition(" ")
        return Sent(int(number), mark)

    def _places(self, run: RunFacts) -> tuple[str, str | None]:
        """Return the tracking URI, and where artifacts go (None: the server knows)."""
        given = os.environ.get("MLFLOW_TRACKING_URI") if self.uri is None else self.uri
        if given:
            return (given if self.uri is None else address(given, "uri")), None
        database = own_place(run, "mlflow.db").resolve()
        return f"sqlite:///{database}", database.with_name("mlflow-artifacts").as_uri()

    def _log_config(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [
            Param(
                _named(key), (value if isinstance(value, str) else json.dumps(value))[:_MAX_PARAM]
            )
            for key, value in config.items()
        ]
        self._client.log_batch(self._id, params=params)

    def log(self, steps: Sequence[Step]) -> None:
        """Log the metrics of all steps, in calls of whole steps, each with how far it got."""
        from mlflow.entities import Metric

        batch: list[Any] = []
        for step in steps:
            if len(batch) + len(step.metrics) > _PER_CALL:
                self._client.log_batch(self._id, metrics=batch)
                batch = []
            when = round(step.ended * 1000)
            batch += [
                Metric(_named(chart), value, when, step.number)
                for chart, value in step.metrics.items()
            ]
        if steps:
            self._client.log_batch(self._id, metrics=batch)
            self._client.set_tag(self._id, SENT_TAG, f"{steps[-1].number} {steps[-1].mark}")

    def finish(self, ending: Ending) -> None:
        """Keep front and config as artifacts and say how the run ended."""
        self._client.log_text(self._id, front_table(ending, self._names), "front.md")
        self._client.log_text(self._id, ending.config, "config.yaml")
        self._client.set_terminated(self._id, "FINISHED" if ending.is_done else "KILLED")

    def close(self) -> None:
        """Nothing stays open."""

    def where(self) -> str:
        """Return experiment and address."""
        return self._where


def _named(text: str) -> str:
    """Return a text as a name that MLflow takes."""
    return _NOT_IN_NAMES.sub("_", text)
