"""A journal followed while it grows has the events of one that is read at once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import JournalError
from evomerge.storage.journal import GENESIS, JournalWriter, encode_line, read_journal
from evomerge.storage.journal_follower import JournalFollower


def lines(n):
    chain, found = GENESIS, []
    for i in range(n):
        chain, line = encode_line(chain, {"kind": "told", "id": i})
        found.append(line)
    return found


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 500), max_size=6))
def test_it_does_not_matter_when_one_looks(cuts, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    whole = b"".join(lines(6))
    follower = JournalFollower(path)
    assert not follower.poll(), "nothing there yet"
    for cut in sorted({min(cut, len(whole)) for cut in cuts} | {len(whole)}):
        path.write_bytes(whole[:cut])
        follower.poll()
        assert follower.events == read_journal(path)[0]
    assert [event["id"] for event in follower.events] == list(range(6))
    assert not follower.poll()
    assert follower.chain == read_journal(path)[1]


def test_each_look_reads_only_what_is_new(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    writer, follower = JournalWriter(path), JournalFollower(path)
    parsed = []
    take = JournalFollower._take
    monkeypatch.setattr(
        JournalFollower, "_take", lambda self, line: parsed.append(line) or take(self, line)
    )
    for i in range(5):
        writer.append({"id": i})
        assert follower.poll()
    writer.close()
    assert len(parsed) == 5


def test_a_journal_that_was_cut_is_read_anew(tmp_path):
    path = tmp_path / "journal.jsonl"
    found = lines(5)
    path.write_bytes(b"".join(found))
    follower = JournalFollower(path)
    follower.poll()
    path.write_bytes(b"".join(found[:3]))
    assert follower.poll()
    assert len(follower.events) == 3


@pytest.mark.parametrize("bad", [b"garbage\n", b'{"chain":"0","event":{}}\n', b"[]\n", b"\xff\n"])
def test_an_altered_journal_is_refused(bad, tmp_path):
    path = tmp_path / "journal.jsonl"
    found = lines(3)
    path.write_bytes(b"".join(found[:2]) + bad)
    follower = JournalFollower(path)
    with pytest.raises(JournalError, match="does not continue the journal"):
        follower.poll()
    path.write_bytes(b"".join(found))
    assert follower.poll()
    assert len(follower.events) == 3
