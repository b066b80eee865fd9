"""The config file: one YAML file is one run.

Sections that name an extension (`algorithm`, `merge`, a task's `evaluator`) are mappings with
`name:`; their other keys belong to that class and are checked when it is built. `merge` may have
`any_of:` instead, see `merge_choice`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from evomerge.config.construct import describe
from evomerge.config.yaml_file import parse_yaml, read_yaml
from evomerge.errors import ConfigError, nearest

Named = dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _model(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class ModelConfig(_Section):
    """One model: a local folder or a Hub id, in mergekit's spelling.

    Attributes:
        model: The folder, from the config's, or the id.
        name: What recipes and cards call it; None: the folder's name.
        revision: Of a Hub id: branch, tag or commit.
        lora: An adapter of it, folder or id.
        trust_remote_code: Whether code in its folder may run.
    """

    model: str
    name: str | None = None
    revision: str | None = None
    lora: str | None = None
    trust_remote_code: bool = False


class TransformConfig(_Section):
    """A transform of task vectors whose results become sources; other keys are its parameters.

    Attributes:
        name: Registered name.
        of: Names of the models it works on; None: all of `models:`.
        label: Prefix of the new sources' ids; None: the name.
        keep_parents: Whether the search mixes the models named in `of` themselves, too.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: str
    of: list[str] | None = None
    label: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    keep_parents: bool = True

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys that belong to the transform."""
        return dict(self.model_extra or {})


class SplitsConfig(_Section):
    """Shares of a task's examples, which fall to a split by what they hold; the sum is 1.

    Attributes:
        search: What the search scores.
        validation: What the finalists are chosen by.
        test: What an export measures; nothing is chosen by it.
    """

    search: float = Field(gt=0, lt=1)
    validation: float = Field(default=0.0, ge=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _sum_is_one(self) -> SplitsConfig:
        if abs(sum(self.shares().values()) - 1.0) > 1e-9:
            raise ValueError(f"the shares add up to {sum(self.shares().values()):g}, expected 1")
        return self

    def shares(self) -> dict[str, float]:
        """Return split -> share, in the order that examples are assigned in."""
        return {"search": self.search, "validation": self.validation, "test": self.test}


class TaskConfig(_Section):
    """One skill: an evaluator over its examples, and which of them are not searched on.

    Attributes:
        held_out: Keys of `evaluator` that differ for the test examples (`data`, `rows`, …).
        splits: Shares of the evaluator's examples; None: all are searched on.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    evaluator: Annotated[Named, BeforeValidator(_named)]
    held_out: dict[str, Any] | None = None
    splits: SplitsConfig | None = None


class ObjectiveConfig(_Section):
    """A weighted mean of tasks; without objectives every task is one."""

    name: str
    tasks: dict[str, float] = Field(min_length=1)


class ConstraintConfig(_Section):
    """A bound that a front's candidates keep; see `config.constraints`.

    Attributes:
        task: What is measured, or
        tasks: a weighted mean of several.
        name: What it is called; None: the task.
        at_least: Lower bound: a number, or a text such as "0.95 * base".
        at_most: Upper bound.
    """

    task: str | None = None
    tasks: dict[str, float] | None = Field(default=None, min_length=1)
    name: str | None = None
    at_least: float | str | None = None
    at_most: float | str | None = None


class BudgetConfig(_Section):
    """When to stop. May be changed on resume."""

    evaluations: int = Field(ge=1)
    seconds: float | None = Field(default=None, gt=0)


class SearchConfig(_Section):
    """How the loop runs.

    Attributes:
        tell_order: "asked" (repeatable) or "completed".
        look_ahead: Candidates in flight; None: three times the workers, and one more per worker
            for every doubling of them beyond eight.
        founders: "all" (parents, mean, task arithmetic, Model Stock, TIES), "parents" or "none".
    """

    tell_order: Literal["asked", "completed"] = "asked"
    look_ahead: int | None = Field(default=None, ge=1)
    founders: Literal["all", "parents", "none"] = "all"


def _bytes(value: Any) -> Any:
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)B")


