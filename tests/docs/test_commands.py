"""Every command in the documents is one that the command line takes."""

import re

import pytest
import typer.main

from evomerge.cli.main import app
from tests.docs.pages import PAGES, ROOT, mentioned_commands, name_of, shell_commands

VERBS = typer.main.get_command(app).commands
FILES = [*PAGES, *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_shell_blocks_parse(page):
    for words in shell_commands(page):
        assert words[0] in VERBS, words
        VERBS[words[0]].make_context(words[0], words[1:])  # parses, runs nothing


@pytest.mark.parametrize("page", FILES, ids=name_of)
def test_commands_in_text_have_verbs_and_options_that_exist(page):
    for command in mentioned_commands(page):
        verb, *words = command.split()[1:]
        if verb.startswith("-"):
            continue
        assert verb.strip("…,.") in VERBS, command
        known = {option for item in VERBS[verb].params for option in item.opts} | {"--help"}
        given = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(words)))
        assert given <= known, command


def test_there_are_commands_to_look_at():
    assert sum(len(list(shell_commands(page))) for page in PAGES) > 30
    assert sum(len(list(mentioned_commands(page))) for page in FILES) > 50
