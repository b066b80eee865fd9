"""A question with yes and no over the screen."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static


class Confirm(ModalScreen[bool]):
    """Asks something; dismissed with whether it was answered with yes."""

    CSS = """
    Confirm { align: center middle; }
    #question { width: 64; max-width: 90%; height: auto; padding: 1 2;
                border: round $warning; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        """Args: question: plain text."""
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Lay out the question and what can be answered."""
        text = Text(self._question).append("\n\n")
        text.append(" y ", style="reverse bold").append(" yes    ")
        text.append(" n ", style="reverse bold").append(" no")
        with Vertical(id="question"):
            yield Static(text)

    def action_answer(self, is_yes: bool) -> None:
        """Close with the answer."""
        self.dismiss(is_yes)
