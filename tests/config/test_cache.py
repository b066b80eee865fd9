import os

import pytest

from evomerge.cli.prepare import parse_size
from evomerge.config.cache import (
    open_cache,
    refuse_unusable_cache,
    too_large_for_a_search,
    usable_cache,
)
from evomerge.errors import ConfigError, PreflightError
from tests.merging.memory_source import make_sources, space_of


def test_the_cache_is_where_the_config_or_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "environment"))
    assert open_cache(str(tmp_path / "config")).root == tmp_path / "config"
    assert open_cache(None).root == tmp_path / "environment"
    assert not any(tmp_path.iterdir())


def test_a_search_does_without_a_place_that_nobody_named(tmp_path, monkeypatch):
    monkeypatch.delenv("EVOMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert usable_cache(None).root == tmp_path / "home" / "evomerge"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert usable_cache(None) is None
    assert usable_cache(str(tmp_path)).root == tmp_path
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "named"))
    assert usable_cache(None).root == tmp_path / "named"


def test_a_named_cache_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    refuse_unusable_cache(str(tmp_path / "new" / "folder"))
    (tmp_path / "file").write_text("")
    with pytest.raises(PreflightError, match=r"file is a file.*runtime\.cache"):
        refuse_unusable_cache(str(tmp_path / "file" / "inside"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PreflightError, match="cannot be written"):
        refuse_unusable_cache(str(tmp_path))
    monkeypatch.delenv("EVOMERGE_CACHE")
    refuse_unusable_cache(None)  # nobody named one: the search does without


def test_rank_codes_that_would_fill_the_disk_are_left_to_prepare(tmp_path, monkeypatch):
    space = space_of(make_sources(2))
    cache = open_cache(str(tmp_path / "not" / "there"))
    assert too_large_for_a_search(cache, space) == ()
    monkeypatch.setattr("evomerge.config.cache._SHARE_OF_FREE", 0.0)
    assert too_large_for_a_search(cache, space) == ("rank-codes",)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("20GB", 20 * 10**9), ("1.5 gib", 3 * 2**29), ("1000", 1000), ("512MiB", 2**29)],
)
def test_sizes(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "20 parsecs", "1e9", "nan"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConfigError, match="expected a size"):
        parse_size(text)
