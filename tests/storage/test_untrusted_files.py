import os

import pytest

from evomerge.errors import SourceError
from evomerge.storage.untrusted_files import contained_file, parse_json_object, read_json_object


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "not valid JSON", id="empty"),
        pytest.param(b'{"a": 1, "a": 1}', "appears twice", id="duplicate_key"),
        pytest.param(b'{"a": Infinity}', "not a JSON number", id="infinity"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON", id="endless_integer"),
        pytest.param(b"3", "found int", id="not_an_object"),
        pytest.param(b'{"a": "' + b"x" * 100 + b'"}', "larger than 100 bytes", id="too_large"),
    ],
)
def test_bad_json_is_refused_naming_the_file(content, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    limit = 100 if "larger" in message else 10_000
    with pytest.raises(SourceError, match=message) as error:
        read_json_object(path, max_bytes=limit)
    assert str(path) in str(error.value)


def test_an_unreadable_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", "."):
        with pytest.raises(SourceError, match="cannot be read"):
            read_json_object(tmp_path / name)


def test_good_json_is_returned():
    assert parse_json_object(b'{"a": [1, {"b": null}]}', where="x") == {"a": [1, {"b": None}]}


def test_links_are_followed_inside_the_folder_only(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "real").write_text("x")
    (folder / "good").symlink_to("real")
    (folder / "bad").symlink_to("../secret")
    (folder / "loop").symlink_to("loop")
    (folder / "sub").mkdir()
    assert contained_file(folder, "good") == (folder / "real").resolve()
    for name, message in [
        ("bad", "outside the model folder"),
        ("../secret", "outside the model folder"),
        ("loop", "cannot be opened"),
        ("missing", "cannot be opened"),
        ("sub", "not a regular file"),
    ]:
        with pytest.raises(SourceError, match=message):
            contained_file(folder, name)


def test_a_hub_snapshot_may_link_to_its_own_blobs_only(tmp_path):
    own = tmp_path / "models--org--name"
    snapshot = own / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for repository in (own, tmp_path / "models--org--other"):
        (repository / "blobs").mkdir(parents=True)
        (repository / "blobs" / "123").write_text("x")
    (snapshot / "good").symlink_to("../../blobs/123")
    (snapshot / "bad").symlink_to("../../../models--org--other/blobs/123")
    assert contained_file(snapshot, "good").name == "123"
    with pytest.raises(SourceError, match="outside the model folder"):
        contained_file(snapshot, "bad")
    # The same links in a folder that only looks a little like a cache.
    other = tmp_path / "mine" / "snapshots" / "abc"
    other.mkdir(parents=True)
    (tmp_path / "mine" / "blobs").mkdir()
    (tmp_path / "mine" / "blobs" / "123").write_text("x")
    (other / "good").symlink_to("../../blobs/123")
    with pytest.raises(SourceError, match="outside the model folder"):
        contained_file(other, "good")
