"""The ledger's lines: how one is written, and what a reader holds each against.

    {"c":"9f3a01bc","e":"policy-refused","f":{"reason":"rollback","sha256":"…"},"n":17,"t":1795468800}

    c  CRC-32 of the line without this member    f  its facts (agent.core.ledgerevent)
    e  the event                                 n  index, from 0    t  s since the epoch

Rules:
 * A line is one JSON object in its one spelling: sorted names, no blanks, ASCII. Its leaf hash is
   over its bytes without the line feed.
 * `c` finds accidents, such as a flipped bit, in any line and without a key. Against intent there
   is the tree, whose heads others have seen.
 * The first line of a segment says how the tree stood when it began: so whoever goes on reads the
   last segment only, and segments before it may go.
 * A checkpoint stands in the ledger itself, over exactly the entries before it.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.core import ledgerevent
from agent.core.checkpoint import Checkpoint, parse_checkpoint
from agent.core.cose import DevicePublicKey, unsafe_unverified1, verify1
from agent.core.ledgerevent import OWN, Event, Fact
from agent.core.merkle import Frontier, leaf_hash
from agent.core.strictjson import MAX_INTEGER
from agent.errors import EnvelopeRejected, LedgerError

MAX_LINE_BYTES = 256 * 1024  # Two policies of 64 KiB in one `policy-applied`, with room.
BEGINNINGS = ("ledger-begun", "segment-begun")

_LINE = re.compile(rb'\{"c":"([0-9a-f]{8})",("[^\n]*\})')
_encode = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that was read.

    Attributes:
        n: Its index.
        t_s: s since the epoch.
        facts: Exactly those that the list of events gives it.
    """

    n: int
    t_s: int
    name: str
    facts: Mapping[str, Fact]


@dataclass(frozen=True, slots=True)
class Head:
    """How a ledger stood: what the file `head` keeps, and what a new ledger says of the old one.

    Attributes:
        size: Its entries.
        root: Of the tree over them, 32 bytes.
    """

    generation: int
    size: int
    root: bytes


def encode_line(n: int, event: Event) -> bytes:
    """Return the line of an event at an index, without a line feed."""
    return _checked({"e": event.name, "f": event.facts, "n": n, "t": event.t_s})


def parse_line(line: bytes) -> Entry:
    """Return the entry in a line without its line feed.

    Raises:
        LedgerError: It is no line of a ledger; nothing else, for any bytes.
    """
    value = _parsed(line, {"e", "f", "n", "t"})
    name, facts = value["e"], value["f"]
    if not (type(name) is str and type(facts) is dict and _are_counts(value["n"], value["t"])):
        raise LedgerError("a member of the line has the wrong type")
    try:
        ledgerevent.check(name, facts)
    except ValueError as exc:
        raise LedgerError(
            str(exc), hint="a newer version may have written it; look with that one"
        ) from exc
    return Entry(n=value["n"], t_s=value["t"], name=name, facts=facts)


def encode_head(head: Head) -> bytes:
    """Return a head as it stands in its file."""
    return _checked({"g": head.generation, "n": head.size, "root": head.root.hex()})


def parse_head(data: bytes) -> Head:
    """Return the head in a file.

    Raises:
        LedgerError: It is none; nothing else, for any bytes.
    """
    value = _parsed(data, {"g", "n", "root"})
    root = value["root"]
    if not _are_counts(value["g"], value["n"]) or not ledgerevent.DIGEST.accepts(root):
        raise LedgerError("a member of the head has the wrong type")
    return Head(value["g"], value["n"], bytes.fromhex(root))


def _checked(value: Mapping[str, Any]) -> bytes:
    body = _encode(value).encode("ascii")
    return b'{"c":"%08x",%b' % (zlib.crc32(body), body[1:])


def _parsed(line: bytes, names: set[str]) -> dict[str, Any]:
    match = _LINE.fullmatch(line) if len(line) <= MAX_LINE_BYTES else None
    if match is None:
        raise LedgerError("this is no line of a ledger")
    body = b"{" + match[2]
    if int(match[1], 16) != zlib.crc32(body):
        raise LedgerError("its check value does not hold: the line was altered")
    try:
        value: Any = json.loads(body.decode("ascii"))
        # One spelling: what reads alike but is spelled otherwise is another line. This also
        # refuses names that stand twice, as they come out once.
        is_spelled_so = _encode(value).encode("ascii") == body
    except (ValueError, RecursionError) as exc:
        raise LedgerError("the line is no JSON") from exc
    if not is_spelled_so or value.keys() != names:
        raise LedgerError("the line is not in its one spelling")
    return dict(value)


def _are_counts(*values: object) -> bool:
    return all(type(value) is int and 0 <= value <= MAX_INTEGER for value in values)


def encode_signed(checkpoint: bytes) -> str:
    """Return a signed checkpoint as the fact `signed`."""
    return base64.urlsafe_b64encode(checkpoint).rstrip(b"=").decode("ascii")


