"""Paths as people write them."""

from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.storage.hub import resolve_model
from evomerge.storage.named_path import named_path


def test_home_folders_are_filled_in(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert named_path("~/models") == Path("/somewhere/models")
    assert named_path("models/a") == Path("models/a")


@pytest.mark.parametrize(
    ("text", "why"),
    [("~nobody-at-all/x", "no home folder of this user"), ("a\0b/x", "null byte"), ("~\0", "null")],
)
def test_what_no_machine_can_have_is_refused(text, why, tmp_path):
    with pytest.raises(ConfigError, match=why):
        named_path(text)
    with pytest.raises(ConfigError, match=why):  # as a stranger's recipe or config would name it
        resolve_model(text, None, tmp_path)
