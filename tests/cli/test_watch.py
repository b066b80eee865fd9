"""`evomerge watch` outside its screen: JSON, and what it says where it cannot draw."""

import json
import os
import subprocess
import sys
from pathlib import Path

import evomerge.watch
from tests.cli.command import assert_one_line, tree


def test_json_is_one_look_at_every_run(place, evomerge):
    before = tree(place.run)
    for arguments in ((), ("tiny",), ("populations",), ("populations/tiny", "populations")):
        done = evomerge("watch", *arguments, "--json")
        assert (done.code, done.err) == (0, "")
        (run,) = json.loads(done.out)["runs"]
        assert (run["run"], run["state"], run["done"]) == ("populations/tiny", "done", 6)
    status = json.loads(evomerge("status", "tiny", "--json").out)
    for row in status["best"].values():
        assert (row.pop("n"), len(row.pop("interval"))) == (12, 2)  # which it takes scores to know
    assert {key: run[key] for key in status} == status
    assert tree(place.run) == before


def test_a_damaged_run_is_part_of_the_answer(place, evomerge):
    with (place.run / "journal.jsonl").open("a") as journal:
        journal.write('{"event": {}, "chain": ""}\n')
    done = evomerge("watch", "--json")
    (run,) = json.loads(done.out)["runs"]
    assert (done.code, run["state"]) == (0, "unreadable")
    assert "does not continue the journal" in run["error"]


def test_without_a_terminal_it_names_other_verbs(place, evomerge):
    assert_one_line(evomerge("watch", "tiny"), 2, ("terminal", "evomerge status RUN --json"))


def test_nothing_to_watch_is_told(place, evomerge):
    assert_one_line(evomerge("watch", "tini", "--json"), 3, ("Did you mean 'tiny'?",), "RunError")
    assert_one_line(evomerge("watch", "models", "--json"), 3, ("there are no runs",), "RunError")


def test_a_missing_extra_is_named(place):
    code = (
        "import sys; sys.modules['textual'] = None\n"
        "sys.stdin.isatty = sys.stdout.isatty = lambda: True\n"
        "sys.argv = ['evomerge', 'watch']\n"
        "from evomerge.cli.main import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place.folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert "PreflightError" in done.stderr
    assert "pip install 'evomerge[watch]'" in done.stderr


def test_json_needs_no_textual():
    watch = Path(evomerge.watch.__file__).parent
    drawing = {path.stem for path in watch.glob("*.py") if "import textual" in path.read_text()}
    drawing |= {path.stem for path in watch.glob("*.py") if "from textual" in path.read_text()}
    assert drawing == {"confirm", "screen"}
