"""Runs in an object store: obstore's own, in memory, with two working folders as two machines."""

import json
import time
from contextlib import suppress

import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.recipe import Recipe
from evomerge.errors import JournalError, RunError, RunLockedError
from evomerge.storage import mirror, remote_lease
from evomerge.storage.object_store import ObjectStore
from evomerge.storage.remote_run import RemoteRun
from evomerge.storage.run_store import RunFolder, RunStore
from evomerge.storage.salvage import salvage
from evomerge.storage.segments import read_segment, segment_name
from evomerge.storage.working_folder import Position

TASKS = {"a": 3, "b": 2}
HEADER = {"kind": "header", "format": 2, "tasks": TASKS, "margins": True}
FILES = {"config.yaml": b"{}", "sources.json": b"[]", "derived.npz": b"\0\1"}
URL = "s3://bucket/pop/run"


@pytest.fixture
def objects():
    return ObjectStore(URL, MemoryStore())


@pytest.fixture
def machine(objects, tmp_path):
    """Return the run as a machine of that name sees it."""

    def at(name):
        remote = RemoteRun(objects, tmp_path / name)
        remote.pull()
        return RunFolder(remote.path, remote)

    return at


@pytest.fixture
def run(machine):
    folder = machine("one")
    folder.create(FILES)
    return folder


def opened(folder):
    return RunStore(folder, header=HEADER, tasks=TASKS)


def tell(store, number):
    margins = np.full(5, number - 2.5, np.float32)
    row, digest = store.append_scores(np.full(5, number / 8, np.float32), margins)
    store.append(
        {
            "kind": "told",
            "id": number,
            "row": row,
            "scores": digest,
            "weights": "w",
            "objectives": [1.0],
        }
    )


def wait_for(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def die(store):
    """Stop a driver as kill -9 does: its threads end, nothing is flushed or given back."""
    store.lease._stop.set()
    for thread in store.lease._threads:
        thread.join()
    store.lease._local.release()
    store.journal._closed.set()
    store.journal._dirty.set()
    store._log.close()


def bytes_of(folder):
    return folder.journal.read_bytes(), folder.scores.read_bytes()


def in_store(objects):
    """Return journal and scores as the segments have them."""
    names = sorted(name for name in objects.names() if name.startswith("segments/"))
    parts = [read_segment(objects.get(name).data) for name in names]
    return b"".join(p.journal for p in parts), b"".join(p.scores for p in parts)


def test_a_second_machine_finds_what_the_first_one_closed(run, machine, objects):
    store = opened(run)
    for number in range(5):
        tell(store, number)
    store.append({"kind": "told", "id": 5, "error": "no"})
    store.publish(lambda: [{"candidate": 1}], force=True)
    store.close()
    other = machine("two")
    assert other.path != run.path
    assert bytes_of(other) == bytes_of(run) == in_store(objects)
    assert other.front.read_bytes() == run.front.read_bytes()
    assert other.derived.read_bytes() == b"\0\1"
    store = opened(other)
    assert len(store.journal.events) == 7
    tell(store, 6)
    store.close()
    run.refresh()
    assert bytes_of(run) == bytes_of(other) == in_store(objects)


def test_results_are_in_the_store_while_the_driver_lives(run, machine, objects):
    store = opened(run)
    for number in range(3):
        tell(store, number)
    scores = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}
    recipe = Recipe("linear", ("x", "y"), {"weights": np.array([[0.25, 1.0]])})
    store.park(Evaluation(Candidate(9, recipe), scores, None, "w"))
    wait_for(lambda: in_store(objects) == bytes_of(run))
    wait_for(lambda: "arrived/00000009.json" in objects.names())
    die(store)
    other = machine("two")
    assert bytes_of(other) == bytes_of(run)
    assert (other.arrived / "00000009.json").exists()
    assert other.is_driven(), "nobody has said that the first one is dead"
    with pytest.raises(RunLockedError, match="is running this search"):
        opened(other)


