"""Pictures of the screen: `python -m tests.watch.picture docs/images/watch.png` makes the docs' one."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.e2e.tiny_run import build_tiny_models, evomerge, start
from tests.report.browser import chromium

SIZE = (104, 30)


def svg_of(places: Sequence[Path], size: tuple[int, int], keys: Sequence[str] = ()) -> str:
    """Return the screen as SVG, after some keys."""
    from evomerge.watch.screen import WatchApp

    async def session() -> str:
        app = WatchApp(places, look_seconds=0.1)
        async with app.run_test(size=size) as pilot:
            deadline = time.monotonic() + 60
            while app.n_looks < 2:
                assert time.monotonic() < deadline
                await pilot.pause(0.05)
            await pilot.press(*keys)
            await pilot.pause(0.5)
            return app.export_screenshot(title="evomerge watch")

    return asyncio.run(session())


def png_of(svg: str, browser: Any, folder: Path, *, width: int = 1000) -> bytes:
    """Return a picture of an SVG."""
    file = folder / "screen.html"
    file.write_text(f'<body style="margin:0;background:#fff">{svg}</body>', encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 700})
    page.route("http**", lambda route: route.abort())  # its font; any monospaced one will do
    page.goto(file.as_uri())
    picture = page.locator("svg").first.screenshot()
    page.close()
    return bytes(picture)


def main(out: Path) -> None:
    """Search twice, the second time while the picture is taken."""
    with tempfile.TemporaryDirectory(prefix="evomerge-picture-") as name:
        home = Path(name)
        models = build_tiny_models(home)
        runs = home / "populations"
        done = evomerge("search", models.write(home / "a.yaml"), "--run", runs / "first")
        assert done.returncode == 0, done.stderr
        tasks = [models.task("up", 0.1, pause=0.15), models.task("down", -0.1)]
        config = models.write(home / "b.yaml", tasks=tasks, budget={"evaluations": 240})
        process = start("search", config, "--run", runs / "second", log=home / "log")
        try:
            journal = runs / "second" / "journal.jsonl"
            while not (journal.exists() and journal.read_bytes().count(b'"told"') > 90):
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.1)
            svg = svg_of([runs], SIZE, ["down"])
        finally:
            process.kill()
            process.wait()
        with chromium() as browser:
            out.write_bytes(png_of(svg, browser, home))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
