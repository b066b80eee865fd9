"""What a running search reports."""

import json

import pytest

from evomerge.cli.progress import Progress, describe
from evomerge.search.loop import LoopPlan
from tests.search.fakes import ShuffledExecutor, make_loop


def reported(capsys, loop, **options):
    """Run a loop under a Progress that may always report; return the lines."""
    with Progress(loop, "r", as_json=True) as progress:
        progress._last = float("inf") if options.get("rarely") else 0.0
        loop.run(ShuffledExecutor(0))
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def lowered(told, to):
    """Return a loop that was stopped with results told, its budget then set below them."""
    loop = make_loop(evaluations=told + 20, look_ahead=5)
    loop.on_change = lambda loop: setattr(loop, "stop_requested", loop.n_told >= told)
    loop.run(ShuffledExecutor(0))
    loop.stop_requested = False
    plan = loop.plan
    loop.plan = LoopPlan(plan.seed, to, plan.look_ahead, plan.tell_order, tasks=plan.tasks)
    assert loop.waiting
    return loop


def test_a_budget_below_what_is_done_gives_one_last_line_and_no_negative_time(capsys):
    lines = reported(capsys, lowered(20, 10), rarely=True)
    assert len(lines) == 1
    assert lines[0]["running"] == 0
    assert lines[0]["eta_s"] is None or lines[0]["eta_s"] >= 0
    assert "ETA -" not in describe(lines[0])


def test_the_last_line_comes_once_and_has_everything(capsys):
    lines = reported(capsys, make_loop(evaluations=12), rarely=True)
    assert [line["done"] for line in lines] == [12]


def test_the_best_values_are_those_of_everything_scored():
    loop = make_loop(evaluations=12)
    assert Progress(loop, "r", as_json=True).facts()["best"] == {}
    loop.run(ShuffledExecutor(0))
    values = loop.population.objectives()
    best = Progress(loop, "r", as_json=True).facts()["best"]
    assert [best[name] for name in ("a", "b")] == values.max(axis=0).tolist()


class Gone:
    """A terminal that was closed."""

    @staticmethod
    def isatty():
        return False

    @staticmethod
    def fileno():
        raise OSError(9, "Bad file descriptor")

    @staticmethod
    def flush():
        pass

    @staticmethod
    def write(_):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_log_nobody_reads_does_not_stop_a_search(monkeypatch):
    loop = make_loop(evaluations=12)
    monkeypatch.setattr("sys.stderr", Gone())
    with Progress(loop, "r", as_json=False):
        assert loop.run(ShuffledExecutor(0)) == "budget"


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), SystemExit(1)])
def test_a_terminal_that_is_gone_is_no_longer_drawn_on(error):
    class Live:
        def update(self, *_, **__):
            raise error

        stop = update

    loop = make_loop(evaluations=12)
    with Progress(loop, "r", as_json=False) as progress:
        progress._live = Live()
        assert loop.run(ShuffledExecutor(0)) == "budget"
        assert progress._live is None
