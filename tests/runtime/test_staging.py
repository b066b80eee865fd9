"""Copies of models on a node's own disk, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from evomerge.runtime.staging import MANIFEST, Staging

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "shared" / "m", seed=0)


def make_model(folder: Path, seed: int) -> Path:
    import numpy as np

    folder.mkdir(parents=True)
    values = np.random.default_rng(seed).normal(size=200_000).astype(np.float32)
    save_file({"w": values}, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"seed": {seed}}}')
    (folder / "training.bin").write_bytes(b"not needed")
    return folder


def size(model: Path) -> int:
    return sum((model / name).stat().st_size for name in ("model.safetensors", "config.json"))


class Process:
    def __init__(self, root: Path, model: Path, most: int = 0, slow: float = 0.0) -> None:
        self.inner = subprocess.Popen(
            [sys.executable, "-m", "tests.runtime.staging_process", root, model, str(most)],
            cwd=ROOT,
            env={**os.environ, **({"SLOW": str(slow)} if slow else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        return self.inner.stdout.readline().strip()

    def end(self) -> None:
        self.inner.stdin.close()
        assert self.inner.wait(30) == 0
        self.inner.stdout.close()

    def kill(self) -> None:
        self.inner.kill()
        self.inner.wait()
        self.inner.stdin.close()
        self.inner.stdout.close()


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


def test_two_processes_copy_once_and_read_the_same_file(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "local"
    both = [Process(root, model, slow=0.02) for _ in range(2)]
    for process in both:
        assert process.line() == "started"
    said = sorted(process.line() for process in both)
    assert [line.split()[0] for line in said] == ["copied", "found"]
    (place,) = {Path(line.split()[1]) for line in said}
    names = sorted(path.name for path in place.iterdir())
    assert names == ["config.json", "model.safetensors"]
    for name in names:
        assert (place / name).read_bytes() == (model / name).read_bytes()
        assert (place / name).stat().st_mtime_ns == (model / name).stat().st_mtime_ns
    for process in both:
        process.end()
    assert leftovers(root) == []


def test_a_killed_copier_is_followed_by_the_next_one(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "local"
    first = Process(root, model, slow=0.5)
    while not (root.exists() and leftovers(root)):
        time.sleep(0.02)
    second = Process(root, model)
    assert second.line() == "started"
    first.kill()
    assert second.line().startswith("copied")
    second.end()
    assert leftovers(root) == []
    assert Staging(root).stage(model, ["d"]).path.parent.parent == root


def test_a_damaged_copy_is_found_out_and_made_again(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "local"
    weights = Staging(root).stage(model, ["d"]).path / "model.safetensors"
    times = weights.stat()
    weights.chmod(0o644)
    reader = weights.open("rb")  # a worker that has it open keeps what it has
    with weights.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"evil")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = Staging(root).stage(model, ["d"]).path / "model.safetensors"
    assert again == weights
    assert again.read_bytes() == (model / "model.safetensors").read_bytes()
    with reader:
        assert reader.read()[-4:] == b"evil"
    (root / again.parts[-3] / MANIFEST).write_text("{")
    assert Staging(root).stage(model, ["d"]).note == ""


def test_a_file_that_is_put_back_is_not_served_from_the_copy_of_its_change(
    model: Path, tmp_path: Path
) -> None:
    """The digest of the key is the run's; the file may have changed since it was computed."""
    root, weights = tmp_path / "local", model / "model.safetensors"
    before, times = weights.read_bytes(), weights.stat()
    with weights.open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"evil")
    os.utime(weights, (1, 1))
    changed = Staging(root).stage(model, ["d"]).path
    assert (changed / weights.name).read_bytes()[-4:] == b"evil"
    weights.write_bytes(before)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    copy = Staging(root).stage(model, ["d"]).path / weights.name
    assert copy.read_bytes() == before
    assert copy.stat().st_mtime_ns == times.st_mtime_ns


def test_what_is_not_ours_in_the_folder_stays(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "local"
    others = [root / ".config.old" / "kept", root / "run" / "files" / "kept"]
    others += [root / "other-run" / MANIFEST, root / "run" / MANIFEST, root / ".copy.mine" / "kept"]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("{}")
    assert Staging(root, size(model)).stage(model, ["d"]).note == ""
    assert all(other.exists() for other in others)


def test_another_digest_or_tokenizer_is_another_copy(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "local"
    first = Staging(root).stage(model, ["d"]).path
    assert Staging(root).stage(model, ["e"]).path != first
    (model / "tokenizer.json").write_text("{}")
    assert Staging(root).stage(model, ["d"]).path != first
    assert Staging(root).stage(model / "model.safetensors", ["d"]).path.name == "model.safetensors"


def test_what_is_not_in_use_makes_room_the_oldest_first(tmp_path: Path) -> None:
    root = tmp_path / "local"
    models = [make_model(tmp_path / f"m{n}", seed=n) for n in range(4)]
    most = 2 * size(models[0]) + 1000
    users = [Process(root, model, most) for model in models[:2]]
    places = []
    for user in users:
        user.line()
        places.append(Path(user.line().split()[1]))
    refused = Staging(root, most).stage(models[2], ["d"])
    assert refused.path == models[2]
    assert "does not fit" in refused.note
    users[1].end()
    assert Staging(root, most).stage(models[2], ["d"]).path != models[2]
    assert places[0].exists(), "in use"
    assert not places[1].exists()
    users[0].end()
    os.utime(root / f"{places[0].parent.name}.use", (1, 1))
    kept = Staging(root, most)
    third = kept.stage(models[2], ["d"]).path
    assert kept.stage(models[3], ["d"]).path.exists()
    assert third.exists()
    assert not places[0].exists()


def test_a_full_disk_means_reading_the_shared_file(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "local"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(root)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs rights this process lacks")
    try:
        staged = Staging(root).stage(model, ["d"])
        assert staged.path == model
        assert "No space left on device" in staged.note
        assert leftovers(root) == []
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def test_a_source_that_changes_while_it_is_copied_is_an_error(model: Path, tmp_path: Path) -> None:
    process = Process(tmp_path / "local", model, slow=0.1)
    process.line()
    while not list((tmp_path).glob("local/.copy.*/files/model.safetensors")):
        time.sleep(0.01)
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"more")
    said = process.line()
    process.end()
    assert "changed while it was copied" in said
