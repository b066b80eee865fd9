"""The journal and the scores of a run in an object store: numbered objects that never change.

``segments/00000007`` is one line of JSON (which number, whose, where its bytes belong, digest of
the segment before) and then the bytes of ``journal.jsonl`` and of ``scores.f32`` that came with
one group commit. Each is written only if there is none of its number: of two drivers that both
believe in their lease, one finds its next number taken and stops.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from evomerge.core.recipe import canonical_json
from evomerge.errors import JournalError

FOLDER = "segments"
START = "0" * 32
_COUNTS = ("segment", "journal_at", "journal", "scores_at", "scores")


@dataclass(frozen=True)
class Segment:
    """One object of ``segments/``.

    Attributes:
        number: From 0, without holes.
        driver: Who wrote it: a random text of its own per driver.
        after: Digest of the segment before, `START` of the first.
        journal_at: Byte of journal.jsonl at which `journal` begins.
        journal: Whole lines.
        scores_at: Byte of scores.f32 at which `scores` begins.
        scores: The rows that those lines tell of.
    """

    number: int
    driver: str
    after: str
    journal_at: int
    journal: bytes
    scores_at: int
    scores: bytes

    @property
    def name(self) -> str:
        """Name of the object."""
        return segment_name(self.number)

    @property
    def digest(self) -> str:
        """32 hex digits of everything in it."""
        head = canonical_json(self._head()).encode()
        return hashlib.blake2b(head + self.journal + self.scores, digest_size=16).hexdigest()

    def _head(self) -> dict[str, object]:
        return {
            "segment": self.number,
            "driver": self.driver,
            "after": self.after,
            "journal_at": self.journal_at,
            "journal": len(self.journal),
            "scores_at": self.scores_at,
            "scores": len(self.scores),
        }

    def encode(self) -> bytes:
        """Return the content of the object."""
        head = {**self._head(), "digest": self.digest}
        return canonical_json(head).encode() + b"\n" + self.journal + self.scores


def segment_name(number: int) -> str:
    """Return the name of the object of that number."""
    return f"{FOLDER}/{number:08d}"


def decode_segment(data: bytes, number: int, where: str) -> Segment:
    """Return the segment in an object.

    Args:
        data: Content of the object.
        number: Which one it has to be.
        where: URL of the run, for the message.

    Raises:
        JournalError: It is torn, altered or another one; names the object.
    """
    segment = read_segment(data)
    if segment is None or segment.number != number or not is_sound(segment, data):
        raise damage(where, number, "is torn or was altered")
    return segment


def damage(where: str, number: int, what: str) -> JournalError:
    """Return the error for a segment that cannot be used."""
    return JournalError(
        f"{where}/{segment_name(number)}: {what}. Restore the object (an earlier version of it, a "
        f"backup), or save what is whole: evomerge repair {where} --out NEW"
    )


def read_segment(data: bytes) -> Segment | None:
    """Return what an object says it holds, its digest unchecked; None if its head is unreadable."""
    head_line, _, body = data.partition(b"\n")
    try:
        head = json.loads(head_line)
        numbers = {key: head[key] for key in _COUNTS}
        texts = {key: head[key] for key in ("driver", "after")}
    except (ValueError, KeyError, TypeError):
        return None
    if not all(type(value) is int and 0 <= value < 2**48 for value in numbers.values()):
        return None
    if not all(isinstance(value, str) for value in texts.values()):
        return None
    cut = numbers["journal"]
    return Segment(
        numbers["segment"],
        texts["driver"],
        texts["after"],
        numbers["journal_at"],
        body[:cut],
        numbers["scores_at"],
        body[cut : cut + numbers["scores"]],
    )


def is_sound(segment: Segment, data: bytes) -> bool:
    """Return whether an object is byte for byte what its segment was written as."""
    return segment.encode() == data
