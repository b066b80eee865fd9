"""An offline run of Weights & Biases, read back from its own file."""

import json
import struct
import time

import pytest

from evomerge.config.results import RunResults
from evomerge.trackers.wandb_tracker import WandbTracker

pytest.importorskip("wandb", reason="wandb is not installed")

KEY = "f0e1d2c3b4" * 4  # the form of a key; of no account


@pytest.fixture(autouse=True)
def _account(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def chunks(path):
    """Yield the records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def records(folder):
    """Return the records of all W&B files below a folder, the earlier session first."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for _ in range(300):  # W&B's own process may still be writing when `finish` returns
            own = [Record.FromString(chunk) for chunk in chunks(path)]
            if any(record.HasField("exit") for record in own):
                break
            time.sleep(0.1)
        found += own
    return found


def rows(folder) -> list[dict]:
    """Return the logged rows: chart -> value."""
    found = []
    for record in records(folder):
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
            found.append(row)
    return found


def test_an_offline_run_has_every_result_config_and_front(run, send):
    assert send(run, WandbTracker(project="merges", mode="offline")) == 30
    place = run.path / "trackers" / "wandb"
    logged = rows(place)
    results = RunResults(run)
    assert [row["told"] for row in logged] == list(range(1, 31))
    assert [row["_step"] for row in logged] == list(range(1, 31))
    for row, event in zip(logged, results.told, strict=True):
        assert row["candidate"] == event["id"]
        if "objectives" in event:
            assert [row["objective/maths"], row["objective/chat"]] == event["objectives"]
    assert logged[-1]["search/hypervolume"] == pytest.approx(results.hypervolume())
    (begun,) = [record.run for record in records(place) if record.HasField("run")]
    assert (begun.project, begun.display_name) == ("merges", "digits")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["algorithm"]["name"] == "nsga2"
    (table,) = place.rglob("front_summary_*.table.json")
    front = [row["candidate"] for row in results.front_members()]
    assert [row[0] for row in json.loads(table.read_text())["data"]] == front


def test_a_resume_goes_on_in_the_same_run(run, send, grow):
    tracker = lambda: WandbTracker(mode="offline")  # noqa: E731
    send(run, tracker())
    grow(run, range(30, 33))
    assert send(run, tracker()) == 3
    place = run.path / "trackers" / "wandb"
    assert [row["_step"] for row in rows(place)] == list(range(1, 34))
    ids = {record.run.run_id for record in records(place) if record.HasField("run")}
    assert len(ids) == 1


def test_the_api_key_is_nowhere_in_the_run_folder(run, send):
    tracker = WandbTracker(mode="offline")
    send(run, tracker)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in tracker.where()


def test_another_project_gets_everything(run, send):
    assert send(run, WandbTracker(project="one", mode="offline")) == 30
    assert send(run, WandbTracker(project="two", mode="offline")) == 30
    assert send(run, WandbTracker(project="two", mode="offline")) == 0
