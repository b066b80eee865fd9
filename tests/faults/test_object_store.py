"""Searches whose run is in a real S3 server: the same journal, whatever happens on the way."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time

import pytest

pytest.importorskip("obstore")
pytest.importorskip("moto")

from evomerge.api import Run, search
from evomerge.errors import RunLockedError
from evomerge.storage import object_store, remote_lease
from evomerge.storage.object_store import ObjectStore, open_object_store
from evomerge.storage.segments import read_segment
from tests.cli.command import assert_one_line, command
from tests.e2e.tiny_run import start
from tests.faults.test_run_faults import FAULTY
from tests.storage.s3_server import BUCKET, running_s3

EVALUATIONS = 12
COMPARED = ("journal.jsonl", "scores.f32", "front.json")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_s3(tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def machine(server, monkeypatch, tmp_path):
    """Be the machine of that name: its working folders, and no others."""

    def be(name):
        for key, value in (server.env | {"EVOMERGE_RUNS": str(tmp_path / name)}).items():
            monkeypatch.setenv(key, value)
        return tmp_path / name

    be("one")
    return be


@pytest.fixture
def url(request, machine):
    return f"s3://{BUCKET}/pop/{request.node.name.replace('[', '-').rstrip(']')}"


@pytest.fixture(scope="module")
def config(tiny_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("object-store")
    (folder / "s3_scorer.py").write_text(FAULTY)
    task = tiny_models.task("t", 0.1)
    task["evaluator"] |= {
        "function": "s3_scorer:calls_for_trouble",
        "path": str(folder),
        "n": 8,
        "arguments": {"n": 8},
    }
    return tiny_models.write(
        folder / "c.yaml",
        merge={"name": "linear", "normalize": False},
        algorithm={"name": "m2n2", "population_size": 4},
        tasks=[task],
        budget={"evaluations": EVALUATIONS},
    )


@pytest.fixture(scope="module")
def whole(config):
    """The three files of a search in an ordinary folder."""
    return _alone(config, config.parent / "whole")


@pytest.fixture
def evomerge(capsys, whole):
    scorer = sys.modules["s3_scorer"]  # imported by the search that was left alone

    def run(*arguments, events=None):
        scorer.EVENTS.clear()
        scorer.EVENTS.update(events or {})
        return command(capsys, *arguments)

    return run


def in_store(url):
    """Return the three files as they are in the bucket."""
    store = open_object_store(url)
    names = sorted(name for name in store.names() if name.startswith("segments/"))
    parts = [read_segment(store.get(name).data) for name in names]
    journal = b"".join(part.journal for part in parts)
    scores = b"".join(part.scores for part in parts)
    front = store.get("front.json")
    return dict(zip(COMPARED, (journal, scores, front and front.data), strict=True))


def test_a_search_at_a_url_is_the_search_in_a_folder(config, whole, evomerge, machine, url):
    done = evomerge("search", config, "--run", url)
    assert done.code == 0, done.err
    assert url in done.out
    assert in_store(url) == whole
    shutil.rmtree(machine("two"), ignore_errors=True)
    shown = evomerge("status", url, "--json")
    assert '"done": 12' in shown.out
    assert '"state": "done"' in shown.out
    assert f'"run": "{url}"' in shown.out
    for arguments in (
        ("front", url),
        ("compare", url, config.parent / "whole"),
        ("gc", url),
        ("replay", url, "--candidate", "1"),
        ("export", url, "--out", machine("two") / "out", "--verify"),
    ):
        done = evomerge(*arguments)
        assert done.code == 0, done.err
    assert in_store(url) == whole
    more = evomerge("resume", url, "--evaluations", "14")
    assert more.code == 0, more.err
    assert in_store(url)["journal.jsonl"].startswith(whole["journal.jsonl"])
    secrets = b"".join(path.read_bytes() for path in machine("two").rglob("*") if path.is_file())
    assert b"not-a-secret" not in secrets


def test_the_python_api_takes_a_url(config, whole, machine, url):
    assert search(config, run=url).status()["run"] == url
    machine("two")
    run = Run.open(url)
    assert repr(run) == f"Run({url!r})"
    assert run.resume(13).status()["done"] == 13
    assert in_store(url)["journal.jsonl"].startswith(whole["journal.jsonl"])


def test_a_store_that_hangs_stops_the_search_and_a_resume_ends_the_same(
    config, whole, evomerge, machine, url, server, monkeypatch
):
    monkeypatch.setattr(object_store, "REQUEST_SECONDS", 1.0)
    monkeypatch.setattr(object_store, "RETRY_SECONDS", 1.0)

    def pause_after_two_results():  # which reach the store within 50 ms, on a quiet machine
        until = time.monotonic() + 20
        while _told(open_object_store(url)) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        server.pause()

    done = evomerge(
        "search", config, "--run", url,
        events={6: pause_after_two_results, 7: lambda: time.sleep(3), 8: lambda: time.sleep(3)},
    )  # fmt: skip
    server.go_on()
    assert_one_line(done, 3, (url, "cannot be written", "resume"), "RunError")
    there = in_store(url)["journal.jsonl"]
    assert whole["journal.jsonl"].startswith(there)
    assert 2 <= there.count(b'"kind":"told"') < EVALUATIONS
    monkeypatch.setattr(object_store, "REQUEST_SECONDS", 20.0)
    monkeypatch.setattr(remote_lease, "LEASE_SECONDS", 0.0)
    machine("two")  # the first one's disk is gone
    done = evomerge("resume", url)
    assert done.code == 0, done.err
    assert in_store(url) == whole


def test_a_damaged_run_is_repaired_from_the_bucket(config, whole, evomerge, machine, url, tmp_path):
    assert evomerge("search", config, "--run", url).code == 0
    store = open_object_store(url)
    names = sorted(name for name in store.names() if name.startswith("segments/"))
    bad = next(n for n in names if b'"id":5,"kind":"told"' in store.get(n).data)
    data = store.get(bad).data
    spot = data.index(b'"id":5,"kind":"told"') + 5
    store.put(bad, data[:spot] + b"7" + data[spot + 1 :])
    machine("two")
    for verb in ("status", "resume"):
        refused = evomerge(verb, url)
        assert_one_line(refused, 3, (f"{url}/{bad}", "altered", "evomerge repair"), "JournalError")
    done = evomerge("repair", url, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    assert "5 results kept" in done.out
    done = evomerge("resume", tmp_path / "new")
    assert done.code == 0, done.err
    assert {name: (tmp_path / "new" / name).read_bytes() for name in COMPARED} == whole


def test_a_run_that_is_not_there_and_urls_that_cannot_be_are_refused(evomerge, machine):
    missing = f"s3://{BUCKET}/pop/none"
    for verb in ("resume", "status"):
        says = (f"{missing}: there is no such run", "Check bucket and name", "search CONFIG --run")
        assert_one_line(evomerge(verb, missing), 3, says)
    assert_one_line(evomerge("status", "s3://a:b@c/d"), 2, ("credentials belong in",))
    assert_one_line(
        evomerge("status", "s3://no-such-bucket/d"), 3, ("s3://no-such-bucket/d: ", "Check the URL")
    )


def test_credentials_may_be_where_boto3_finds_them(machine, server, monkeypatch, tmp_path, url):
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    keys = "[default]\naws_access_key_id = tester\naws_secret_access_key = not-a-secret\n"
    (tmp_path / "credentials").write_text(keys)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    store = open_object_store(url)
    assert store.create("x", b"1") is not None
    assert store.get("x").data == b"1"


# --------------------------------------------------------------- real drivers, killed


def _slow_config(tiny_models, path, evaluations, pause):
    return tiny_models.write(
        path,
        merge={"name": "linear", "normalize": False},
        algorithm={"name": "m2n2", "population_size": 6},
        tasks=[tiny_models.task("up", 0.1, pause=pause), tiny_models.task("down", -0.1)],
        budget={"evaluations": evaluations},
    )


def _told(store: ObjectStore) -> int:
    names = (name for name in store.names() if name.startswith("segments/"))
    return sum(store.get(name).data.count(b'"kind":"told"') for name in names)


def _wait_for_results(process, store, n, seconds=120):
    deadline = time.monotonic() + seconds
    while process.poll() is None and _told(store) < n:
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def _alone(config, folder):
    """Return the three files of the search in a folder, left alone."""
    run = search(config, run=folder)
    return {name: (run.path / name).read_bytes() for name in COMPARED}


@pytest.mark.slow
def test_another_machine_takes_over_from_a_hung_driver_which_then_writes_nothing(
    tiny_models, tmp_path, server, machine, url, monkeypatch
):
    config = _slow_config(tiny_models, tmp_path / "c.yaml", 40, 0.1)
    whole = _alone(config, tmp_path / "whole")
    store = open_object_store(url)
    process = start(
        "search", config, "--run", url, log=tmp_path / "log",
        env=server.env | {"EVOMERGE_RUNS": str(tmp_path / "one")},
    )  # fmt: skip
    try:
        _wait_for_results(process, store, 8)
        machine("two")
        with pytest.raises(RunLockedError, match="is running this search"):
            Run.open(url).resume()
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(remote_lease, "LEASE_SECONDS", 0.0)  # as if it had been over for long
        Run.open(url).resume()
        assert in_store(url) == whole
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 3
        assert "has taken this run over" in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
    assert in_store(url) == whole


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_each_of_which_loses_the_machine(tiny_models, tmp_path, server, machine, url):
    config = _slow_config(
        tiny_models, tmp_path / "c.yaml", 300, 0.01
    )  # a kill comes up to 25 later
    whole = _alone(config, tmp_path / "whole")
    store = open_object_store(url)
    rng = random.Random(0)
    for kill in range(10):
        home = tmp_path / f"machine-{kill}"
        process = start(
            "search", config, "--run", url, log=tmp_path / "log",
            env=server.env | {"EVOMERGE_RUNS": str(home)},
        )  # fmt: skip
        _wait_for_results(process, store, _told(store) + rng.randint(1, 6))
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(home)
        store.delete("lease.json")  # rather than to wait for its end
    Run.open(url).resume()
    assert in_store(url) == whole
