from pathlib import Path

import pytest

from evomerge.errors import SourceError
from evomerge.storage.hub import resolve_model


@pytest.fixture
def _offline(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_local_path_comes_first(tmp_path):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "one.safetensors").write_bytes(b"")
    assert resolve_model("org/name", None, tmp_path) == tmp_path / "org" / "name"
    assert resolve_model(str(tmp_path / "org"), None, Path("/nowhere")) == tmp_path / "org"
    assert resolve_model("one.safetensors", None, tmp_path) == tmp_path / "one.safetensors"


def test_a_revision_of_a_local_path_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(SourceError, match="Remove `revision:`"):
        resolve_model("model", "main", tmp_path)


def test_a_snapshot_may_keep_its_revision(tmp_path):
    path = tmp_path / "models--org--name" / "snapshots" / "0123"
    path.mkdir(parents=True)
    assert resolve_model(str(path), "main", tmp_path) == path


@pytest.mark.parametrize(
    "ref",
    ["", "missing", "./missing", "../org/name", "/no/such/model", "a/b/c", "org/..", "~/nope"],
)
def test_what_is_neither_a_path_nor_a_hub_id_is_refused(ref, tmp_path):
    with pytest.raises(SourceError, match="not a hub id"):
        resolve_model(ref, None, tmp_path)


@pytest.mark.usefixtures("_offline")
def test_offline_the_message_says_what_was_tried(tmp_path):
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE") as error:
        resolve_model("org/name", "v1", tmp_path)
    assert str(tmp_path / "org/name") in str(error.value)
    assert "revision v1" in str(error.value)


@pytest.mark.usefixtures("_offline")
def test_offline_a_cached_snapshot_is_found(tmp_path):
    repository = tmp_path / "cache" / "models--org--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert resolve_model("org/name", None, tmp_path) == snapshot


def test_only_safe_files_of_the_asked_revision_are_downloaded(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(repo_id, *, revision, allow_patterns, ignore_patterns):
        files = [
            "model.safetensors",
            "config.json",
            "vocab.txt",
            "tokenizer.model",
            "pytorch_model.bin",
            "modeling.py",
            "original/consolidated.safetensors",
            "consolidated.safetensors",
        ]
        kept = huggingface_hub.utils.filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        asked.update(repo_id=repo_id, revision=revision, files=list(kept))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("org/name", "v1", tmp_path) == tmp_path
    assert asked == {
        "repo_id": "org/name",
        "revision": "v1",
        "files": ["model.safetensors", "config.json", "vocab.txt", "tokenizer.model"],
    }
