"""A first-time user's way from two models to a report, in a real terminal.

`python -m tests.e2e.test_terminal_session` does the same and writes docs/terminal-session.md.
Captures of the panes, with colours, go to $EVOMERGE_ARTEFACTS where that is set.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.e2e.small_specialists import build
from tests.e2e.terminal import PROMPT, Terminal, has_tmux
from tests.e2e.tiny_run import journal

PAGE = ROOT / "docs" / "terminal-session.md"
INIT = (
    "evomerge init --base models/base --model models/maths --model models/letters "
    "--task data/maths.jsonl --task data/letters.jsonl --evaluations 120"
)
STEPS = (
    INIT,
    "evomerge check search.yaml",
    "evomerge plan search.yaml",
    "evomerge search search.yaml",
    "evomerge resume search",
    "evomerge front search",
    "evomerge export search --pick knee --out merged --verify",
    "evomerge report search --out report.html",
)
HEAD = """# A session in a terminal

What a terminal showed, from two fine-tunes and their examples to a merged model, with a Ctrl-C in the
middle. The models are small ones that were trained for it in seconds: `maths` adds, `letters` turns two letters
round, `base` does a little of both (`python -m tests.e2e.small_specialists FOLDER` makes them). `python -m
tests.e2e.test_terminal_session` records it again, with tmux; `tests/e2e/test_terminal_session.py` checks it.

"""


def record(folder: Path, captures: Path) -> tuple[dict[str, str], str]:
    """Go the whole way.

    Args:
        folder: With models and data; where the user is.
        captures: Where panes are kept.

    Returns:
        What each step printed by its verb, and all that the terminal showed.
    """
    terminal = Terminal(folder, captures)
    said = {}
    try:
        for command in STEPS:
            verb = command.split()[1]
            if verb != "search":
                said[verb] = terminal.run(command, name=verb)
                continue
            terminal.type(command)
            terminal.until(r"hypervolume +0\.")  # the founders are scored
            terminal.keep("search-live")
            terminal.interrupt()
            said[verb] = terminal.finished(name=verb)
            said["code"] = terminal.run("echo $?", name="code")
        return said, terminal.everything().strip("\n").removesuffix(PROMPT).rstrip()
    finally:
        terminal.close()


def page(shown: str) -> str:
    """Return the document: each command with what it printed."""
    parts = [HEAD]
    for part in f"\n{shown}".split(f"\n{PROMPT}")[1:]:
        part = re.sub(r"^\^C", "", part, flags=re.MULTILINE)
        lines = [line.rstrip() for line in part.rstrip().split("\n")]
        parts.append("```text\n" + PROMPT + "\n".join(lines) + "\n```\n\n")
    return "".join(parts).rstrip() + "\n"


@pytest.mark.slow
@pytest.mark.timeout(
    900
)  # about 40 seconds, but nine processes begin on what may be a busy machine
@pytest.mark.skipif(not has_tmux(), reason="tmux is not installed")
def test_a_new_user_gets_from_models_to_a_report(tmp_path):
    place = os.environ.get("EVOMERGE_ARTEFACTS")
    captures = Path(place, "terminal-session") if place else tmp_path / "captures"
    home = tmp_path / "home"
    build(home)
    said, shown = record(home, captures)
    captures.joinpath("session.txt").write_text(shown)
    assert "Traceback" not in shown
    assert "config -> search.yaml" in said["init"]
    assert "next: evomerge check search.yaml" in said["init"]
    assert "✓ 3 models aligned" in said["check"]
    assert "✗" not in said["check"]
    assert "120 evaluations in" in said["plan"]
    assert "draining: running evaluations finish first" in said["search"]
    assert "resume with:  evomerge resume populations/search" in said["search"]
    assert said["code"].strip() == "75"
    kept = re.search(r"resumed populations/search: (\d+) results kept", said["resume"])
    assert kept is not None
    assert 0 < int(kept[1]) < 120
    assert "populations/search: 120 evaluations, front of" in said["resume"]
    rows = said["front"].strip().split("\n")
    assert re.findall(r"(\w+), n = \d+", rows[0]) == ["maths", "letters"]
    assert re.search(r"\d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\]", rows[1]), "each value has its interval"
    assert len(rows) > 2, "a front of one says nothing"
    assert "all equal ✓" in said["export"]
    assert (home / "merged" / "model.safetensors").exists()
    assert "report -> report.html" in said["report"]
    assert (home / "report.html").stat().st_size > 1e6
    live = next(captures.glob("*search-live.ansi")).read_text()
    assert "━" in live
    assert re.search(r"\d+/120", live)
    longest = max(len(line) for line in shown.split("\n"))
    assert longest < 250
    assert sum(event["kind"] == "told" for event in journal(home / "populations/search")) == 120


def test_the_page_is_of_the_commands_that_are_run():
    text = PAGE.read_text()
    assert [line[2:] for line in text.splitlines() if line.startswith("$ evomerge")] == list(STEPS)
    assert text.startswith(HEAD)


def main() -> None:
    """Record, and write the page."""
    with tempfile.TemporaryDirectory(prefix="evomerge-session-") as name:
        home = Path(name, "home")
        build(home)
        _, shown = record(home, Path(name, "captures"))
    PAGE.write_text(page(shown))
    print(PAGE, file=sys.stderr)


if __name__ == "__main__":
    main()
