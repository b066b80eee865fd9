import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from evomerge.errors import ConfigError, PreflightError
from evomerge.storage.derived_cache import DerivedCache, default_cache_root

PARTS = {"base": "a" * 32, "expert": "b" * 32, "version": 1}


def entry_of(root, kind="quantiles", budget=None, **parts):
    return DerivedCache(root, budget_bytes=budget).entry(kind, {**PARTS, **parts})


def tensors_of(n=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        "knots": torch.randn(n, generator=rng),
        "codes": torch.arange(n).to(torch.uint16).reshape(2, -1),
        "gram": torch.randn(3, 3, generator=rng, dtype=torch.float64),
        "scalar": torch.tensor(3, dtype=torch.int8),
        "empty": torch.empty((0, 4), dtype=torch.bfloat16),
    }


def assert_same(found, wanted):
    assert found is not None
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def files_of(root):
    return sorted(p for p in root.rglob("*.safetensors"))


def test_what_was_written_is_read_back_by_another_process_of_the_same_parts(tmp_path):
    wanted = tensors_of()
    entry_of(tmp_path).write("layers.0.weight", wanted)
    assert_same(entry_of(tmp_path).read("layers.0.weight"), wanted)
    assert entry_of(tmp_path).read("layers.1.weight") is None
    assert entry_of(tmp_path, version=2).read("layers.0.weight") is None
    assert entry_of(tmp_path, kind="codes").read("layers.0.weight") is None


def test_key_json_says_what_an_entry_is(tmp_path):
    entry = entry_of(tmp_path)
    entry.write("w", {"x": torch.zeros(1)})
    assert json.loads((entry.folder / "key.json").read_text()) == {"kind": "quantiles", **PARTS}
    assert entry.folder.parent == tmp_path / "quantiles"
    assert len(entry.folder.name) == 32


@pytest.mark.parametrize(
    "item", ["..", ".", "a/b", "../../x", "ü ñ\n%", "key.json", "x" * 5000, "\udc80", "%-", ""]
)
def test_any_name_is_an_item_inside_the_entry(tmp_path, item):
    entry = entry_of(tmp_path)
    entry.write(item, {"x": torch.tensor([1.0])})
    entry.write(item + "2", {"x": torch.tensor([2.0])})
    assert_same(entry.read(item), {"x": torch.tensor([1.0])})
    assert_same(entry.read(item + "2"), {"x": torch.tensor([2.0])})
    assert {path.parent for path in files_of(tmp_path)} == {entry.folder}


