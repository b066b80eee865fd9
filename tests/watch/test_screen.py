"""The screen over real runs: what it shows, its keys, and what it must outlive."""

import os
import shutil
import signal
import time

import pytest

from evomerge.config.results import RunResults
from evomerge.config.session import Session, with_budget
from evomerge.config.workers import read_run_config
from evomerge.storage.lease_probe import is_driven
from evomerge.storage.run_store import RunFolder, RunStore
from tests.cli.command import tree
from tests.e2e.tiny_run import start
from tests.report.synthetic import HOSTILE, Plan, write_run
from tests.watch.conftest import searched

SMALL, WIDE = (80, 24), (160, 50)


def fits(text, size):
    lines = text.split("\n")
    assert len(lines) == size[1]
    assert {len(line) for line in lines} == {size[0]}


@pytest.mark.parametrize("size", [SMALL, WIDE])
def test_finished_runs_are_shown_whole(size, runs, watching):
    before = tree(runs)
    status = RunResults(RunFolder(runs / "good")).status()

    async def steps(pilot):
        await pilot.press("tab")
        text = pilot.text()
        fits(text, size)
        words = pilot.words()
        assert "fails done 20/20 1 " in words
        assert f"good done 20/20 {status['front']} 0 " in words
        assert "good: done" in text
        for name, row in status["best"].items():
            assert f"best {name} {row['value']:.4f} candidate {row['candidate']}" in words
        assert f"front {status['front']} candidates" in words
        assert "evaluations/min" in text
        assert "examples/s" in text
        assert "waiting 0, 0 failed" in words
        assert "merge task_arithmetic" in words
        assert "down ↑ over up →" in text
        assert "● front" in text
        assert 2 <= text.count("●") <= status["front"] + 1
        assert "candidate 19 scored worker=in-process attempt=1 seconds=" in text
        last = text.split("\n")[-1]
        for key in ("d Drain", "s Stop now", "q Quit", "tab Next run", "←→ Panel", "o Objectives"):
            assert key in last

    watching([runs], steps, size)
    assert tree(runs) == before, "watching changed a run"


def test_keys_move_between_runs_and_panels(runs, watching):
    async def steps(pilot):
        assert "fails: done" in pilot.text()
        assert "up ↑ over candidates →" in pilot.text()
        assert "● best so far" in pilot.text()
        await pilot.press("down")
        assert "good: done" in pilot.text()
        await pilot.press("tab")
        assert "fails: done" in pilot.text(), "round and round"
        await pilot.press("shift+tab")
        assert "good: done" in pilot.text()
        await pilot.press("up", "right")
        assert "1 of 1 configured have finished something" in pilot.text()
        assert "in-process" in pilot.text()
        await pilot.press("right")
        assert "this evaluator fails on some models" in pilot.text()
        assert "times (candidates " in pilot.text()
        await pilot.press("right", "pagedown", "pageup", "left", "tab")
        await pilot.look()
        assert "no failures" in pilot.text()
        await pilot.press("q")

    watching([runs / "fails", runs, runs / "good"], steps)


