"""The documents, and what stands in them: blocks of code, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("README.md", "docker/README.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
    if "_build" not in path.parts
)
GUIDES = ROOT / "docs" / "guides"

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[str]:
    """Return the fenced blocks in these languages, in order."""
    return [text for kind, text in _FENCE.findall(path.read_text()) if kind.strip() in languages]


def shell_commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of every `evomerge` line of shell blocks."""
    for block in blocks(path, "console", "bash", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["evomerge"]:
                yield words[1:]


def mentioned_commands(path: Path) -> Iterator[str]:
    """Yield every command in indented lines, `code` and, of YAML files, comments."""
    text = path.read_text()
    text = _FENCE.sub("", text)
    for code in re.findall(r"(?<!`)`(evomerge [^`]+)`", text):
        yield " ".join(code.split())
    indent = "    " if path.suffix == ".md" else "# +"
    yield from re.findall(rf"^{indent}(evomerge [^#\n]+)", text, flags=re.MULTILINE)


def files_in(path: Path) -> dict[str, str]:
    """Return file name -> text of the Python blocks that begin with `# name.py`."""
    found = {}
    for block in blocks(path, "python"):
        head = re.match(r"# (\w+\.py)\n", block)
        if head:
            found[head[1]] = block
    return found