def test_views_of_one_storage_and_transposed_tensors_can_be_written(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    wanted = {"a": whole[0], "b": whole[1], "t": whole.t()}
    entry_of(tmp_path).write("w", wanted)
    assert_same(entry_of(tmp_path).read("w"), wanted)


def test_writing_again_replaces(tmp_path):
    entry = entry_of(tmp_path)
    entry.write("w", {"x": torch.zeros(4)})
    before = entry.read("w")
    entry.write("w", {"x": torch.ones(4)})
    assert_same(entry.read("w"), {"x": torch.ones(4)})
    assert_same(before, {"x": torch.zeros(4)})  # the old map stays whole


@pytest.mark.parametrize("n", [8, 1 << 20])
@pytest.mark.parametrize("damage", ["cut", "hole", "header", "empty", "tail", "grown"])
def test_a_damaged_file_is_absent_and_can_be_written_again(tmp_path, damage, n):
    entry, wanted = entry_of(tmp_path), tensors_of(n)
    entry.write("w", wanted)
    (path,) = files_of(tmp_path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if damage == "cut":
        data = data[: len(data) - 5]
    elif damage == "hole":
        data[middle : middle + (1 << 18)] = bytes(len(data[middle : middle + (1 << 18)]))
    elif damage == "header":
        data[20] ^= 1
    elif damage == "tail":
        data[-12] ^= 1
    elif damage == "grown":
        data += b"\0"
    else:
        data = bytearray()
    path.unlink()
    path.write_bytes(data)
    assert entry_of(tmp_path).read("w") is None
    entry_of(tmp_path).write("w", wanted)
    assert_same(entry_of(tmp_path).read("w"), wanted)


def test_readers_hold_no_file_open(tmp_path):
    entry = entry_of(tmp_path)
    for i in range(50):
        entry.write(f"w{i}", {"x": torch.full((4,), float(i))})
    before = len(os.listdir("/proc/self/fd"))
    kept = [entry.read(f"w{i}") for i in range(50)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert [int(found["x"][0]) for found in kept] == list(range(50))


_WRITE_FOR_EVER = """
import sys, torch
from pathlib import Path
from evomerge.storage.derived_cache import DerivedCache
entry = DerivedCache(Path(sys.argv[1])).entry("codes", {"version": 1})
print("ready", flush=True)
i = 0
while True:
    entry.write("w", {"x": torch.full((1 << 20,), float(i))})
    print(i, flush=True)
    i += 1
"""


def test_kill_9_in_the_middle_of_a_write_leaves_the_item_whole(tmp_path):
    entry = DerivedCache(tmp_path).entry("codes", {"version": 1})
    for delay in (0.0, 0.02):
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOR_EVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3):
            child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        found = entry.read("w")["x"]
        assert torch.equal(found, found[:1].expand_as(found))
    for left in entry.folder.glob(".*.tmp"):
        os.utime(left, (0, 0))
    DerivedCache(tmp_path).entry("codes", {"version": 1}).write("v", {"x": torch.zeros(1)})
    assert not list(entry.folder.glob(".*.tmp"))


def _write_many(root, n):
    for i in range(n):
        entry_of(root).write(f"w{i % 3}", tensors_of(seed=i % 3))


def test_two_processes_may_write_the_same_items_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, 20)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    for i in range(3):
        assert_same(entry_of(tmp_path).read(f"w{i}"), tensors_of(seed=i))
    assert len(files_of(tmp_path)) == 3


def test_the_budget_removes_entries_that_were_not_used_for_longest(tmp_path):
    for number, age in ((0, 300), (1, 100), (2, 200)):
        entry = entry_of(tmp_path, expert=str(number))
        entry.write("w", {"x": torch.zeros(25_000)})
        entry.close()
        stamp = time.time() - age
        os.utime(entry.folder / "used", (stamp, stamp))
    entry_of(tmp_path, budget=330_000, expert="3").write("w", {"x": torch.zeros(25_000)})
    left = [n for n in range(4) if entry_of(tmp_path, expert=str(n)).read("w") is not None]
    assert left == [1, 2, 3]


def test_entries_in_use_stay_and_the_error_says_what_to_do(tmp_path):
    used = entry_of(tmp_path, expert="used")
    used.write("w", {"x": torch.zeros(25_000)})
    new = entry_of(tmp_path, budget=150_000, expert="new")
    with pytest.raises(ConfigError, match="--budget"):
        new.write("w", {"x": torch.zeros(25_000)})
    assert used.read("w") is not None
    used.close()
    new.write("w", {"x": torch.zeros(25_000)})
    assert not used.folder.exists()
    used.write("v", {"x": torch.zeros(3)})
    assert used.read("v") is not None


def test_an_entry_is_removed_unless_another_one_is_in_use(tmp_path):
    one, other = (DerivedCache(tmp_path).entry("grams", {"n": 1}) for _ in range(2))
    one.write("x", {"a": torch.ones(3)})
    found = other.read("x")
    assert found is not None
    assert not one.remove()
    assert one.read("x") is not None
    one.close()
    assert other.remove()
    assert one.read("x") is None
    assert torch.equal(found["a"], torch.ones(3))


def test_the_budget_holds_where_nothing_is_written(tmp_path):
    for expert in ("old", "new"):
        entry_of(tmp_path, expert=expert).write("w", {"x": torch.zeros(25_000)})
    cache = DerivedCache(tmp_path, budget_bytes=150_000)
    assert cache.entry("quantiles", {**PARTS, "expert": "new"}).read("w") is not None
    cache.fit_budget()
    assert entry_of(tmp_path, expert="old").read("w") is None
    assert entry_of(tmp_path, expert="new").read("w") is not None
    small = DerivedCache(tmp_path, budget_bytes=1000)
    small.entry("quantiles", {**PARTS, "expert": "new"}).read("w")  # closed at once
    with pytest.raises(ConfigError, match="all entries in use take"):
        small.fit_budget()
    assert entry_of(tmp_path, expert="new").read("w") is not None


def test_an_entry_larger_than_the_budget_is_refused(tmp_path):
    entry = entry_of(tmp_path, budget=100_000)
    entry.write("a", {"x": torch.zeros(12_000)})
    entry.write("b", {"x": torch.zeros(10_000)})
    with pytest.raises(ConfigError, match=r"quantiles alone takes .* larger --budget"):
        entry.write("c", {"x": torch.zeros(12_000)})
    assert entry.read("a") is not None
    assert entry.read("c") is None


def test_evicting_while_others_open_never_loses_a_write(tmp_path):
    failures = []

    def churn(number):
        for i in range(40):
            entry = entry_of(tmp_path, budget=400_000, expert=f"{number}-{i % 4}")
            entry.write("w", {"x": torch.full((5_000,), float(i))})
            found = entry.read("w")
            if found is None or found["x"][0] != i:
                failures.append((number, i))
            entry.close()

    threads = [threading.Thread(target=churn, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_cache_that_cannot_be_written_is_an_error_and_can_still_be_read(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(PreflightError, match=r"runtime\.cache"):
        entry_of(file).write("w", {"x": torch.zeros(1)})
    assert entry_of(file).read("w") is None


def test_wrong_kinds_names_and_budgets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not a kind"):
        entry_of(tmp_path, kind="../x")
    with pytest.raises(ValueError, match="cannot name"):
        entry_of(tmp_path).write("w", {"a b": torch.zeros(1)})
    with pytest.raises(ConfigError, match="positive"):
        DerivedCache(tmp_path, budget_bytes=0)
    assert not any(tmp_path.iterdir())


def test_the_default_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "mine"))
    assert default_cache_root() == tmp_path / "mine"
    monkeypatch.delenv("EVOMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_root() == tmp_path / "evomerge"


def test_free_bytes_are_those_of_the_disk_it_will_be_on(tmp_path):
    here = DerivedCache(tmp_path).free_bytes()
    there = DerivedCache(tmp_path / "not" / "yet").free_bytes()
    assert min(here, there) > 0
    assert abs(here - there) < 1 << 30
    (tmp_path / "file").write_bytes(b"")
    assert DerivedCache(tmp_path / "file" / "below").free_bytes() > 0
