"""The screen of `evomerge watch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.events import Resize
from textual.widgets import DataTable, Footer, RichLog, Static, TabbedContent, TabPane
from textual.worker import get_current_worker

from evomerge.errors import EvomergeError
from evomerge.watch.confirm import Confirm
from evomerge.watch.discover import find_runs
from evomerge.watch.driver import Driver
from evomerge.watch.log import MAX_LINES
from evomerge.watch.plot import Scatter, captions, pairs
from evomerge.watch.snapshot import RunFollower, Snapshot
from evomerge.watch.text import (
    COLUMNS,
    facts_text,
    failures_text,
    log_line,
    notice,
    plain,
    short,
    table_row,
    workers_text,
)

LOOK_SECONDS = 1.0
PANELS = ("log", "workers", "failures")


class WatchApp(App[None]):
    """Runs, and details of one of them. Reads run folders; takes no lease and writes nothing."""

    CSS = """
    DataTable { height: auto; max-height: 30%; border: round $primary; }
    #middle { height: 1fr; min-height: 9; }
    #facts { width: 42%; min-width: 38; max-width: 60; border: round $primary; padding: 0 1; }
    #notice { color: $error; text-style: bold; }
    #facts-text, #workers-text { text-wrap: nowrap; text-overflow: ellipsis; }
    #plot { width: 1fr; height: 100%; border: round $primary; text-wrap: nowrap; }
    #panels { height: 30%; min-height: 7; }
    DataTable, #facts, #plot { border-title-color: $text; border-title-style: bold;
                               border-subtitle-color: $text; }
    TabPane { padding: 0 1; }
    RichLog { background: $background; }
    VerticalScroll, RichLog { scrollbar-size-vertical: 1; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("tab", "next_run(1)", "Next run", priority=True),
        Binding("shift+tab", "next_run(-1)", "Previous run", show=False, priority=True),
        Binding("right", "next_panel(1)", "Panel", key_display="←→", priority=True),
        Binding("left", "next_panel(-1)", "Panel", show=False, priority=True),
        Binding("pagedown", "scroll(1)", "Scroll", show=False, priority=True),
        Binding("pageup", "scroll(-1)", "Scroll", show=False, priority=True),
        Binding("o", "next_pair", "Objectives"),
        Binding("d", "drain", "Drain"),
        Binding("s", "stop", "Stop now"),
    ]

    def __init__(self, places: Sequence[Path], *, look_seconds: float = LOOK_SECONDS) -> None:
        """Find the runs.

        Args:
            places: See `find_runs`.
            look_seconds: Between two looks at them.

        Raises:
            RunError: There is nothing to watch.
        """
        super().__init__()
        self._places = tuple(places)
        self._look_seconds = look_seconds
        self._followers = {folder.path: RunFollower(folder) for folder in find_runs(places)}
        self._snapshots: dict[Path, Snapshot] = {}
        self._selected = next(iter(self._followers))
        self._pair = 0
        # Kept rather than looked up: the last look may end after the screen was taken apart.
        self._table: DataTable[Text] = DataTable(id="runs", cursor_type="row")
        self._facts = VerticalScroll(id="facts", can_focus=False)
        self._notice, self._facts_text = Static(id="notice"), Static(id="facts-text")
        self._plot = Static(id="plot")
        self._panels = TabbedContent(id="panels")
        self._log_lines = RichLog(id="log-lines", max_lines=MAX_LINES, wrap=True, min_width=20)
        self._workers_text, self._failures_text = Static(id="workers-text"), Static()
        self._asked: dict[Path, Driver] = {}  # drivers that were asked to drain from here
        self._logged: tuple[Path, int] | None = None  # what the log panel shows: run, lines
        self.n_looks = 0

    # ----------------------------------------------------------------- layout

    def compose(self) -> ComposeResult:
        """Lay out the table of runs, facts and plot of one, its panels, and the keys."""
        yield self._table
        with Horizontal(id="middle"):
            with self._facts:
                yield self._notice
                yield self._facts_text
            yield self._plot
        with self._panels:
            with TabPane("Log", id="log"):
                yield self._log_lines
            with TabPane("Workers", id="workers"), VerticalScroll(can_focus=False):
                yield self._workers_text
            with TabPane("Failures", id="failures"), VerticalScroll(can_focus=False):
                yield self._failures_text
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self._table.border_title = "evomerge watch"
        for name in COLUMNS:
            self._table.add_column(name, key=name)
        for path in self._followers:
            self._add_row(path)
        self._table.focus()
        self._log_lines.can_focus = False
        self._keep_looking()

    # ---------------------------------------------------------------- looking

    @work(thread=True, exclusive=True)
    def _keep_looking(self) -> None:
        """Look at all runs again and again, in a thread: a big journal takes a moment to read."""
        worker = get_current_worker()
        while not worker.is_cancelled:
            started = time.monotonic()
            for path, follower in list(self._followers.items()):
                if worker.is_cancelled:
                    return
                self.call_from_thread(self._show, path, follower.newest())
            self.call_from_thread(self._looked, self._new_runs())
            while not worker.is_cancelled and time.monotonic() < started + self._look_seconds:
                time.sleep(0.05)

    def _new_runs(self) -> list[RunFollower]:
        """Return followers of runs that were begun since; one that vanished says so in its row."""
        try:
            found = find_runs(self._places)
        except EvomergeError:  # a place vanished: the rows of its runs say so
            return []
        return [RunFollower(folder) for folder in found if folder.path not in self._followers]

    def _looked(self, new: list[RunFollower]) -> None:
        for follower in new:
            self._followers[follower.folder.path] = follower
            self._add_row(follower.folder.path)
        self.n_looks += 1

    def _add_row(self, path: Path) -> None:
        cells = [Text(short(path.name, 20)), *(Text("…") for _ in COLUMNS[1:])]
        self._table.add_row(*cells, key=str(path))
        count = len(self._followers)
        self._table.border_subtitle = f"{count} run{'' if count == 1 else 's'}"

    def _show(self, path: Path, snapshot: Snapshot) -> None:
        """Take in a new look at a run."""
        if snapshot.state == "running" and self._asked.get(path) == snapshot.driver:
            # Known here before the driver comes round to writing it down.
            snapshot = snapshot.as_draining()
        self._snapshots[path] = snapshot
        for name, cell in zip(COLUMNS, table_row(snapshot), strict=True):
            self._table.update_cell(str(path), name, cell, update_width=True)
        if path == self._selected:
            self._show_details()

    def _show_details(self) -> None:
        snapshot = self._snapshots.get(self._selected)
        if snapshot is None:
            return
        driver, said = snapshot.driver, notice(snapshot)
        self._facts.border_title = Text(f"{short(snapshot.name, 24)}: {snapshot.state}")
        self._facts.border_subtitle = None if driver is None else Text(plain(str(driver)))
        self._notice.update(Text(said))
        self._notice.display = bool(said)
        self._facts_text.update(facts_text(snapshot))
        self._show_plot(snapshot)
        self._show_log(snapshot)
        self._workers_text.update(workers_text(snapshot))
        self._failures_text.update(failures_text(snapshot))

    def _show_plot(self, snapshot: Snapshot) -> None:
        plot, points = self._plot, snapshot.points
        if points is None:
            plot.border_title = plot.border_subtitle = None
            plot.update("")
            return
        choices = pairs(len(points.names))
        pair = choices[self._pair % len(choices)]
        title, legend = captions(points, pair)
        plot.border_title, plot.border_subtitle = Text(plain(title)), Text(legend)
        plot.update(Scatter.of(points, pair).draw(plot.size.width, plot.size.height))

    def _show_log(self, snapshot: Snapshot) -> None:
        log, lines = self._log_lines, snapshot.lines
        path = snapshot.folder.path
        shown = self._logged[1] if self._logged is not None and self._logged[0] == path else -1
        if shown < 0 or snapshot.n_lines < shown:
            log.clear()
            shown = 0
        missing = min(snapshot.n_lines - shown, len(lines))
        for line in lines[len(lines) - missing :]:
            log.write(log_line(line))
        self._logged = (path, snapshot.n_lines)

    # ---------------------------------------------------------------- actions

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the run under the cursor."""
        path = Path(str(event.row_key.value))
        if path != self._selected:
            self._selected, self._pair = path, 0
            self._show_details()

    def on_resize(self, _event: Resize) -> None:
        """Draw again for the new size, once everything has its place."""
        self.call_after_refresh(self._show_details)

    def action_next_run(self, step: int) -> None:
        """Move the cursor to another run, round and round."""
        table = self._table
        table.move_cursor(row=(table.cursor_row + step) % table.row_count)

    def action_next_panel(self, step: int) -> None:
        """Show another panel, round and round."""
        panels = self._panels
        panels.active = PANELS[(PANELS.index(panels.active) + step) % len(PANELS)]

    def action_scroll(self, step: int) -> None:
        """Scroll facts and panel by a page, where they have more than there is room for."""
        pane = self._panels.active_pane
        parts = [self._facts, *(pane.query("RichLog, VerticalScroll") if pane else ())]
        for part in parts:
            part.scroll_relative(y=step * part.size.height, animate=False)

    def action_next_pair(self) -> None:
        """Plot another pair of objectives."""
        self._pair += 1
        self._show_details()

    def action_drain(self) -> None:
        """Ask whether the run may finish what is running and then stop, and tell its driver."""
        snapshot, driver = self._driven()
        if driver is None:
            return
        if not driver.can_drain:
            self._say(
                f"{driver} is no evomerge command and cannot drain; s stops it at once, and "
                "nothing finished is lost",
                is_bad=True,
            )
            return
        in_flight = snapshot.status.get("in_flight", 0)
        question = (
            f"Let {plain(snapshot.name)} ({driver}) finish what it is evaluating, then stop? "
            f"{in_flight} candidates are asked for; those not begun wait for a resume."
        )
        self._ask(question, lambda: self._drain(driver), f"draining {snapshot.name}")

    def _drain(self, driver: Driver) -> None:
        driver.drain()
        self._asked[driver.folder] = driver

    def action_stop(self) -> None:
        """Ask whether the run shall stop at once, and tell its driver."""
        snapshot, driver = self._driven()
        if driver is None:
            return
        question = (
            f"Stop {plain(snapshot.name)} ({driver}) at once? What is being evaluated is lost, "
            "nothing finished is."
        )
        is_draining = snapshot.state == "draining"
        self._ask(
            question, lambda: driver.stop(is_draining=is_draining), f"stopping {snapshot.name}"
        )

    def _driven(self) -> tuple[Snapshot, Driver | None]:
        """Return the selected run and who drives it; says so when nobody does."""
        snapshot = self._snapshots.get(self._selected)
        if snapshot is None:
            snapshot = Snapshot(self._followers[self._selected].folder)
        if snapshot.driver is None:
            self._say(f"{snapshot.name} is not running", is_bad=True)
        return snapshot, snapshot.driver

    def _ask(self, question: str, then: Callable[[], None], done: str) -> None:
        def answered(is_yes: bool | None) -> None:
            if not is_yes:
                return
            try:
                then()
            except EvomergeError as error:
                self._say(str(error), is_bad=True)
            else:
                self._say(done)

        self.push_screen(Confirm(question), answered)

    def _say(self, text: str, *, is_bad: bool = False) -> None:
        self.notify(
            plain(text), severity="error" if is_bad else "information", timeout=5, markup=False
        )
