"""`evomerge search` and `evomerge resume`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from evomerge.cli.output import notice, say
from evomerge.cli.progress import Progress
from evomerge.config.locate import POPULATIONS, locate, run_at
from evomerge.config.schema import RunConfig, load_config
from evomerge.config.session import Session, open_or_create, with_budget, with_runtime
from evomerge.config.workers import read_run_config
from evomerge.core.counts import shown_count
from evomerge.core.front_rows import best_members
from evomerge.errors import ConfigError, EvomergeError
from evomerge.search.loop import SearchLoop
from evomerge.storage.run_store import RunFolder

DONE, INTERRUPTED, NOTHING_YET = 0, 75, 130


def search_command(
    config_path: Path,
    run: Path | None,
    *,
    executor: str | None,
    address: str | None,
    workers: int | None,
    insecure: bool,
    overrides: list[str],
    warm_start: Path | None,
    as_json: bool,
) -> int:
    """Create or continue a run; returns the exit code."""
    _refuse_run(config_path)
    config = load_config(config_path, overrides)
    config = with_runtime(config, executor=executor, address=address, workers=workers)
    folder = run_at(run or POPULATIONS / config.name)
    old = None if warm_start is None else locate(warm_start).path
    with exit_code_of_ctrl_c(folder):
        resolved, existed = open_or_create(
            config,
            config_path.resolve().parent,
            folder,
            old,
            on_transform=partial(_say_transform, as_json),
            insecure=insecure,
        )
        return drive(folder, resolved, existed=existed, insecure=insecure, as_json=as_json)


def _refuse_run(config: Path) -> None:
    """Raise ConfigError where a run is given instead of a config."""
    if config.is_file():
        return
    try:
        run = locate(config)
    except EvomergeError:  # neither; reading it says what is wrong
        return
    raise ConfigError(
        f"{config}: is a run, not a config. Go on with it: evomerge resume {run.where}"
    )


def _say_transform(as_json: bool, label: str, done: int, total: int, _name: str) -> None:
    """Say a few times per transform how far it is; the first search of a model may take long."""
    if done == 1 or done == total or done % max(total // 10, 1) == 0:
        notice(
            f"transform {label}: {done} of {total} tensors",
            {"transform": label, "done": done, "total": total},
            as_json=as_json,
        )


def resume_command(
    run: Path,
    *,
    executor: str | None,
    address: str | None,
    workers: int | None,
    insecure: bool,
    evaluations: int | None,
    as_json: bool,
) -> int:
    """Continue an existing run; returns the exit code."""
    folder = locate(run)
    config = read_run_config(folder)
    config = with_runtime(
        config, executor=executor, address=address, workers=workers, is_resolved=True
    )
    config = with_budget(config, evaluations)
    with exit_code_of_ctrl_c(folder):
        return drive(folder, config, existed=True, insecure=insecure, as_json=as_json)


@contextmanager
def exit_code_of_ctrl_c(folder: RunFolder) -> Iterator[None]:
    """Turn Ctrl-C into exit code 75 when there is a run to resume, 130 before."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted")
        raise SystemExit(INTERRUPTED if folder.exists() else NOTHING_YET) from None


def idle_workers(look_ahead: int | None, workers: int) -> str:
    """Return a warning when so small a look-ahead cannot keep all workers busy, else ""."""
    if look_ahead is None or look_ahead >= workers:
        return ""
    return (
        f"search.look_ahead is {look_ahead}: at most {look_ahead} of {workers} workers will be busy"
    )


def drive(
    folder: RunFolder, config: RunConfig, *, existed: bool, insecure: bool = False, as_json: bool
) -> int:
    """Run a session to its end, with progress, Ctrl-C handling and a closing line."""

    def warn(line: str) -> None:
        notice(f"warning: {line}", {"warning": line}, as_json=as_json)

    with Session(folder, config=config, insecure=insecure, on_warning=warn) as session:
        loop = session.loop
        was_over = existed and not loop.has_budget and not loop.waiting
        if existed:
            waiting = len(loop.waiting)
            notice(
                f"resumed {folder.where}: {loop.n_told} results kept, {waiting} re-queued",
                {"resumed": folder.where, "done": loop.n_told, "requeued": waiting},
                as_json=as_json,
            )
            if loop.done >= loop.plan.evaluations + 1:  # a race may end a block late
                over = (
                    f"{shown_count(loop.done)} evaluations are done, more than the budget of "
                    f"{loop.plan.evaluations}: nothing is asked for"
                )
                warn(over)
        workers = (config.runtime.workers or 1) if config.runtime.executor == "ray" else 1
        idle = idle_workers(config.search.look_ahead, workers)
        if idle:
            warn(idle)
        with stop_signals(loop, as_json=as_json), Progress(loop, folder.path.name, as_json=as_json):
            reason = session.run()
        summary = {
            "run": folder.where,
            "reason": reason,
            "evaluations": loop.n_told,
            "failed": loop.population.failures,
            "front": len(loop.front),
            "hypervolume": loop.front.hypervolume(),
            "best": best_members(loop.front.front(), loop.objectives.names),
        }
        if config.racing:  # the budget counts examples, so candidates are more than it says
            summary["cost"] = shown_count(loop.done)
        if loop.objectives.constraints:
            summary["feasible"] = loop.front.n_feasible
    if as_json:
        say(json.dumps(summary), to=sys.stdout)
    else:
        say(closing_line(summary), to=sys.stdout)
        if loop.objectives.constraints and not loop.front.n_feasible:
            say("no candidate keeps all constraints; the front holds the nearest", to=sys.stdout)
        if reason in ("interrupted", "seconds"):
            say(f"resume with:  evomerge resume {folder.where}", to=sys.stdout)
        elif len(loop.front):
            say(f"look at it with:  evomerge front {folder.where}", to=sys.stdout)
        if was_over:
            more = f"evomerge resume {folder.where} --evaluations N"
            say(
                f"its budget of {loop.plan.evaluations} was spent before; for more:  {more}",
                to=sys.stdout,
            )
    return INTERRUPTED if reason == "interrupted" else DONE


def closing_line(summary: dict[str, object]) -> str:
    """Return the last line of a search for people."""
    best = summary["best"]
    assert isinstance(best, dict)
    shown = ", ".join(f"{name} {item['value']:.4f}" for name, item in best.items())
    volume = summary["hypervolume"]
    volume_text = f", hypervolume {volume:.4f}" if isinstance(volume, float) else ""
    failed = f", {summary['failed']} failed" if summary["failed"] else ""
    count = f"{summary['evaluations']} evaluations"
    if "cost" in summary:
        count = f"{summary['evaluations']} candidates raced at the cost of {summary['cost']}"
    line = f"{summary['run']}: {count}{failed}, front of {summary['front']}{volume_text}"
    return f"{line}; best {shown}" if shown else line


@contextmanager
def stop_signals(loop: SearchLoop, *, as_json: bool) -> Iterator[None]:
    """Make the first Ctrl-C (SIGTERM, SIGHUP) drain the search, a second one stop it at once.

    After a stop they are ignored: what is left is to close the run and to leave with an exit
    code, and neither may be cut short.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if not loop.stop_requested:
            loop.stop_requested = True
            notice(
                "\ndraining: running evaluations finish first (Ctrl-C again stops now; "
                "nothing finished is lost)",
                {"draining": len(loop.waiting)},
                as_json=as_json,
            )
        elif number != signal.SIGHUP:  # a closing terminal sends that one more than once
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if loop.stop_requested else handler)
