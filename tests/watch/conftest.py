"""Real runs to watch, and the screen in a terminal of any size."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from evomerge.config.schema import load_config
from evomerge.config.session import Session, open_or_create
from evomerge.storage.run_store import RunFolder
from tests.e2e.tiny_run import start


@dataclass(frozen=True)
class Pilot:
    """A screen that is shown, and a hand at its keyboard."""

    app: object
    keys: object

    async def press(self, *keys: str) -> None:
        await self.keys.press(*keys)
        await self.keys.pause()

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited too long; the screen:\n{self.text()}"
            await self.keys.pause(0.02)

    def words(self) -> str:
        """What the terminal shows, without frames and with single spaces."""
        return " ".join(self.text().translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())

    async def look(self) -> None:
        """Wait until every run was looked at once more."""
        seen = self.app.n_looks
        await self.until(lambda: self.app.n_looks >= seen + 2)
        await self.keys.pause()

    def text(self) -> str:
        """What the terminal shows."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)


@pytest.fixture
def watching():
    """Show runs and do something with the screen."""
    from evomerge.watch.screen import WatchApp

    def run(places, steps: Callable[[Pilot], Awaitable[None]], size=(80, 24)) -> None:
        async def session() -> None:
            app = WatchApp(places, look_seconds=0.1)
            async with app.run_test(size=size, notifications=True) as keys:
                pilot = Pilot(app, keys)
                await pilot.look()
                await steps(pilot)

        asyncio.run(session())

    return run


def searched(config: Path, run: Path) -> RunFolder:
    """Search to the end in this process."""
    folder = RunFolder(run)
    resolved, _ = open_or_create(load_config(config), config.parent, folder)
    with Session(folder, config=resolved) as session:
        session.run()
    return folder


@pytest.fixture(scope="session")
def finished(tiny_models, tmp_path_factory) -> Path:
    """The folder of two finished runs, one with failures; copy before changing."""
    home = tmp_path_factory.mktemp("watched")
    task = tiny_models.task("up", 0.1)
    task["evaluator"] |= {"function": "tiny_scorer:sometimes", "arguments": {"n": 12}}
    fails = tiny_models.write(home / "fails.yaml", tasks=[task], budget={"evaluations": 20})
    good = tiny_models.write(home / "good.yaml")
    searched(fails, home / "populations" / "fails")
    searched(good, home / "populations" / "good")
    return home / "populations"


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    """A copy of the folder of finished runs."""
    return Path(shutil.copytree(finished, tmp_path / "populations"))


@pytest.fixture
def driven(tiny_models, tmp_path):
    """A search that is running, slowly, in a process of its own: run and process."""
    tasks = [tiny_models.task("up", 0.1, pause=0.1), tiny_models.task("down", -0.1)]
    config = tiny_models.write(tmp_path / "c.yaml", tasks=tasks, budget={"evaluations": 600})
    process = start("search", config, "--run", tmp_path / "live", log=tmp_path / "out")
    deadline = time.monotonic() + 60
    journal = tmp_path / "live" / "journal.jsonl"
    while not journal.exists() or b'"told"' not in journal.read_bytes():
        assert time.monotonic() < deadline, (tmp_path / "out").read_text()
        assert process.poll() is None, (tmp_path / "out").read_text()
        time.sleep(0.02)
    yield tmp_path / "live", process
    if process.poll() is None:
        process.kill()
    process.wait()