def test_a_dead_driver_is_replaced_at_once_where_it_died_and_elsewhere_after_a_while(
    run, machine, monkeypatch
):
    store = opened(run)
    die(store)
    assert not run.is_driven()
    opened(run).close()
    die(opened(run))
    other = machine("two")
    with pytest.raises(RunLockedError):
        opened(other)
    monkeypatch.setattr(remote_lease, "LEASE_SECONDS", -1.0)
    opened(other).close()


def test_a_driver_that_was_taken_over_stops_and_writes_nothing(run, machine, objects, monkeypatch):
    monkeypatch.setattr(mirror, "MAX_LAG_SECONDS", 0.0)
    stale = opened(run)
    tell(stale, 0)
    stale.lease.check()
    monkeypatch.setattr(remote_lease, "LEASE_SECONDS", -1.0)
    other = machine("two")
    fresh = opened(other)
    tell(fresh, 1)

    def go_on():
        for number in range(100):
            tell(stale, number)
            time.sleep(0.02)

    with pytest.raises(RunLockedError, match="taken this run over"):
        go_on()
    stale.close()
    tell(fresh, 2)
    fresh.close()
    assert in_store(objects) == bytes_of(other)
    # What the stale one wrote beside the truth is kept, out of the way.
    lost = bytes_of(run)
    again = machine("one")
    assert bytes_of(again) == bytes_of(other)
    aside = next(again.path.parent.glob("aside-*"))
    assert (aside / "journal.jsonl").read_bytes() == lost[0]


def test_a_driver_that_was_taken_over_cannot_replace_the_other_files(
    run, machine, objects, monkeypatch
):
    stale = opened(run)
    stale.publish(lambda: [{"candidate": 0}], force=True)
    wait_for(lambda: "front.json" in objects.names())
    die(stale)
    monkeypatch.setattr(remote_lease, "LEASE_SECONDS", -1.0)
    fresh = opened(machine("two"))
    fresh.publish(lambda: [{"candidate": 1}], force=True)
    fresh.close()
    kept = objects.get("front.json").data
    run.front.write_bytes(b"[]")
    (run.path / "surrogate.json").write_bytes(b"{}")
    with pytest.raises(RunLockedError, match="taken this run over"):
        stale.lease._put_files(all_of_them=True)
    assert objects.get("front.json").data == kept
    assert objects.get("surrogate.json") is None


def test_results_that_never_reached_the_store_are_sent_by_the_next_driver_here(
    run, machine, objects
):
    store = opened(run)
    tell(store, 0)
    wait_for(lambda: in_store(objects) == bytes_of(run))
    die(store)
    store.lease.check = lambda: None
    tell(store, 1)  # on this disk only
    assert in_store(objects) != bytes_of(run)
    kept = bytes_of(run)
    opened(run).close()
    assert bytes_of(run) == kept == in_store(objects)


def test_a_torn_line_of_a_killed_driver_does_not_set_the_folder_aside(run, objects):
    store = opened(run)
    tell(store, 0)
    wait_for(lambda: in_store(objects) == bytes_of(run))
    die(store)
    whole = run.journal.read_bytes()
    run.journal.write_bytes(whole + b'{"chain":"12')
    opened(run).close()
    assert run.journal.read_bytes() == whole
    assert not list(run.path.parent.glob("aside-*"))


