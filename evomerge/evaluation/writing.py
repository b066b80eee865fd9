"""How a model answers prompts: the same for every evaluator that reads what it writes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from evomerge.core.arrays import IntArray
from evomerge.errors import ConfigError
from evomerge.evaluation.batching import Limits
from evomerge.evaluation.chat import Chat
from evomerge.evaluation.examples import read_rows, stamp
from evomerge.evaluation.generation import plan_prompts
from evomerge.evaluation.text_model import TextModel

if TYPE_CHECKING:
    from evomerge.evaluation.served_subject import ServedSubject
    from evomerge.evaluation.server import ServedCandidate
    from evomerge.evaluation.vllm_engine import VllmEngine


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Settings of greedy answers. A server has its own: only the first two reach it.

    Attributes:
        max_new_tokens: Most tokens to generate.
        stop: Strings that end an answer and are not part of it.
        max_length: Keep only the last so many prompt tokens; None: longer ones are an error.
        limits: Size of a batch.
        chat: Whether and how prompts become chat messages.
        cache: See `generation.generate`.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    max_length: int | None = None
    limits: Limits = field(default_factory=Limits)
    chat: Chat = field(default_factory=Chat)
    cache: Literal["dynamic", "static"] = "dynamic"

    def texts(
        self,
        writer: TextModel | ServedSubject,
        examples: Path,
        rows: tuple[int, int] | None,
        wanted: IntArray,
    ) -> list[str]:
        """Return (n,) what a model writes behind the `prompt` of each wanted row.

        Tokens are made once for all candidates of a resident model.

        Args:
            writer: A resident model or one on a server.
            examples: JSONL rows with `prompt`.
            rows: Half-open range of them; None: all.
            wanted: (n,) which rows of that range, each in [0, N).

        Raises:
            EvaluationError: Logits are NaN, or a prompt is too long.
        """
        data = read_rows(examples, rows)
        if not isinstance(writer, TextModel):
            prompts = [data[i].text("prompt") for i in wanted]
            return writer.generate(prompts, max_new_tokens=self.max_new_tokens, stop=self.stop)
        key: Hashable = (self, examples, rows, stamp(examples))
        plan = writer.prepared(
            key,
            lambda: plan_prompts(
                writer,
                self.chat.render(writer, [row.text("prompt") for row in data]),
                max_new_tokens=self.max_new_tokens,
                max_length=self.max_length,
                special=not self.chat.is_on,
            ),
        )
        return writer.continue_prompts(
            plan,
            wanted.tolist(),
            limits=self.limits,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            cache=self.cache,
        )


class _Keys(Protocol):
    """The config keys that evaluators which read answers have in common; see `Writing`."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def batch_tokens(self) -> int | Literal["auto"]: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def chat_template(self) -> bool: ...
    @property
    def chat_template_file(self) -> Path | None: ...
    @property
    def system_prompt(self) -> str | None: ...


def writing_of(keys: _Keys, cache: Literal["dynamic", "static"] = "dynamic") -> Writing:
    """Return what an evaluator's keys say of writing.

    Raises:
        ConfigError: A chat key is set that would have no effect.
    """
    return Writing(
        max_new_tokens=keys.max_new_tokens,
        stop=keys.stop,
        max_length=keys.max_length,
        limits=Limits(keys.batch_tokens, keys.batch_size),
        chat=Chat(keys.chat_template, keys.chat_template_file, keys.system_prompt),
        cache=cache,
    )


def refuse_two_writers(
    kind: str, candidate: ServedCandidate | None, chat: Chat, engine: VllmEngine | None
) -> None:
    """Raise ConfigError where settings of a resident model are given and a server holds it."""
    given: Sequence[str] = [
        *(["chat_template"] if chat.is_on else []),
        *(["engine"] if engine is not None else []),
    ]
    if candidate is not None and given:
        raise ConfigError(
            f"{kind}: {given[0]} is for a model of the worker's own, and `candidate:` names a "
            "server, which has its own (`candidate: {api: chat}`); remove one of them"
        )