class StagingConfig(_Section):
    """Copies of the models on the own disk of every machine with Ray workers.

    Attributes:
        folder: On a disk of the machine itself, the same path on all of them.
        max_bytes: Most bytes of all copies there, a number or a text such as 200GB; None: no limit.
            What was not used for longest goes first, what is in use never.
    """

    folder: str
    max_bytes: Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_bytes)] = None


class RuntimeConfig(_Section):
    """Where candidates are scored. May be changed on resume.

    Attributes:
        executor: "in-process" (one device) or "ray".
        workers: Number of workers; None: one in process; on Ray as many as the nodes hold, also
            of those that join later.
        device: auto, cpu, cuda:N, or cuda:all: the model's layers divided over the GPUs a worker
            sees (which `auto` does for a Ray worker that has several).
        threads: CPU threads per worker; None: the CPUs divided by the workers, on a cluster that
            runs elsewhere those that a worker reserves.
        address: Ray cluster: "auto", HOST:PORT, or None to start a local one.
        gpus_per_worker: GPUs (or a fraction of one) each Ray worker reserves; None: as many as
            the model needs, on nodes that have some; 0 where no node has.
        cpus_per_worker: CPUs each Ray worker reserves.
        max_attempts: How often a candidate is tried when its worker dies or times out.
        timeout_seconds: Deadline of one evaluation (Ray only).
        cache: Folder of what is computed once per set of models; None: $EVOMERGE_CACHE, or
            evomerge's folder in the user's cache folder.
        ledger: Folder of a ledger of scores that runs on this machine share; None: none.
        canary_every: Have the base model answer again after every so many candidates of a worker,
            and stop the run when it says something else than at the start; 0: never. None: 25
            where an engine keeps more than weights (vLLM), else never.
        staging: Where Ray workers copy the models to before they read them; None: nowhere.
    """

    executor: Literal["in-process", "ray"] = "in-process"
    workers: int | None = Field(default=None, ge=1)
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    address: str | None = None
    gpus_per_worker: float | None = Field(default=None, ge=0)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    timeout_seconds: float = Field(default=3600.0, gt=0)
    cache: str | None = None
    ledger: str | None = None
    canary_every: int | None = Field(default=None, ge=0)
    staging: StagingConfig | None = None


class RunConfig(_Section):
    """A whole config file.

    Attributes:
        version: Of the format.
        name: Of the run; its folder is ``populations/<name>``.
        seed: Everything random follows from it.
        base_model: What the models were tuned from; a text is its `model`.
        models: The fine-tunes, at least one; a text is a `model`.
        transforms: Further parents, computed once from the models.
        merge: The merge method and what is searched of it.
        algorithm: Which recipe is tried next; `auto` unless said otherwise.
        racing: When candidates are given up before all examples; None: never.
        tasks: What is scored.
        objectives: Weighted means of tasks; none: every task is one.
        constraints: Bounds that the front keeps.
        budget: When to stop.
        search: How the loop runs.
        runtime: Where candidates are scored.
        trackers: Where results are shown while the search runs. May be changed on resume.
    """

    version: Literal[1] = 1
    # No dot in front: the run folder `populations/<name>` must not be `..`.
    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")
    seed: int = Field(default=0, ge=0)
    base_model: Annotated[ModelConfig | None, BeforeValidator(_model)] = None
    models: list[Annotated[ModelConfig, BeforeValidator(_model)]] = Field(min_length=1)
    transforms: list[Annotated[TransformConfig, BeforeValidator(_named)]] = Field(
        default_factory=list
    )
    merge: Annotated[Named, BeforeValidator(_named)]
    algorithm: Annotated[Named, BeforeValidator(_named)] = Field(
        default_factory=lambda: {"name": "auto"}
    )
    racing: Annotated[Named | None, BeforeValidator(_named)] = None
    tasks: list[TaskConfig] = Field(min_length=1)
    objectives: list[ObjectiveConfig] = Field(default_factory=list)
    constraints: list[ConstraintConfig] = Field(default_factory=list)
    budget: BudgetConfig
    search: SearchConfig = SearchConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    trackers: list[Annotated[Named, BeforeValidator(_named)]] = Field(default_factory=list)

    def replay_part(self) -> dict[str, Any]:
        """Return all a replay depends on: not name, budget, runtime, trackers and servers."""
        # Empty ones are left out: headers stay as they were before there was the key.
        idle = {key for key in ("transforms", "constraints", "racing") if not getattr(self, key)}
        apart = {"name", "budget", "runtime", "trackers"}
        body = self.model_dump(mode="json", exclude={*apart, *idle})
        for task in body["tasks"]:
            if task["splits"] is None:
                del task["splits"]
        return body | {"tasks": without_servers(body["tasks"])}