class Replay:
    """A ledger read again, line by line, held against every rule.

    Attributes:
        tree: The frontier after the last line.
        retired: The frontier where reading began, once a line was read.
        generation: Of the ledger.
        last: The last entry that somebody else than the ledger appended, or None.
        checkpoint: The last checkpoint that was read, or None.
        checkpoint_n: Its line's index.
        signed: Its bytes.
        heads: Size → root, for each size that was asked for and passed.
    """

    def __init__(
        self,
        *,
        heads: Iterable[int] = (),
        devices: Mapping[str, DevicePublicKey] | None = None,
    ) -> None:
        """Begin to read.

        Args:
            heads: Sizes at which the root is wanted.
            devices: kid → key that may have signed checkpoints; None leaves signatures unverified.
        """
        self.tree = Frontier()
        self.retired: Frontier | None = None
        self.generation = 0
        self.last: Entry | None = None
        self.checkpoint: Checkpoint | None = None
        self.checkpoint_n = -1
        self.signed = b""
        self.heads: dict[int, bytes] = {}
        self._wanted = set(heads)
        self._devices = devices
        self._begins = True
        self._segment_bytes = self._segment_crc = 0

    def want(self, size: int) -> None:
        """Ask for the root at a size that is still to come."""
        self._wanted.add(size)

    def begin_segment(self) -> None:
        """Expect the first line of the next segment."""
        self._begins = True

    def feed(self, line: bytes) -> Entry:
        """Hold the next line, without its line feed, against the rules.

        Raises:
            LedgerError: It breaks one.
        """
        entry = parse_line(line)
        begins, self._begins = self._begins, False
        if begins:
            self._begin(entry)
        elif entry.name in BEGINNINGS:
            raise LedgerError(f"{entry.name} stands within a segment")
        if entry.n != self.tree.size:
            raise LedgerError(f"it is entry {entry.n}, expected entry {self.tree.size}")
        if entry.name == "checkpoint":
            self._check_signed(entry)
        elif entry.name not in OWN:
            self.last = entry
        self.tree = self.tree.extended((leaf_hash(line),))
        self._segment_bytes += len(line) + 1
        self._segment_crc = zlib.crc32(line + b"\n", self._segment_crc)
        self._note()
        return entry

    def check_head(self, head: Head) -> None:
        """Hold what was read against a head of this very ledger; its size was asked for.

        Raises:
            LedgerError: Another ledger, or less of it, was read than the head names.
        """
        if head.generation != self.generation:
            raise LedgerError(
                f"the head is of generation {head.generation}, the ledger of {self.generation}"
            )
        if head.size > self.tree.size:
            raise LedgerError(f"it has {self.tree.size} entries, expected at least {head.size}")
        if self.heads.get(head.size, head.root) != head.root:
            raise LedgerError(f"its first {head.size} entries are not those of the head")

    def _begin(self, entry: Entry) -> None:
        first = self.retired is None
        facts: Mapping[str, Any] = entry.facts
        if entry.name not in BEGINNINGS or (entry.name == "ledger-begun") != (entry.n == 0):
            raise LedgerError("a segment does not begin with how the tree stood")
        if entry.name == "segment-begun":
            peaks = tuple(bytes.fromhex(peak) for peak in facts["peaks"])
            stood = Frontier(entry.n, peaks)
            if len(peaks) != entry.n.bit_count():
                raise LedgerError("the segment's beginning is no state of a tree")
            if first:
                self.tree = stood
            elif stood != self.tree:
                raise LedgerError("the segment does not begin where the one before it ends")
            before = (self._segment_bytes, f"{self._segment_crc:08x}")
            if not first and (facts["bytes"], facts["crc"]) != before:
                raise LedgerError("the segment before is not what it was")
        if first:
            self.retired, self.generation = self.tree, facts["generation"]
            self._note()
        elif facts["generation"] != self.generation:
            raise LedgerError("the segment belongs to another ledger")
        self._segment_bytes = self._segment_crc = 0

    def _check_signed(self, entry: Entry) -> None:
        text = str(entry.facts["signed"])
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            if self._devices is None:
                payload = unsafe_unverified1(data)
            else:
                _, payload = verify1(data, self._devices)
            checkpoint = parse_checkpoint(payload)
        except (EnvelopeRejected, binascii.Error) as exc:
            raise LedgerError(f"its checkpoint does not hold: {exc}") from exc
        if encode_signed(data) != text:
            raise LedgerError("its checkpoint is not in its one spelling")
        if checkpoint.size != self.tree.size or checkpoint.root != self.tree.root():
            raise LedgerError("its checkpoint was signed over other entries than stand before it")
        if checkpoint.generation != self.generation:
            raise LedgerError("its checkpoint was signed for another ledger")
        self.checkpoint, self.checkpoint_n, self.signed = checkpoint, entry.n, data

    def _note(self) -> None:
        if self.tree.size in self._wanted:
            self.heads[self.tree.size] = self.tree.root()
