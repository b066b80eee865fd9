"""`evomerge search` and `evomerge resume`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from evomerge.cli.locate import POPULATIONS, locate
from evomerge.cli.progress import Progress
from evomerge.config.schema import RunConfig, load_config
from evomerge.config.session import Session, open_or_create, with_budget, with_runtime
from evomerge.config.workers import read_run_config
from evomerge.search.loop import SearchLoop
from evomerge.storage.run_store import RunFolder

DONE, INTERRUPTED = 0, 75


def search_command(
    config_path: Path,
    run: Path | None,
    *,
    executor: str | None,
    address: str | None,
    workers: int | None,
    overrides: list[str],
    warm_start: Path | None,
    as_json: bool,
) -> int:
    """Create or continue a run; returns the exit code."""
    config = load_config(config_path, overrides)
    config = with_runtime(config, executor=executor, address=address, workers=workers)
    folder = RunFolder(run or POPULATIONS / config.name)
    old = None if warm_start is None else locate(warm_start).path
    resolved, existed = open_or_create(config, config_path.resolve().parent, folder, old)
    return drive(folder, resolved, existed=existed, as_json=as_json)


def resume_command(
    run: Path,
    *,
    executor: str | None,
    address: str | None,
    workers: int | None,
    evaluations: int | None,
    as_json: bool,
) -> int:
    """Continue an existing run; returns the exit code."""
    folder = locate(run)
    config = read_run_config(folder)
    config = with_runtime(config, executor=executor, address=address, workers=workers)
    config = with_budget(config, evaluations)
    return drive(folder, config, existed=True, as_json=as_json)


def drive(folder: RunFolder, config: RunConfig, *, existed: bool, as_json: bool) -> int:
    """Run a session to its end, with progress, Ctrl-C handling and a closing line."""
    with Session(folder, config=config) as session:
        loop = session.loop
        if existed:
            waiting = len(loop.waiting)
            print(
                f"resumed {folder.path}: {loop.n_told} results kept, {waiting} re-queued",
                file=sys.stderr,
            )
        with stop_signals(loop), Progress(loop, folder.path.name, as_json=as_json):
            reason = session.run()
        summary = {
            "run": str(folder.path),
            "reason": reason,
            "evaluations": loop.n_told,
            "failed": loop.population.failures,
            "front": len(loop.front),
            "hypervolume": loop.front.hypervolume(),
            "best": best_of(loop),
        }
    if as_json:
        print(json.dumps(summary))
    else:
        print(closing_line(summary))
        if reason in ("interrupted", "seconds"):
            print(f"resume with:  evomerge resume {folder.path}")
    return INTERRUPTED if reason == "interrupted" else DONE


def best_of(loop: SearchLoop) -> dict[str, dict[str, float | int]]:
    """Return objective -> best candidate and value."""
    found: dict[str, dict[str, float | int]] = {}
    for index, name in enumerate(loop.objectives.names):
        best = loop.population.best(index)
        if best is not None:
            found[name] = {"candidate": best[0], "value": best[1]}
    return found


def closing_line(summary: dict[str, object]) -> str:
    """Return the last line of a search for people."""
    best = summary["best"]
    assert isinstance(best, dict)
    shown = ", ".join(f"{name} {item['value']:.4f}" for name, item in best.items())
    volume = summary["hypervolume"]
    volume_text = f", hypervolume {volume:.4f}" if isinstance(volume, float) else ""
    failed = f", {summary['failed']} failed" if summary["failed"] else ""
    return (
        f"{summary['run']}: {summary['evaluations']} evaluations{failed}, "
        f"front of {summary['front']}{volume_text}; best {shown}"
    )


@contextmanager
def stop_signals(loop: SearchLoop) -> Iterator[None]:
    """Make the first Ctrl-C (or SIGTERM) drain the search, a second one stop it at once."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        if loop.stop_requested:
            raise KeyboardInterrupt
        loop.stop_requested = True
        print(
            "\ndraining: running evaluations finish first (Ctrl-C again stops now; "
            "nothing finished is lost)",
            file=sys.stderr,
        )

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
