"""Workers that read copies: the same scores, and the same refusals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from evomerge.config.schema import RunConfig, load_config
from evomerge.config.session import create_run
from evomerge.config.workers import build_worker, read_sources
from evomerge.core.candidate import Candidate
from evomerge.errors import ConfigError, SourceError
from evomerge.storage.run_store import RunFolder


@pytest.fixture
def made(tiny_models, tmp_path: Path):
    """A run whose models are ours to change, and its config."""
    for name in ("base", "x", "y"):
        shutil.copytree(tiny_models.folder / name, tmp_path / name)
    config = tiny_models.write(
        tmp_path / "c.yaml",
        base_model="base",
        models=["x", "y"],
        runtime={"threads": 1, "staging": {"folder": "local", "max_bytes": "1GB"}},
    )
    folder = RunFolder(tmp_path / "run")
    create_run(load_config(config), tmp_path, folder)
    return folder


def scores(worker, recipe) -> np.ndarray:
    outcome = worker.evaluate(Candidate(0, recipe, (), 0, "test"))
    assert outcome.evaluation.error is None
    return outcome.evaluation.flat_scores()


def recipe_of(folder: RunFolder):
    from evomerge.core.recipe import Recipe

    sources = tuple(str(record["id"]) for record in read_sources(folder))
    return Recipe("linear", sources, {"weights": np.full((1, len(sources)), 1 / len(sources))})


def test_a_worker_reads_copies_and_scores_the_same(made: RunFolder, tmp_path: Path) -> None:
    staged = build_worker(made.path, "cpu", 1, "a")
    assert staged.notes == ()
    assert len(list((tmp_path / "local").glob("*/manifest.json"))) == 3
    read_from = {source.path for source in staged._inputs.sources.values()}
    assert all(path.is_relative_to(tmp_path / "local") for path in read_from)

    body = yaml.safe_load(made.config.read_text())
    body["runtime"]["staging"] = None
    made.config.chmod(0o644)
    made.config.write_text(yaml.safe_dump(body))
    plain = build_worker(made.path, "cpu", 1, "b")
    assert {source.path for source in plain._inputs.sources.values()}.isdisjoint(read_from)
    np.testing.assert_array_equal(scores(staged, recipe_of(made)), scores(plain, recipe_of(made)))


def test_what_does_not_fit_is_read_from_where_it_is(made: RunFolder) -> None:
    body = yaml.safe_load(made.config.read_text())
    body["runtime"]["staging"]["max_bytes"] = 10
    made.config.chmod(0o644)
    made.config.write_text(yaml.safe_dump(body))
    worker = build_worker(made.path, "cpu", 1, "a")
    assert len(worker.notes) == 3
    assert "max_bytes: 10" in worker.notes[0]


def test_a_model_that_changed_is_refused_with_staging_too(made: RunFolder, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "y" / "model.safetensors", tmp_path / "x" / "model.safetensors")
    with pytest.raises(SourceError, match="changed since the run began"):
        build_worker(made.path, "cpu", 1, "late")


@pytest.mark.parametrize("is_staged", [True, False])
def test_a_hub_model_is_taken_from_the_cache_of_the_machine_that_reads_it(
    is_staged: bool, tiny_models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    there = tmp_path / "there" / "models--org--x" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_models.folder / "x", there)
    config = tiny_models.write(
        tmp_path / "c.yaml",
        models=[str(there), str(tiny_models.folder / "y")],
        runtime={"threads": 1, "staging": {"folder": "local"} if is_staged else None},
    )
    folder = RunFolder(tmp_path / "run")
    create_run(load_config(config), tmp_path, folder)
    before = scores(build_worker(folder.path, "cpu", 1, "a"), recipe_of(folder))
    here = tmp_path / "here"
    there.rename(here)  # this machine's cache is another one
    for path in here.iterdir():
        os.utime(path)  # downloaded at another time
    asked = []

    def download(repo_id, *, revision, allow_patterns, ignore_patterns):
        asked.append((repo_id, revision))
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    again = scores(build_worker(folder.path, "cpu", 1, "b"), recipe_of(folder))
    np.testing.assert_array_equal(again, before)
    assert asked == [("org/x", "0" * 40)]
    shutil.copy(tiny_models.folder / "y" / "model.safetensors", here)
    with pytest.raises(SourceError, match="changed since the run began"):
        build_worker(folder.path, "cpu", 1, "c")


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("200GB", 200 * 10**9), ("1.5 kB", 1500), (7, 7), (None, None)]
)
def test_sizes_are_read(text, n_bytes, tiny_models) -> None:
    body = tiny_models.config(runtime={"staging": {"folder": "x", "max_bytes": text}})
    assert RunConfig.model_validate(body).runtime.staging.max_bytes == n_bytes


def test_a_size_that_is_none_is_refused(tiny_models, tmp_path: Path) -> None:
    path = tiny_models.write(
        tmp_path / "c.yaml", runtime={"staging": {"folder": "x", "max_bytes": "much"}}
    )
    with pytest.raises(ConfigError, match=r"runtime\.staging\.max_bytes"):
        load_config(path)
