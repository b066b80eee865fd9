"""Docstrings are plain text with `code` in it: keep reStructuredText from reading more in."""

import re

from sphinx.application import Sphinx

# A piece of code, or what reStructuredText would take for emphasis, a substitution or a reference.
_SPECIAL = re.compile(r"``.+?``|`[^`]+`_?|[*|]|(?<=\w)_(?!\w)")


def escaped(line: str) -> str:
    """Return a line of a docstring with stars, bars and trailing underscores escaped."""
    return _SPECIAL.sub(lambda m: m[0] if m[0].startswith("`") else "\\" + m[0], line)


def _escape(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    del app, what, name, obj, options
    # Napoleon has its own way with the name of an attribute, the word in front of the colon.
    heads = [re.match(r"\s+\w+: ", line) for line in lines]
    lines[:] = [
        line[: head.end()] + escaped(line[head.end() :]) if head else escaped(line)
        for line, head in zip(lines, heads, strict=True)
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Escape before napoleon, whose priority is 500, makes markup of the sections."""
    app.connect("autodoc-process-docstring", _escape, priority=400)
    return {"parallel_read_safe": True}