def without_servers(value: Any) -> Any:
    """Return a JSON value without `server:` sections: how to reach one, not what it scores."""
    if isinstance(value, dict):
        return {k: without_servers(v) for k, v in value.items() if not _is_server(k, v)}
    return [without_servers(item) for item in value] if isinstance(value, list) else value


def _is_server(key: str, value: Any) -> bool:
    return key == "server" and isinstance(value, dict) and "url" in value


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a config file and apply `--set` overrides.

    Raises:
        ConfigError: Names file, key and what is wrong with it.
    """
    body = read_yaml(path)
    for override in overrides or []:
        apply_override(body, override)
    return parse_config(body, str(path))


def parse_config(body: dict[str, Any], where: str) -> RunConfig:
    """Validate a mapping as a config."""
    _refuse_numbers(body, "", where)
    try:
        return RunConfig.model_validate(body)
    except ValidationError as error:
        errors = error.errors()
        # A misspelt key is also a missing one; the misspelling is what helps.
        first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
        loc = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            section = _section_at(first["loc"][:-1])
            known = list(section.model_fields)
            raise ConfigError(
                f"{where}: unknown key {loc!r}.{nearest(str(first['loc'][-1]), known)} "
                f"Known: {', '.join(known)}."
            ) from None
        if first["type"] == "missing":
            raise ConfigError(f"{where}: key {loc!r} is missing") from None
        raise ConfigError(f"{where}: {describe(error)}") from None


def _refuse_numbers(value: Any, key: str, where: str) -> None:
    """Raise ConfigError for a number that JSON, and so the journal, cannot hold everywhere."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            _refuse_numbers(item, f"{key}.{name}" if key else str(name), where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {key} is {value}; expected a finite number")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{where}: {key} is too large; expected a number below 2**63")


_SECTIONS: dict[str, type[BaseModel]] = {
    "base_model": ModelConfig,
    "models": ModelConfig,
    "transforms": TransformConfig,
    "tasks": TaskConfig,
    "splits": SplitsConfig,
    "objectives": ObjectiveConfig,
    "constraints": ConstraintConfig,
    "budget": BudgetConfig,
    "search": SearchConfig,
    "runtime": RuntimeConfig,
    "staging": StagingConfig,
}


def _section_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    sections = [_SECTIONS[part] for part in loc if isinstance(part, str) and part in _SECTIONS]
    return sections[-1] if sections else RunConfig


def apply_override(body: dict[str, Any], override: str) -> None:
    """Apply one ``a.b=value`` to a config mapping; list items are addressed by number.

    Raises:
        ConfigError: The text has no "=", or the path does not exist.
    """
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ConfigError(f"--set {override}: expected KEY.KEY=VALUE")
    value = parse_yaml(text, f"--set {override}")
    target: Any = body
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                raise ConfigError(f"--set {override}: {key!r} is not one of 0..{len(target) - 1}")
            index: Any = int(key)
        elif isinstance(target, dict):
            index = key
            if not last and key not in target:
                target[key] = {}
        else:
            raise ConfigError(f"--set {override}: {'.'.join(keys[:position])} has no keys")
        if last:
            target[index] = value
            return
        if isinstance(target[index], str):  # the short form of a section
            is_model = keys[0] in ("base_model", "models")
            target[index] = {"model" if is_model else "name": target[index]}
        target = target[index]
