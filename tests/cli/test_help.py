"""Help: every verb has it, and asking for it loads nothing heavy."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from evomerge.cli.main import app

VERBS = ("search", "resume", "status", "front", "export", "ask", "merge", "check", "prepare",
         "quickstart", "repair", "report", "serve", "init", "plan", "schema", "compare", "replay",
         "gc", "validate", "watch", "submit", "logs", "stop", "track", "optuna")  # fmt: skip
HEAVY = ("torch", "ray", "numpy", "transformers", "pandas", "pydantic", "matplotlib", "nevergrad",
         "optuna", "safetensors", "sklearn")  # fmt: skip
PROBE = """
import json, sys
sys.argv = ["evomerge", *json.loads(sys.argv[1])]
from evomerge.cli.main import run
try:
    run()
except SystemExit as done:
    print(json.dumps([done.code or 0, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_the_list_of_verbs_is_complete():
    assert set(typer.main.get_command(app).commands) == set(VERBS)


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_works(arguments, evomerge):
    done = evomerge(*arguments)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: ")


@pytest.mark.parametrize("verb", [
    "search", "resume", "export", "ask", "prepare", "report", "repair", "check", "front", "init",
    "plan", "schema", "compare", "replay", "gc", "watch", "submit", "logs", "stop",
])  # fmt: skip
def test_help_shows_an_example_that_parses(verb, evomerge):
    text = " ".join(evomerge(verb, "--help").out.split())
    example = re.search(rf"Example: evomerge ({verb} .*?) (?:Arguments|Options):", text)
    assert example
    assert not example.group(1).endswith("..."), "cut off"


def test_help_of_the_program_says_how_to_begin_and_what_exit_codes_mean(evomerge):
    text = " ".join(evomerge("--help").out.split())
    assert "start: evomerge search CONFIG" in text
    assert "0 done, 2 bad config, 3 preflight or run failed, 75 interrupted and resumable" in text
    for verb in VERBS:
        assert f" {verb} " in text


@pytest.mark.parametrize(
    "verb", ["init", "plan", "schema", "compare", "replay", "gc", "watch", "submit", "logs", "stop"]
)
def test_help_says_what_exit_codes_mean(verb, evomerge):
    assert "Exit codes: 0 " in " ".join(evomerge(verb, "--help").out.split())


def test_shells_can_complete_verbs():
    script = Path(sys.executable).with_name("evomerge")
    if not script.exists():
        pytest.skip("evomerge is not installed as a command")
    done = subprocess.run(
        [script],
        env={
            **os.environ,
            "_EVOMERGE_COMPLETE": "complete_bash",
            "COMP_WORDS": "evomerge re",
            "COMP_CWORD": "1",
        },
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["resume", "repair", "report", "replay"], done.stderr


def test_no_arguments_mean_help(evomerge):
    assert evomerge().out == evomerge("--help").out


def test_every_option_is_explained():
    for name, verb in typer.main.get_command(app).commands.items():
        for parameter in verb.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["serach"]])
def test_help_and_typos_load_nothing_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == (2 if arguments == ["serach"] else 0)
    by_typer = set() if arguments == ["--help"] else {"pydantic"}  # it parses a verb's arguments
    assert not set(modules) & set(HEAVY) - by_typer
