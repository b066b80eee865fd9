"""Put a report's data, scripts and plotly.js into one HTML file that needs no network.

Strings of a run come from strangers. They are only ever in one JSON block, whose `<` is escaped;
the scripts put them on the page as text. The page's content security policy allows the scripts
of this module by their digests and no others, no eval, and no requests.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata, resources
from typing import Any

from evomerge.errors import PreflightError

_SCRIPTS = ("core.js", "front.js", "parallel.js", "parts.js", "app.js")


def render(data: Mapping[str, Any], *, live: str = "") -> str:
    """Return the page.

    Args:
        data: What `report_data` returned.
        live: Where to ask for newer data, relative to the page; "" for a file that stands alone.

    Raises:
        PreflightError: plotly is not installed.
    """
    plotly, script = _plotly(), _script()
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in (plotly, script))
    requests = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        f"img-src data: blob:; connect-src {requests}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": html.escape(policy, quote=True),
        "title": html.escape(f"{data['run']} – evomerge report"),
        "style": _asset("page.css"),
        "live": html.escape(live, quote=True),
        "data": embedded_json(data),
        "plotly": plotly,
        "script": script,
    }
    # Split rather than replaced one by one: no part is searched for the names of others.
    pieces = _asset("page.html").replace("}", "{").split("{")
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def embedded_json(data: Any) -> str:
    """Return JSON that may stand inside an HTML script element, whatever its strings hold.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return resources.files("evomerge.report").joinpath("assets", name).read_text(encoding="utf-8")


def _script() -> str:
    body = "\n".join(_asset(name) for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}\n}})();\n'


@cache
def _plotly() -> str:
    """Return plotly.js (MIT) as the Python package ships it."""
    try:
        files = metadata.files("plotly")
    except metadata.PackageNotFoundError:
        files = None
    found = next((file for file in files or () if file.name == "plotly.min.js"), None)
    if found is None:
        raise PreflightError(
            "a report needs plotly, which is not installed: pip install 'evomerge[report]'"
        )
    return found.read_text(encoding="utf-8")
