"""The chat template a model folder comes with."""

from __future__ import annotations

import json
from pathlib import Path

from evomerge.errors import SourceError
from evomerge.storage.untrusted_files import contained_file, read_json_object

_JINJA = "chat_template.jinja"
_IN_JSON = ("chat_template.json", "tokenizer_config.json")  # of a processor, of a tokenizer
_MAX_BYTES = 16_000_000


def read_chat_template(folder: Path) -> str | None:
    """Return the text of a folder's chat template, all of them as JSON where it has several.

    Looked for in the order transformers does: chat_template.jinja, then the key `chat_template` of
    chat_template.json and tokenizer_config.json.

    Returns:
        None when there is none.

    Raises:
        SourceError: A file is malformed, too large or lies outside the folder.
    """
    if (folder / _JINJA).is_file():
        path = contained_file(folder, _JINJA)
        if path.stat().st_size > _MAX_BYTES:
            raise SourceError(
                f"{folder / _JINJA}: is larger than {_MAX_BYTES:,} bytes. "
                "Check that it belongs to the model."
            )
        return path.read_text("utf-8", errors="replace").strip()
    for name in _IN_JSON:
        if not (folder / name).is_file():
            continue
        found = read_json_object(contained_file(folder, name), max_bytes=_MAX_BYTES)
        template = found.get("chat_template")
        if template:
            is_text = isinstance(template, str)
            return template.strip() if is_text else json.dumps(template, sort_keys=True)
    return None
