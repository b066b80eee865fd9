"""What the screen says about a run, as styled text. No markup: runs may come from strangers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from rich.text import Text

from evomerge.core.amounts import duration
from evomerge.watch.snapshot import Snapshot, progress_text

STATE_STYLES = {
    "running": "bold green",
    "draining": "bold yellow",
    "interrupted": "yellow",
    "done": "bold",
    "new": "dim",
    "unreadable": "bold red",
}
COLUMNS = ("run", "state", "evaluations", "front", "failed", "per minute", "time left")
_LABEL = 12  # columns of the names of facts
_BAR = 16
_SHOWN_IDS = 8
_DATE = re.compile(r"^\d{4}-\d\d-\d\dT(?=\d\d:\d\d:\d\dZ )")


def plain(text: str) -> str:
    """Return one line of printable letters: no escape sequences, no marks that turn text round."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def short(text: str, width: int) -> str:
    """Return printable text of at most `width` letters."""
    text = plain(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def table_row(snapshot: Snapshot) -> list[Text]:
    """Return a run's cells for `COLUMNS`."""
    status, speed = snapshot.status, snapshot.speed
    failed = status.get("failed", 0)
    return [
        Text(short(snapshot.name, 20), style="bold"),
        state_text(snapshot),
        Text(progress_text(snapshot), justify="right"),
        Text(str(status.get("front", "–")), justify="right"),
        Text(str(failed) if status else "–", style="red" if failed else "", justify="right"),
        Text("–" if speed is None else rate(speed.evaluations_per_minute), justify="right"),
        Text(eta_text(snapshot), justify="right"),
    ]


def state_text(snapshot: Snapshot) -> Text:
    """Return a run's state in its colour; the word says it without the colour, too."""
    return Text(snapshot.state, style=STATE_STYLES.get(snapshot.state, ""))


def eta_text(snapshot: Snapshot) -> str:
    """Return the time left, "–" where it is not known."""
    seconds = snapshot.eta_seconds
    if seconds is None:
        return "–"
    return "under 1 s" if seconds < 1 else duration(seconds)


def rate(per_time: float) -> str:
    """Return how many per minute or second: one digit after the point where that says something."""
    return f"{per_time:,.0f}" if per_time >= 100 else f"{per_time:.1f}"


def facts_text(snapshot: Snapshot) -> Text:
    """Return the facts of a run, one a line; the most wanted first, for screens of few lines."""
    text = Text()
    for name, value in _facts(snapshot):
        text.append(f"{short(name, _LABEL - 1):<{_LABEL}}", style="dim")
        text.append_text(value)
        text.append("\n")
    return text


def _facts(snapshot: Snapshot) -> Iterable[tuple[str, Text]]:
    status, speed = snapshot.status, snapshot.speed
    if status:
        yield "budget", _bar(float(status["done"]), float(status["budget"]))
        for name, row in status["best"].items():
            value = Text(f"{row['value']:.4f}", style="bold")
            yield f"best {name}", value.append(f" candidate {row['candidate']}", style="not bold")
        yield "front", Text(_count(int(status["front"]), "candidate"))
        volume = status["hypervolume"]
        yield "hypervolume", Text("–" if volume is None else f"{volume:.5g}")
        for line in status.get("constraints", ()):
            yield "constraint", Text(plain(line))
    if speed is not None:
        when = "speed" if snapshot.driver else "speed then"
        yield when, Text(f"{rate(speed.evaluations_per_minute)} evaluations/min")
        yield "", Text(f"{rate(speed.examples_per_second)} examples/s")
    if status:
        failed = Text(f"{status['failed']} failed", style="bold red" if status["failed"] else "")
        yield (
            "in flight" if snapshot.driver else "waiting",
            Text(f"{status['in_flight'] or status.get('unfinished', 0)}, ").append_text(failed),
        )
        yield "merge", Text(plain(str(status["merge"])))
        yield "algorithm", Text(plain(str(status["algorithm"])))


def notice(snapshot: Snapshot) -> str:
    """Return what is to be said before the facts: an error, or that there are none yet."""
    if snapshot.error:
        return f"cannot be read: {plain(snapshot.error)}"
    return "" if snapshot.status else "created; nothing was evaluated yet"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bar(done: float, budget: float) -> Text:
    share = min(1.0, done / budget) if budget > 0 else 1.0
    filled = round(share * _BAR)
    bar = Text("━" * filled, style="green").append("─" * (_BAR - filled), style="dim")
    return bar.append(f" {share:.0%}", style="default")


def workers_text(snapshot: Snapshot) -> Text:
    """Return what the workers of the latest session did, one a line."""
    wanted, workers = snapshot.n_workers, snapshot.workers
    head = f"{len(workers)} of {wanted} configured have finished something in the latest session\n"
    text = Text(head, style="dim")
    text.append(f"{'worker':<20}{'finished':>9}{'failed':>8}{'each':>10}{'last result':>16}\n")
    for worker in workers:
        age = max(0.0, snapshot.at - worker.last)
        last = f"{duration(age)} ago" if snapshot.driver else _clock(worker.last)
        text.append(f"{short(worker.name, 19):<20}{worker.finished:>9}", style="default")
        text.append(f"{worker.failed:>8}", style="red" if worker.failed else "default")
        text.append(f"{duration(worker.mean_seconds):>10}{last:>16}\n", style="default")
    return text


def failures_text(snapshot: Snapshot) -> Text:
    """Return reasons for failures with their candidates, then what was lost."""
    text = Text()
    if not snapshot.failures and not snapshot.lost:
        return text.append("no failures", style="dim")
    for failure in snapshot.failures:
        ids = failure.candidates
        shown = ", ".join(map(str, ids[-_SHOWN_IDS:]))
        more = "… " if len(ids) > _SHOWN_IDS else ""
        times = "once" if len(ids) == 1 else f"{len(ids)} times"
        text.append(times, style="bold red").append(f" (candidates {more}{shown}): ")
        text.append(f"{plain(failure.reason)}\n")
    for line in reversed(snapshot.lost):
        text.append("lost ", style="bold yellow").append(f"{plain(line)}\n")
    return text


def log_line(line: str) -> Text:
    """Return a line of events.log; of its stamp the time only, so that it fits 80 columns."""
    return Text(_DATE.sub("", plain(line)))


def _clock(at: float) -> str:
    """Return a time as events.log has it: UTC; the date if it is not today."""
    then, now = time.gmtime(at), time.gmtime()
    return time.strftime("%H:%M:%SZ" if then[:3] == now[:3] else "%Y-%m-%d", then)
