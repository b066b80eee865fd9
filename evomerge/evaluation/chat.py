"""Prompts as a chat model was trained to see them.

The template is Jinja, run in transformers' sandbox: it can neither import nor change anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.errors import ConfigError, DataError, first_line
from evomerge.evaluation.examples import read_text

if TYPE_CHECKING:
    from evomerge.evaluation.vocabulary import Vocabulary


@dataclass(frozen=True)
class Chat:
    """How prompts become chat messages.

    Attributes:
        is_on: Whether they do.
        template_file: Jinja template; None: the one of the model's tokenizer.
        system_prompt: Message in front of every prompt; None: none.
    """

    is_on: bool = False
    template_file: Path | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        """Check that nothing is set that would have no effect."""
        if not self.is_on and (self.template_file or self.system_prompt is not None):
            key = "chat_template_file" if self.template_file else "system_prompt"
            raise ConfigError(f"{key} needs `chat_template: true`; set it, or remove {key}.")

    def content(self) -> list[str | bool | None]:
        """Return what a digest of an example has to hold; the tokenizer's template is not known."""
        template = None if self.template_file is None else read_text(self.template_file)
        return [self.is_on, template, self.system_prompt] if self.is_on else []

    def render(self, subject: Vocabulary, prompts: Sequence[str]) -> list[str]:
        """Return the text of each prompt up to where the model's answer begins.

        Without chat the prompts as they are.

        Raises:
            ConfigError: The tokenizer has no chat template.
            DataError: The template is broken or refuses a message.
        """
        if not self.is_on:
            return list(prompts)
        template = None if self.template_file is None else read_text(self.template_file)
        if template is None and not getattr(subject.tokenizer, "chat_template", None):
            raise ConfigError(
                f"{subject.folder}: its tokenizer has no chat template; give "
                "`chat_template_file:`, or remove `chat_template`."
            )
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        try:
            return [
                str(
                    subject.tokenizer.apply_chat_template(
                        [*system, {"role": "user", "content": prompt}],
                        chat_template=template,
                        tokenize=False,
                        add_generation_prompt=True,
                    )
                )
                for prompt in prompts
            ]
        except Exception as error:  # what a template computes can fail in any way
            where = self.template_file or f"the chat template of {subject.folder}"
            raise DataError(
                f"{where}: cannot be filled in ({type(error).__name__}: {first_line(error)}); "
                "correct it, or give another `chat_template_file:`."
            ) from error
