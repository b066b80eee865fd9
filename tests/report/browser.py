"""A headless Chromium to open reports with, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Opened:
    """A page, and what it complained about."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def tab(self, name: str) -> None:
        self.page.locator(f"#tab-{name}").click()

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the system's browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is on the path")
    with playwright.sync_playwright() as started:
        # Tests run as root in containers, where Chromium's own sandbox cannot.
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any,
    where: Path | str,
    *,
    width: int = 1280,
    height: int = 800,
    scheme: str = "light",
    bypass_csp: bool = False,
) -> Iterator[Opened]:
    """Open a page; console errors and warnings, and requests, become complaints."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=bypass_csp
    )
    page = context.new_page()
    result = Opened(page)
    page.on("pageerror", lambda error: result.complaints.append(f"error: {error}"))
    page.on("console", lambda line: result.complaints.append(f"{line.type}: {line.text}"))
    page.on("dialog", lambda dialog: result.complaints.append(f"dialog: {dialog.message}"))
    if isinstance(where, Path):
        page.on("request", lambda request: _refuse(request, where, result))
    page.goto(where.as_uri() if isinstance(where, Path) else where)
    yield result
    context.close()


def _refuse(request: Any, file: Path, result: Opened) -> None:
    if request.url != file.as_uri() and not request.url.startswith(("data:", "blob:")):
        result.complaints.append(f"request: {request.url}")