def test_a_running_search_grows_beside_others_and_drains_when_told(driven, runs, watching):
    run, process = driven

    async def steps(pilot):
        assert "live: running" in pilot.text()
        assert f"process {process.pid}" in pilot.text()
        first = pilot.app._snapshots[run].status["done"]
        await pilot.until(lambda: pilot.app._snapshots[run].status["done"] >= first + 5)
        done = pilot.app._snapshots[run].status["done"]
        await pilot.keys.pause()
        assert f"{done}/600" in pilot.text()
        shutil.copytree(runs / "good", run.parent / "later")
        await pilot.until(lambda: "later" in pilot.text())

    watching([run.parent], steps)
    assert is_driven(run), "quitting leaves the search alone"

    async def drains(pilot):
        await pilot.press("d")
        assert f"Let live (process {process.pid}) finish" in pilot.text()
        await pilot.press("n")
        assert process.poll() is None
        await pilot.press("d", "y")
        await pilot.look()
        assert "draining" in pilot.text() or "interrupted" in pilot.text()
        await pilot.until(lambda: "live: interrupted" in pilot.text())
        await pilot.press("d")
        assert "live is not running" in pilot.text()

    watching([run], drains)
    assert process.wait(30) == 75
    assert "drained;" in (run / "events.log").read_text()
    before = (run / "journal.jsonl").read_bytes()
    n_told = RunResults(RunFolder(run)).status()["done"]
    assert 0 < n_told < 600
    shorter = with_budget(read_run_config(RunFolder(run)), n_told + 4)
    with Session(RunFolder(run), config=shorter) as session:
        assert session.loop.n_told == n_told
        assert session.run() == "budget"
    assert (run / "journal.jsonl").read_bytes().startswith(before)
    assert RunResults(RunFolder(run)).status()["state"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("is_draining", [False, True])
def test_stop_ends_the_evaluation_under_way(is_draining, tiny_models, tmp_path, watching):
    tasks = [tiny_models.task("up", 0.1, pause=600.0), tiny_models.task("down", -0.1)]
    config = tiny_models.write(tmp_path / "c.yaml", tasks=tasks)
    began = time.monotonic()
    process = start("search", config, "--run", tmp_path / "live", log=tmp_path / "out")
    journal = tmp_path / "live" / "journal.jsonl"
    while not (journal.exists() and b'"asked"' in journal.read_bytes()):
        assert time.monotonic() < began + 60
        time.sleep(0.02)
    time.sleep(4.0)  # from asking, over the imports that scoring needs, to scoring

    async def steps(pilot):
        if is_draining:
            await pilot.press("d", "y")
            await pilot.until(lambda: "draining:" in (tmp_path / "out").read_text())
        await pilot.look()
        await pilot.press("s")
        assert "Stop live (process" in pilot.text()
        await pilot.press("y")
        await pilot.until(lambda: "live: interrupted" in pilot.text())

    try:
        watching([tmp_path / "live"], steps)
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (tmp_path / "out").read_text()


def test_a_search_that_cannot_drain_is_told_apart(tmp_path, watching, monkeypatch):
    folder = write_run(tmp_path / "notebook", Plan(n=20))
    header = folder.header()
    store = RunStore(folder, header=header, tasks=header["tasks"])  # driven by this process
    monkeypatch.setattr("evomerge.watch.driver._handles", lambda *_: False)

    async def steps(pilot):
        await pilot.press("d")
        assert "cannot drain" in pilot.words()
        sent = []
        monkeypatch.setattr("evomerge.watch.driver.os.kill", lambda *given: sent.append(given))
        await pilot.press("s", "y")
        assert sent == [(os.getpid(), signal.SIGINT)], "SIGTERM would kill a notebook's kernel"

    try:
        watching([folder.path], steps, WIDE)
    finally:
        store.close()


def test_harm_to_a_run_is_shown_and_does_not_end_the_screen(runs, watching):
    journal = runs / "good" / "journal.jsonl"
    whole = journal.read_bytes()

    async def steps(pilot):
        await pilot.press("tab")
        journal.write_bytes(whole + b'{"chain":"0","event":{}}\n')
        await pilot.until(lambda: "good: unreadable" in pilot.text())
        await pilot.until(lambda: "cannot be read: " in pilot.words())
        await pilot.until(lambda: "journal.jsonl" in pilot.words().replace(" ", ""))
        journal.write_bytes(whole)
        await pilot.until(lambda: "good: done" in pilot.text())
        shutil.rmtree(runs / "good")
        await pilot.until(lambda: "good: unreadable" in pilot.text())
        shutil.rmtree(runs)
        await pilot.press("tab")
        await pilot.until(lambda: "fails: unreadable" in pilot.text())
        await pilot.press("d", "s", "o", "right", "right")

    watching([runs], steps, WIDE)


def test_strings_of_strangers_are_only_text(tmp_path, watching):
    word = f"\x1b]0;owned\x07[/bold] [link=x]{HOSTILE}\x1b[2J\u202e"
    write_run(tmp_path / "run", Plan(n=30, word=word, names=("[b]m", "\x1b[31mc", "d")))

    tmp_path.joinpath("run").rename(tmp_path / "[red]x[")

    async def steps(pilot):
        await pilot.press("right", "right")
        text = pilot.text()
        assert not {letter for letter in text if not letter.isprintable()} - {"\n"}
        assert "[red]x[" in text
        assert "[link=x]</script>" in text
        assert "�[31mc ↑ over [b]m →" in text
        await pilot.press("o")
        assert "d ↑ over [b]m →" in pilot.text()
        await pilot.press("d", "s")

    watching([tmp_path], steps, WIDE)


def test_sizes_from_tiny_to_huge_and_changes_between(runs, watching):
    async def steps(pilot):
        for size in ((20, 6), (1, 1), (300, 90), SMALL):
            await pilot.keys.resize_terminal(*size)
            await pilot.look()
            fits(pilot.text(), size)
        assert "●" in pilot.text()

    watching([runs], steps)


def test_constraints_are_shown(tiny_models, tmp_path, watching):
    constraints = [{"task": "up", "at_least": 0.5}]
    config = tiny_models.write(tmp_path / "c.yaml", constraints=constraints)
    searched(config, tmp_path / "run")

    async def steps(pilot):
        assert "constraint  up >= 0.5" in pilot.text()

    watching([tmp_path / "run"], steps, WIDE)
