"""named_path: a path as people write it -> a Path."""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import ConfigError


def named_path(text: str) -> Path:
    """Return a path with `~` and `~user` replaced by the home folder; it need not exist.

    Raises:
        ConfigError: It holds a null byte, or nobody has that home folder.
    """
    if "\0" in text:
        raise ConfigError(f"{text!r:.300} is no path: it holds a null byte")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{text!r:.300}: there is no home folder of this user; write the path in full"
        ) from None
