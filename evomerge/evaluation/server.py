"""Server: how to reach an OpenAI-compatible server; settings only, nothing is connected."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from evomerge.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server is and how it is asked; it does not shape what is scored.

    A run may therefore be resumed with another `server:`.

    Attributes:
        url: Address in front of `/v1`, such as http://127.0.0.1:8000; `$NAME` takes it from an
            environment variable when the run starts.
        api_key_env: Environment variable that holds the API key; None: no key is sent. The key
            itself never goes to a config, log or run folder.
        concurrency: Requests in flight at once.
        timeout_seconds: Deadline of one attempt of one request.
        attempts: How often a request is tried while the server is down, busy or answers garbage.
        first_wait_seconds: Wait before the second attempt; doubled for each one after that.
        longest_wait_seconds: Longest wait; a server that asks for more ends the run, resumable.
        prompt_price: Price of a million prompt tokens, in any currency, for the cost counter.
        completion_price: Price of a million generated tokens.

    Raises:
        ConfigError: A value is out of range, or the URL holds a password.
    """

    url: str
    api_key_env: str | None = None
    concurrency: int = 8
    timeout_seconds: float = 120.0
    attempts: int = 6
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 60.0
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        for key in ("concurrency", "attempts"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}, expected at least 1")
        for key in ("timeout_seconds", "first_wait_seconds", "longest_wait_seconds"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} is {getattr(self, key)}, expected more than 0")
        if min(self.prompt_price, self.completion_price) < 0:
            raise ConfigError("a price is negative")
        if not self.url.startswith("$"):
            _root(self.url)

    def root(self) -> str:
        """Return the address without `/v1`.

        Raises:
            ConfigError: The environment variable is not set, or holds no URL.
        """
        return _root(_variable(self.url[1:], "url") if self.url.startswith("$") else self.url)

    def api_key(self) -> str | None:
        """Return the API key, or None when the server wants none.

        Raises:
            ConfigError: The environment variable is not set.
        """
        return None if self.api_key_env is None else _variable(self.api_key_env, "api_key_env")


def _variable(name: str, key: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"{key}: the environment variable {name!r} is not set; export it first")
    return value


def _root(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url is {url!r}, expected http://HOST:PORT, https://HOST or $NAME")
    if parts.username or parts.password:
        raise ConfigError("url holds a user or password; give the key through api_key_env")
    return url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, kw_only=True)
class ServedCandidate:
    """Candidates that a server holds, so that the worker needs no model.

    Attributes:
        server: The server.
        install: "recipe" has the server merge (the contract of docs/endpoint.md); "lora" writes
            an adapter and has vLLM load it.
        api: "completions" or "chat".
        choose: How options are compared, by "echo" or "first_token"; see docs/endpoint.md.
        system_prompt: System message in front of every prompt (chat).
        request: Keys added to every request.
        adapters: Folder that adapters are written to ("lora").
        adapters_on_server: The same folder as the server sees it; None: the same path.
        base: Name of the base model on the server ("lora").
        rank: Largest rank of an adapter; None: exact, or not at all.

    Raises:
        ConfigError: A setting is missing, or belongs to the other way to install.
    """

    server: Server
    install: Literal["recipe", "lora"]
    api: Literal["completions", "chat"] = "completions"
    choose: Literal["echo", "first_token"] = "echo"
    system_prompt: str | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    adapters: Path | None = None
    adapters_on_server: str | None = None
    base: str | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        wanted = ("adapters", "base") if self.install == "lora" else ()
        for key in ("adapters", "adapters_on_server", "base", "rank"):
            value = getattr(self, key)
            if value is None and key in wanted:
                raise ConfigError(f"{key} is missing; `install: lora` needs it")
            if value is not None and self.install != "lora":
                raise ConfigError(f"{key} belongs to `install: lora`; remove it")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank is {self.rank}, expected at least 1")
        if self.system_prompt is not None and self.api != "chat":
            raise ConfigError("system_prompt needs `api: chat`; completions have no messages")
        reserved = {"model", "prompt", "messages", "temperature", "stream", "n"} & {*self.request}
        if reserved:
            raise ConfigError(f"request.{min(reserved)} is set by evomerge; remove it")

    @property
    def place(self) -> Hashable:
        """What tasks must have in common to share one installed candidate."""
        return (
            self.server,
            self.install,
            self.adapters,
            self.adapters_on_server,
            self.base,
            self.rank,
        )
