"""The Python API: `evomerge.search(config)`, and `evomerge.Run` for what it leaves behind.

A thin layer over what the command line calls, for scripts and notebooks. Errors are the classes of
`evomerge.errors`. Ctrl-C (a notebook's stop button) raises KeyboardInterrupt; what was finished is
kept, and the same call goes on.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from evomerge.config.export_run import Exported, Exporter, export_folders
from evomerge.config.front_views import confident_front
from evomerge.config.locate import POPULATIONS, locate, run_at
from evomerge.config.results import RunResults
from evomerge.config.schema import RunConfig, apply_override, load_config, parse_config
from evomerge.config.session import Session, open_or_create, with_budget
from evomerge.config.workers import read_run_config
from evomerge.core.picking import pick as picked
from evomerge.errors import ConfigError
from evomerge.export import AsAdapter
from evomerge.storage.run_store import RunFolder

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Rows", "Run", "search"]


def search(
    config: RunConfig | Mapping[str, Any] | Path | str,
    *,
    run: Path | str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    warm_start: Path | str | None = None,
) -> Run:
    """Search for merges until the budget is spent; continues the run if it exists.

    Args:
        config: A config file, its content as a mapping, or a parsed config. Relative paths count
            from the file's folder, of the others from the current folder.
        run: Folder or URL of the run; None: ``populations/<name>``.
        overrides: Keys to replace, ``{"budget.evaluations": 50}`` or ``["budget.evaluations=50"]``.
        warm_start: Run to begin from, for a new run.

    Returns:
        The run.

    Raises:
        ConfigError: The config is wrong.
        EvomergeError: Models or data cannot be used, or the folder holds another run.
    """
    parsed, base_dir = _parsed(config, overrides)
    folder = run_at(POPULATIONS / parsed.name if run is None else run)
    old = None if warm_start is None else locate(Path(warm_start)).path
    resolved, _ = open_or_create(parsed, base_dir, folder, old)
    with Session(folder, config=resolved) as session:
        session.run()
    return Run(folder.path if folder.remote is None else folder.where)


def _parsed(
    config: RunConfig | Mapping[str, Any] | Path | str,
    overrides: Mapping[str, Any] | Sequence[str],
) -> tuple[RunConfig, Path]:
    """Return the config and the folder that its relative paths start from."""
    if isinstance(overrides, Mapping):
        lines = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    else:
        lines = list(overrides)
    if isinstance(config, Path | str):
        return load_config(Path(config), lines), Path(config).resolve().parent
    if isinstance(config, RunConfig):
        config = config.model_dump(mode="json")
    body = json.loads(json.dumps(dict(config)))  # a copy, which overrides may change
    for override in lines:
        apply_override(body, override)
    return parse_config(body, "config"), Path.cwd()


@dataclass(frozen=True)
class Run:
    """A run folder, read anew at every call, also while a search is writing to it.

    Attributes:
        path: The folder; the URL of a run in an object store.
    """

    path: Path | str

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Return the run in a folder, at a URL, or of a name under ``populations/``.

        Raises:
            RunError: There is none; names the nearest.
        """
        folder = locate(Path(path))
        return cls(folder.path if folder.remote is None else folder.where)

    @property
    def _folder(self) -> RunFolder:
        return run_at(self.path)

    @property
    def config(self) -> RunConfig:
        """The resolved config: every default, absolute paths."""
        return read_run_config(self._folder)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in order."""
        return tuple(RunResults(self._folder).objectives.names)

    def status(self) -> dict[str, Any]:
        """Return state (running, interrupted or done), counts, best values and front size.

        Raises:
            RunError: The run was created but never started.
        """
        return RunResults(self._folder).status()

    def front(self, pick: str | None = None, *, confident: float | None = None) -> Rows:
        """Return the Pareto front, best first objective first.

        Args:
            pick: These only: ``knee``, ``best:X``, ``weights:a=1,b=2``, ``max(a) s.t. b>=0.7``.
            confident: Instead of the front, all that nothing beats with this confidence, in
                (0.5, 1), example by example.

        Raises:
            ConfigError: An argument is wrong.
        """
        results = RunResults(self._folder)
        front = results.front() if confident is None else confident_front(results, confident)
        members = results.front_members(front)
        if pick is not None:
            wanted = picked(front, results.objectives.names, pick)
            members = [member for member in members if member["candidate"] in wanted]
        return Rows(members)

    def candidates(self) -> Rows:
        """Return everything that was proposed, in that order.

        A row has `candidate`, `state` (scored, partial: on some examples, failed or waiting),
        `objectives` ({} unless it is scored), `recipe`, `origin`, `parents` and `error`.
        """
        results = RunResults(self._folder)
        told = {int(event["id"]): event for event in results.told}
        names = results.objectives.names
        rows = []
        for candidate_id, asked in results.asked.items():
            event = told.get(candidate_id)
            values = {} if event is None else event.get("objectives", {})
            rows.append(
                {
                    "candidate": candidate_id,
                    "state": _state(event),
                    "objectives": dict(zip(names, values, strict=True)) if values else {},
                    "recipe": str(asked["digest"]),
                    "origin": asked["origin"],
                    "parents": asked["parents"],
                    "error": None if event is None else event.get("error"),
                }
            )
        return Rows(rows)

    def resume(self, evaluations: int | None = None) -> Run:
        """Continue where the search stopped, however it stopped, and return this run.

        Args:
            evaluations: New budget; None: as it is.

        Raises:
            RunLockedError: Another process owns the run.
            ReplayError: Models, data or packages changed since it began.
        """
        with Session(self._folder, config=with_budget(self.config, evaluations)) as session:
            session.run()
        return self

    def export(
        self,
        pick: str,
        out: Path | str,
        *,
        verify: bool = False,
        adapter: bool = False,
        rank: int | None = None,
    ) -> list[Exported]:
        """Write candidates as Hugging Face model folders, or as LoRA adapters of their base.

        Args:
            pick: As for `front`, or ``candidate:ID``, or ``all``.
            out: Folder to write; of several candidates the parent of their folders.
            verify: Score what was written again, and compare.
            adapter: Write a LoRA adapter.
            rank: Its rank; None: exact.

        Raises:
            ConfigError: An argument is wrong.
            RunError: What was written is not what was scored.
        """
        if rank is not None and not adapter:
            raise ConfigError("rank is the rank of an adapter; give adapter=True too")
        form = AsAdapter(rank) if adapter else None
        exporter = Exporter(self._folder)
        ids = exporter.choose(pick)
        folders = export_folders(Path(out), ids, pick)
        return [
            exporter.export(candidate_id, folder, verify=verify, adapter=form)
            for candidate_id, folder in zip(ids, folders, strict=True)
        ]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __rich__(self) -> Table:
        return _facts(self.status()).__rich__()

    def _repr_html_(self) -> str:
        return _facts(self.status())._repr_html_()


class Rows(Sequence[dict[str, Any]]):
    """Rows of a run: a sequence of mappings that notebooks and rich show as a table."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep JSON-ready rows with the same keys."""
        self._rows = list(rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        return Rows(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __repr__(self) -> str:
        return f"Rows({self._rows!r})"

    def flat(self) -> list[dict[str, Any]]:
        """Return the rows with a column per objective and constraint instead of mappings."""
        return [_flat(row) for row in self._rows]

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame of `flat`.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError("to_pandas needs pandas: pip install pandas") from None
        return pd.DataFrame(self.flat())

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.flat() for key in row))

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table()
        for column in self._columns():
            table.add_column(column)
        for row in self.flat():
            table.add_row(*(_shown(row.get(column)) for column in self._columns()))
        return table

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            marked = (f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{''.join(marked)}</tr>"

        columns = self._columns()
        body = (line([_shown(row.get(key)) for key in columns], "td") for row in self.flat())
        return f"<table>{line(columns, 'th')}{''.join(body)}</table>"


def _state(event: Mapping[str, Any] | None) -> str:
    if event is None:
        return "waiting"
    if "error" in event:
        return "failed"
    return "scored" if "objectives" in event else "partial"


def _facts(status: Mapping[str, Any]) -> Rows:
    """Return a status as rows of a name and a value."""
    return Rows([{"": key, "value": value} for key, value in status.items()])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= value if key in ("objectives", "constraints") else {key: value}
    return found


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list | tuple):
        return " ".join(_shown(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return "" if value is None else str(value)