@pytest.mark.parametrize("how", ["flipped", "torn", "missing", "swapped", "head"])
def test_a_damaged_segment_is_named_and_the_rest_can_be_saved(how, run, machine, objects):
    for number in range(4):
        store = opened(run)
        tell(store, number)
        store.close()
    names = sorted(name for name in objects.names() if name.startswith("segments/"))
    holding = [name for name in names if read_segment(objects.get(name).data).scores]
    bad = holding[1]
    data = objects.get(bad).data
    if how == "flipped":
        objects.put(bad, data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    elif how == "torn":
        objects.put(bad, data[:-7])
    elif how == "missing":
        objects.delete(bad)
    elif how == "swapped":
        objects.put(bad, objects.get(holding[2]).data)
    else:
        objects.put(bad, data.replace(b'"driver":"', b'"driver":"0'))
    with pytest.raises(JournalError, match=f"{URL}/{bad}: .*evomerge repair {URL} --out NEW"):
        machine("two")
    remote = RemoteRun(objects, run.path.parent.parent)
    found = salvage(RunFolder(remote.rescue(), remote))
    # Lines and rows of the fourth are whole; of the others nothing was asked that could wait.
    kept, lost = {"head": (4, 0), "missing": (1, 2)}.get(how, (1, 3))
    assert (found.kept, found.lost, bool(found.damage)) == (kept, lost, how != "head")
    with pytest.raises(JournalError, match=bad):
        run.refresh() if how == "missing" else machine("three")


def test_last_segments_that_the_store_lost_are_sent_again_from_a_working_folder(run, objects):
    store = opened(run)
    tell(store, 0)
    wait_for(lambda: in_store(objects) == bytes_of(run))
    tell(store, 1)
    store.close()
    objects.delete(max(name for name in objects.names() if name.startswith("segments/")))
    assert in_store(objects) != bytes_of(run)
    kept = bytes_of(run)
    run.refresh()
    opened(run).close()
    assert bytes_of(run) == kept == in_store(objects)


def test_a_write_whose_answer_was_lost_counts_once(objects):
    class Twice:
        """Sends each request again, as a client does that heard nothing."""

        def __getattr__(self, name):
            return getattr(obstore, name)

        def put(self, *arguments, **options):
            obstore.put(*arguments, **options)
            return obstore.put(*arguments, **options)

    objects._api = Twice()
    version = objects.create("x", b"mine")
    assert version is not None
    version = objects.replace("x", b"mine too", version)
    assert version is not None
    assert objects.create("x", b"of another") is None
    assert objects.replace("x", b"y", {**version, "e_tag": "old"}) is None
    assert objects.get("x").data == b"mine too"


def test_create_refuses_a_url_with_a_run_and_one_that_is_being_created(run, machine, objects):
    with pytest.raises(RunError, match="exists"):
        machine("two").create(FILES)
    empty = ObjectStore("s3://bucket/other", MemoryStore())
    remote_lease.RemoteLease(empty, "elsewhere")
    remote = RemoteRun(empty, run.path.parent.parent)
    with pytest.raises(RunLockedError):
        RunFolder(remote.path, remote).create(FILES)


def test_a_run_that_was_deleted_and_begun_anew_replaces_the_old_copy(run, machine, objects):
    store = opened(run)
    tell(store, 0)
    store.close()
    old = bytes_of(run)
    for name in objects.names():
        objects.delete(name)
    run.refresh()
    assert not run.exists()
    machine("two").create(FILES)
    store = opened(machine("two"))
    tell(store, 3)
    store.close()
    run.refresh()
    assert bytes_of(run) == bytes_of(machine("two")) != old
    aside = next(run.path.parent.glob("aside-*"))
    assert ((aside / "journal.jsonl").read_bytes(), (aside / "scores.f32").read_bytes()) == old


def test_looking_at_a_run_changes_nothing_in_the_store_nor_under_a_driver(run, machine, objects):
    store = opened(run)
    tell(store, 0)
    wait_for(lambda: in_store(objects) == bytes_of(run))
    before = objects.names()
    again = RemoteRun(objects, run.path.parents[1])
    again.pull()  # the driver's own folder: ahead of the store, left alone
    assert machine("two").is_driven()
    assert RunFolder(again.path, again).is_driven()
    changed = {name for name, version in objects.names().items() if before.get(name) != version}
    assert changed <= {"lease.json", "events.log"}, "only the driver writes"
    store.close()
    assert not machine("two").is_driven()


def test_files_with_names_that_lead_elsewhere_are_not_fetched(run, machine, objects):
    for name in ("..evil", "sub/evil", "arrived/evil.json", "lock", ".hidden", "exports"):
        objects.put(name, b"x")
    other = machine("two")
    found = {path.name for path in other.path.rglob("*")}
    assert found == {"config.yaml", "sources.json", "derived.npz", "arrived", "exports"}


def test_a_repaired_copy_can_be_put_at_a_url(run, machine, tmp_path):
    store = opened(run)
    tell(store, 0)
    store.close()
    saved = salvage(run)
    other = ObjectStore("s3://bucket/copy", MemoryStore())
    remote = RemoteRun(other, tmp_path / "three")
    folder = RunFolder(remote.path, remote)
    folder.create(saved.files)
    assert bytes_of(folder) == bytes_of(run)


def test_the_lease_says_who_holds_it(run, objects):
    store = opened(run)
    body = json.loads(objects.get("lease.json").data)
    assert {"host", "pid", "epoch", "driver"} <= set(body)
    store.close()
    assert json.loads(objects.get("lease.json").data)["released"]
    assert objects.get(segment_name(0)) is not None


def test_any_failure_of_the_copying_stops_the_driver(run, monkeypatch):
    store = opened(run)
    monkeypatch.setattr(mirror, "_has_row", lambda line: line + 1)  # of no kind that is foreseen
    store.journal.append({"kind": "told", "id": 0, "error": "no"})
    wait_for(lambda: not store.lease._threads[0].is_alive())
    with pytest.raises(RunError, match=r"cannot be copied to .*TypeError"):
        store.lease.check()
    store.close()


def test_a_cleared_working_folder_takes_nothing_out_of_the_store(run, objects):
    store = opened(run)
    die(store)
    for name in ("config.yaml", "sources.json"):
        (run.path / name).unlink()
    store.lease._put_files(all_of_them=True)
    assert FILES.keys() <= objects.names().keys()


def test_a_first_line_that_is_half_written_is_waited_for(run):
    store = opened(run)
    die(store)
    whole = run.journal.read_bytes()
    store.lease._position = Position()
    store.lease._width = 0
    run.journal.write_bytes(whole[:-9])
    store.lease._push()
    assert store.lease._position.segments == 0


def test_a_renewal_that_ended_in_an_error_may_have_been_carried_out(objects):
    lease = remote_lease.RemoteLease(objects, "here")
    before = lease._version
    lease.renew()
    lease._version = before  # the answer was lost
    lease.renew()
    assert objects.get("lease.json").version == lease._version
    objects.put("lease.json", b'{"driver": "another", "host": "far", "pid": 3}')
    with pytest.raises(RunLockedError, match="process 3 on far has taken this run over"):
        lease.renew()


def test_replacing_what_is_gone_writes_nothing(objects):
    class Gone:
        """Answers as S3 does, with 404."""

        def __getattr__(self, name):
            return getattr(obstore, name)

        def put(self, *arguments, **options):
            raise FileNotFoundError("404")

    objects._api = Gone()
    assert objects.replace("x", b"y", {"e_tag": "1"}) is None


def test_a_create_that_comes_too_late_leaves_the_driver_its_lease(run, objects):
    store = opened(run)
    tell(store, 0)
    lease = objects.get("lease.json").data
    with pytest.raises(RunError, match="exists; choose another URL"):
        RemoteRun(objects, run.path.parents[1]).create(FILES)
    assert objects.get("lease.json").data == lease
    store.close()


class Interrupted(ObjectStore):
    """Lets something happen before its nth request."""

    def __init__(self, store, n, happen):
        super().__init__(store.url, store._store)
        self.left, self.happen = n, happen

    def _count(self):
        self.left -= 1
        if self.left == 0:
            self.happen()

    def get(self, name):
        self._count()
        return super().get(name)

    def names(self, prefix=""):
        self._count()
        return super().names(prefix)

    def _put_if(self, name, data, mode):
        self._count()
        return super()._put_if(name, data, mode)


WHOLE = {**FILES, "journal.jsonl": b"{}\n", "scores.f32": b"12345678"}


def created(objects):
    """Return the first files as they are in the store."""
    found = {name: objects.get(name) for name in FILES}
    journal, scores = in_store(objects)
    return {name: item and item.data for name, item in found.items()} | {
        "journal.jsonl": journal, "scores.f32": scores,
    }  # fmt: skip


@pytest.mark.parametrize("n", range(1, 18))
def test_of_two_creators_one_wins_wherever_the_other_one_stalls(n, objects, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_lease, "LEASE_SECONDS", -1.0)  # as if it had stalled for long
    other = {name: b"other " + data for name, data in WHOLE.items()}
    won = []

    def create_another():
        with suppress(RunError):
            RemoteRun(objects, tmp_path / "two").create(other)
            won.append(other)

    with suppress(RunError):
        RemoteRun(Interrupted(objects, n, create_another), tmp_path / "one").create(WHOLE)
        won.append(WHOLE)
    assert len(won) == 1
    assert created(objects) == won[0]


@pytest.mark.parametrize("n", range(1, 18))
@pytest.mark.parametrize("files", [FILES, WHOLE])
def test_a_creation_that_was_cut_off_can_be_repeated(n, files, objects, tmp_path):
    def vanish():
        raise KeyboardInterrupt

    try:
        RemoteRun(Interrupted(objects, n, vanish), tmp_path / "one").create(files)
    except KeyboardInterrupt:
        objects.delete("lease.json")  # rather than to wait for its end
    remote = RemoteRun(objects, tmp_path / "two")
    if "config.yaml" in objects.names():
        remote.pull()
    else:
        remote.create(files)
    assert created(objects) == {"journal.jsonl": b"", "scores.f32": b"", **files}
    assert RunFolder(remote.path).exists()


def test_results_without_a_config_are_not_taken_for_a_creation_that_was_cut_off(objects, tmp_path):
    RemoteRun(objects, tmp_path).create(WHOLE)
    objects.delete("config.yaml")
    for files in (FILES, {**WHOLE, "journal.jsonl": b"{1}\n"}):
        with pytest.raises(RunError, match=r"holds a journal and no config\.yaml; restore"):
            RemoteRun(objects, tmp_path).create(files)
    first = objects.get(segment_name(0)).data
    objects.put(segment_name(1), first)
    with pytest.raises(RunError, match=r"holds a journal and no config\.yaml; restore"):
        RemoteRun(objects, tmp_path).create(WHOLE)


def test_a_file_that_only_a_creation_cut_off_had_is_refused(objects, tmp_path):
    """Its founders and scores would be the new run's."""
    objects.put("warm_start.json", b"[]")
    with pytest.raises(RunError, match=r"/warm_start\.json: was left by the creation of another"):
        RemoteRun(objects, tmp_path).create(FILES)
    assert "config.yaml" not in objects.names()
    objects.delete("warm_start.json")
    RemoteRun(objects, tmp_path).create(FILES)


@pytest.mark.parametrize("name", ["place", "copied.json", "pull.lock", "rescue", "aside-1"])
def test_any_name_of_a_run_may_be_used(name, tmp_path):
    remote = RemoteRun(ObjectStore(f"s3://bucket/{name}", MemoryStore()), tmp_path)
    folder = RunFolder(remote.path, remote)
    folder.create(FILES)
    store = opened(folder)
    tell(store, 0)
    store.close()
    again = RemoteRun(remote.store, tmp_path / "two")
    again.pull()
    assert bytes_of(RunFolder(again.path)) == bytes_of(folder)


def test_a_folder_that_cannot_be_written_is_named(run, objects):
    (run.path / "config.yaml").unlink()
    (run.path / "config.yaml").mkdir()
    with pytest.raises(RunError, match="Name another place in EVOMERGE_RUNS"):
        RemoteRun(objects, run.path.parents[1]).pull()
