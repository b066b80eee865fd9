"""RayPool on real Ray processes.

Actors import `tests.cluster.scorers` because the pool sends the driver's `sys.path` along.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from evomerge.errors import ExecutorError
from evomerge.runtime.ray_cluster import Cluster
from evomerge.runtime.ray_pool import RayPool
from evomerge.search.ports import Outcome
from tests.cluster import scorers
from tests.cluster.processes import finish, start_driver
from tests.cluster.scorers import DIES, ERRS, HANGS, NO_SERVER, RAISES, candidate

pytestmark = pytest.mark.cluster

MakePool = Callable[..., RayPool]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def make_pool(cluster: Cluster, notes: list[str], tmp_path: Path) -> Iterator[MakePool]:
    pools: list[RayPool] = []

    def make(factory=None, *, seconds=0.0, workers=2, timeout_seconds=60.0, max_attempts=3):
        pool = RayPool(
            factory or partial(scorers.fake, tmp_path, seconds),
            workers=workers,
            address=None,
            gpus_per_worker=0,
            cpus_per_worker=1,
            max_attempts=max_attempts,
            timeout_seconds=timeout_seconds,
            note=notes.append,
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


def collect(pool: RayPool, count: int, *, within: float = 60.0) -> dict[int, Outcome]:
    """Wait for `count` outcomes, no candidate twice, and for nothing to come after them."""
    found: dict[int, Outcome] = {}
    until = time.monotonic() + within
    while len(found) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} outcomes in {within} s"
        for outcome in pool.wait(0.5):
            assert outcome.evaluation.candidate.id not in found
            found[outcome.evaluation.candidate.id] = outcome
    assert pool.wait(0.2) == []
    return found


def begun(folder: Path) -> list[tuple[int, int, int]]:
    """Return (candidate, pid, seed) of every evaluation begun so far, in order."""
    try:
        lines = (folder / "begun").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [tuple(map(int, line.split())) for line in lines]


def wait_for(condition: Callable[[], bool], pool: RayPool, within: float = 30.0) -> None:
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until
        assert pool.wait(0.05) == []


def wait_for_end_of(pids: list[int], within: float = 15.0) -> None:
    until = time.monotonic() + within
    while any(map(psutil.pid_exists, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_fifty_candidates_come_back_once_each(make_pool: MakePool) -> None:
    pool = make_pool()
    candidates = [candidate(number) for number in range(50)]
    for each in candidates:
        pool.submit(each)
    found = collect(pool, 50)
    for each in candidates:
        outcome = found[each.id]
        assert outcome.evaluation.candidate is each
        np.testing.assert_array_equal(outcome.evaluation.scores["t"], np.full(4, each.id))
        assert outcome.evaluation.scores["t"].dtype == np.float32
        assert outcome.evaluation.weights_digest == "d"
        assert (outcome.attempt, outcome.seconds) == (1, 0.5)
    assert {outcome.worker for outcome in found.values()} <= {"ray-0", "ray-1"}


def test_a_scored_failure_is_a_result_and_is_not_tried_again(
    make_pool: MakePool, tmp_path: Path
) -> None:
    pool = make_pool()
    pool.submit(candidate(0, ERRS))
    outcome = collect(pool, 1)[0]
    assert outcome.evaluation.error == "bad recipe"
    assert outcome.detail == "because"
    assert len(begun(tmp_path)) == 1


def test_a_killed_worker_is_replaced_and_its_candidate_scored_again(
    make_pool: MakePool, notes: list[str], tmp_path: Path
) -> None:
    pool = make_pool(seconds=0.05)
    pool.submit(candidate(0, 1.0))
    wait_for(lambda: bool(begun(tmp_path)), pool)
    for number in range(1, 20):
        pool.submit(candidate(number))
    os.kill(begun(tmp_path)[0][1], signal.SIGKILL)
    found = collect(pool, 20)
    assert all(outcome.evaluation.error is None for outcome in found.values())
    assert found[0].attempt == 2
    assert all(found[number].attempt == 1 for number in range(1, 20))
    assert {seed for number, _, seed in begun(tmp_path) if number == 0} == {1000}
    assert any("candidate 0: attempt 1 lost" in note and "worker died" in note for note in notes)


def test_a_worker_that_died_while_idle_costs_no_attempt(
    make_pool: MakePool, tmp_path: Path
) -> None:
    pool = make_pool(workers=1)
    pool.submit(candidate(0))
    collect(pool, 1)
    os.kill(begun(tmp_path)[0][1], signal.SIGKILL)
    time.sleep(2.0)  # until Ray has told this process
    pool.submit(candidate(1))
    assert collect(pool, 1)[1].attempt == 1


def test_an_exception_that_escapes_the_scorer_fails_the_candidate_only(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    pool.submit(candidate(0, RAISES))
    pool.submit(candidate(1))
    found = collect(pool, 2)
    error = found[0].evaluation.error
    assert error == "no result after 3 attempts: Unpicklable: out of luck"
    assert "Traceback" in found[0].detail
    assert found[1].evaluation.error is None


def test_a_hanging_candidate_is_ended_at_its_deadline(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(timeout_seconds=2.0, max_attempts=2)
    pool.submit(candidate(0, HANGS))
    for number in range(1, 5):
        pool.submit(candidate(number))
    found = collect(pool, 5)
    assert found[0].evaluation.error == "no result after 2 attempts: deadline of 2 s passed"
    assert all(found[number].evaluation.error is None for number in range(1, 5))
    hung = [pid for number, pid, _ in begun(tmp_path) if number == 0]
    assert len(set(hung)) == 2
    wait_for_end_of(hung)


def test_a_candidate_that_kills_its_workers_is_given_up_and_the_pool_goes_on(
    make_pool: MakePool, tmp_path: Path
) -> None:
    pool = make_pool()
    pool.submit(candidate(0, DIES))
    for number in range(1, 10):
        pool.submit(candidate(number))
    found = collect(pool, 10)
    assert found[0].evaluation.error == "no result after 3 attempts: worker died"
    assert found[0].attempt == 3
    assert all(found[number].evaluation.error is None for number in range(1, 10))
    pool.submit(candidate(10))
    pool.submit(candidate(11))
    assert len(collect(pool, 2)) == 2
    assert sum(number == 0 for number, _, _ in begun(tmp_path)) == 3


def test_a_server_that_is_gone_ends_the_wait_and_fails_no_candidate(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.submit(candidate(0, NO_SERVER))
    with pytest.raises(ExecutorError, match="server http://x cannot be reached; resume the run"):
        collect(pool, 1)


def test_every_worker_looks_at_its_canary_when_the_search_ends(
    make_pool: MakePool, tmp_path: Path, notes: list[str]
) -> None:
    pool = make_pool(workers=1)
    pool.last_look()  # none is ready
    pool.submit(candidate(0))
    collect(pool, 1)
    pool.last_look()
    assert notes == []
    (tmp_path / "canary").touch()
    with pytest.raises(ExecutorError, match="canary: died"):
        pool.last_look()


def test_a_factory_that_refuses_everywhere_ends_the_wait(make_pool: MakePool) -> None:
    pool = make_pool(scorers.refuse)
    pool.submit(candidate(0))
    with pytest.raises(ExecutorError, match=r"no worker could be built: the donor has no config"):
        collect(pool, 1)


def test_a_factory_that_dies_everywhere_ends_the_wait(make_pool: MakePool) -> None:
    pool = make_pool(scorers.die, workers=1)
    pool.submit(candidate(0))
    with pytest.raises(ExecutorError, match=r"no worker could be built: the process died"):
        collect(pool, 1)


def test_a_worker_that_is_built_at_the_third_try_is_used(
    make_pool: MakePool, tmp_path: Path, notes: list[str]
) -> None:
    pool = make_pool(partial(scorers.die_or_refuse_once, tmp_path), workers=2)
    pool.submit(candidate(0))
    assert collect(pool, 1)[0].attempt == 1
    assert any("not built" in note for note in notes)


def test_a_factory_that_cannot_be_sent_is_refused(make_pool: MakePool) -> None:
    with pytest.raises(ExecutorError, match="cannot be sent"):
        make_pool(lambda name: None)


def test_withdraw_takes_back_what_no_worker_has_begun(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(workers=1)
    for number in range(6):
        pool.submit(candidate(number, 1.0))
    wait_for(lambda: bool(begun(tmp_path)), pool)
    assert pool.withdraw() == [1, 2, 3, 4, 5]
    assert set(collect(pool, 1)) == {0}
    assert [number for number, _, _ in begun(tmp_path)] == [0]
    pool.submit(candidate(3))
    assert set(collect(pool, 1)) == {3}


def test_a_candidate_under_way_is_not_taken_twice(make_pool: MakePool, notes: list[str]) -> None:
    pool = make_pool()
    pool.submit(candidate(0))
    pool.submit(candidate(0))
    collect(pool, 1)
    assert notes == ["candidate 0: submitted while under way; ignored"]


def test_close_ends_the_workers_and_another_pool_can_follow(
    make_pool: MakePool, tmp_path: Path
) -> None:
    for round_number in range(2):
        pool = make_pool(workers=1)
        pool.submit(candidate(round_number))
        collect(pool, 1)
        pool.close()
        pool.close()
    pids = [pid for _, pid, _ in begun(tmp_path)]
    assert len(set(pids)) == 2
    wait_for_end_of(pids)


def test_large_scores_do_not_stay_in_the_object_store(make_pool: MakePool) -> None:
    pool = make_pool(scorers.ManyScores, workers=1)
    for number in range(150):  # 120 MB in all; the object store holds 100
        pool.submit(candidate(number))
    found = collect(pool, 150)
    for number, outcome in found.items():
        scores = outcome.evaluation.scores["t"]
        assert scores.flags.owndata
        assert scores.flags.writeable
        assert float(scores.sum()) == number * scorers.ManyScores.n


def test_a_private_cluster_listens_on_loopback_only(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    pool.submit(candidate(0))
    collect(pool, 1)
    me = psutil.Process()
    listening = {
        connection.laddr
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) > 3  # gcs, raylet, workers
    for address in listening:  # (Ray listens on ::ffff:127.0.0.1)
        assert ipaddress.ip_address(address.ip.removeprefix("::ffff:")).is_loopback


def test_a_private_cluster_has_a_private_folder_and_token(cluster: Cluster) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    assert os.environ["RAY_AUTH_MODE"] == "token"
    import ray

    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert token.parent in session.parents


def test_a_worker_without_gpu_sees_none(make_pool: MakePool) -> None:
    pool = make_pool(scorers.Environment, workers=1)
    pool.submit(candidate(0))
    told = collect(pool, 1)[0].evaluation
    assert told.error == "CUDA_VISIBLE_DEVICES=''"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_lets_running_evaluations_finish(
    number: signal.Signals, tmp_path: Path
) -> None:
    driver = start_driver("tests.cluster.drivers", "signalled", tmp_path)
    until = time.monotonic() + 60
    while len(begun(tmp_path)) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    if number == signal.SIGINT:  # Ctrl-C reaches every process of the group
        os.killpg(driver.pid, number)
        time.sleep(0.2)
        os.killpg(driver.pid, number)
    else:  # `kill` reaches one
        driver.send_signal(number)
    lines = finish(driver)
    assert "draining 2" in lines
    assert f"signals [{number.value}]" in lines
    outcomes = sorted(line for line in lines if line.startswith("outcome"))
    assert outcomes == ["outcome 0 1 None", "outcome 1 1 None"]
    assert not any(line.startswith("note") for line in lines)


@pytest.mark.slow
def test_the_breakdown_of_a_private_cluster_is_an_error(tmp_path: Path) -> None:
    lines = finish(start_driver("tests.cluster.drivers", "breakdown", tmp_path))
    assert "the private Ray cluster broke down: its raylet ended" in lines[-1]


@pytest.mark.slow
def test_two_searches_on_one_machine_have_a_cluster_each(tmp_path: Path) -> None:
    drivers = [start_driver("tests.cluster.drivers", "two_at_once", tmp_path) for _ in range(2)]
    for driver in drivers:
        lines = finish(driver)
        assert len(lines) > 1
        assert all(line.endswith(" 1 None") for line in lines)
    assert len(list(tmp_path.glob("*/begun"))) == 2


@pytest.mark.slow
def test_the_death_of_a_node_loses_no_candidate(tmp_path: Path) -> None:
    lines = finish(start_driver("tests.cluster.drivers", "node_death", tmp_path), within=200)
    outcomes = [line.split() for line in lines if line.startswith("outcome")]
    assert sorted(int(line[1]) for line in outcomes) == list(range(60))
    assert all(line[3] == "None" for line in outcomes)
    assert sum(line[2] == "2" for line in outcomes) == 1
    assert "killed a node" in lines
    assert "processes 3" in lines  # a worker on the node that joined later
    assert any("other users can read the Ray token" in line for line in lines)
