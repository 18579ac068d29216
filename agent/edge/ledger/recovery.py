"""The ledger as it was left: read again, mended where a power cut tore it, set aside where damaged.

    ledger.new             a ledger that is being begun
    ledger.damaged-<k>     set aside as evidence

Rules:
 * Only the last segment is read line by line; of the others the first lines, and their lengths.
 * What a power cut can do is mended: a last line without its end, or zeros behind the last line, is
   cut off. Everything else that does not hold is damage.
 * A damaged ledger is never written to again. The new one's first line names the last head of the
   old one that is known.
 * A new ledger takes its name only when it is complete, so a crash leaves the old one or the new.
"""

import os
import shutil
import zlib
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from agent.core.ledger import Head, Replay, encode_line, parse_line
from agent.core.ledgerevent import OWN, Event, event
from agent.core.merkle import EMPTY_ROOT
from agent.core.model import NS_PER_S
from agent.edge.ledger.segment import (
    Segment,
    create_segment,
    first_line,
    read_beginning,
    read_head,
    segment_paths,
    sync_directory,
)
from agent.errors import LedgerError

_NOTHING = Head(-1, 0, EMPTY_ROOT)


@dataclass(frozen=True, slots=True)
class Restored:
    """A ledger that holds.

    Attributes:
        segments: At least one, in order.
        replay: The last segment, read.
        ended_cleanly: The last entry that was not the ledger's own is `stopped`, or there is none.
        tail_bytes: How much of the last segment holds,
        tail_crc: and the CRC-32 of that.
        torn_bytes: What stands behind it and is to be cut off.
        stillborn: A segment that a power cut kept from having a first line, or None.
    """

    segments: list[Segment]
    replay: Replay
    ended_cleanly: bool
    tail_bytes: int
    tail_crc: int
    torn_bytes: int
    stillborn: Path | None


class DamagedLedger(LedgerError):  # noqa: N818 - says what was found
    """The ledger on disk does not hold.

    Attributes:
        head: The last head of it that is known.
    """

    def __init__(self, fault: LedgerError, head: Head) -> None:
        super().__init__(fault.message, hint=fault.hint)
        self.head = head


def restore(directory: Path) -> Restored | None:
    """Return the ledger in a directory, or None where there is none yet. Nothing is changed.

    Raises:
        DamagedLedger: It does not hold.
        OSError: It cannot be read.
    """
    paths = segment_paths(directory)
    lines = [first_line(path) for path in paths]
    head, fault, stillborn = None, None, None
    try:
        head = read_head(directory)
    except LedgerError as exc:
        fault = exc
    if paths and lines[-1] is None:
        stillborn, paths, lines = paths[-1], paths[:-1], lines[:-1]
    known = head or _NOTHING
    if not paths:
        if head is None and fault is None:
            return None
        raise DamagedLedger(fault or LedgerError("the ledger's segments are gone"), known)
    data = paths[-1].read_bytes()
    if fault is not None:
        raise DamagedLedger(fault, _last_known(paths, data, known))
    try:
        segments = _beginnings(paths, lines)
        replay = Replay(heads=(known.size,))
        rest = _replay(replay, data)
        if head is not None:
            replay.check_head(head)
    except LedgerError as exc:
        raise DamagedLedger(exc, _last_known(paths, data, known)) from exc
    tail = data[: len(data) - rest]
    cleanly = _ended_cleanly(replay, paths[:-1])
    return Restored(segments, replay, cleanly, len(tail), zlib.crc32(tail), rest, stillborn)


def begin(directory: Path, *, t_s: int, old: Head | None) -> Path | None:
    """Begin a new ledger; what stands in its place is set aside.

    Args:
        directory: Of the ledger.
        t_s: Now, s since the epoch.
        old: The last known head of the ledger that is set aside, or None where there was none.

    Returns:
        Where the old ledger is now.

    Raises:
        OSError: The disk refused; all is as it was.
    """
    fresh = _sibling(directory, "new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    first = _first_event(t_s, old)
    _, fd = create_segment(fresh, 0, encode_line(0, first))
    os.close(fd)
    aside = None
    if directory.exists() and any(directory.iterdir()):
        taken = {path.name for path in directory.parent.iterdir()}
        numbers = range(1, len(taken) + 2)
        aside = next(
            path
            for path in (_sibling(directory, f"damaged-{k}") for k in numbers)
            if path.name not in taken
        )
        directory.rename(aside)
    fresh.rename(directory)
    sync_directory(directory.parent)
    return aside


def finish_begin(directory: Path) -> None:
    """Give a new ledger its name, where a crash came between setting aside and that."""
    fresh = _sibling(directory, "new")
    with suppress(DamagedLedger):
        if not directory.exists() and restore(fresh) is not None:
            fresh.rename(directory)
            sync_directory(directory.parent)


def remove_old_evidence(directory: Path, *, before_s: int) -> None:
    """Remove ledgers that were set aside and last written to before a time."""
    for path in directory.parent.glob(f"{directory.name}.damaged-*"):
        newest = max((file.stat().st_mtime for file in path.iterdir()), default=0.0)
        if newest < before_s:
            shutil.rmtree(path, ignore_errors=True)


def _first_event(t_s: int, old: Head | None) -> Event:
    head = old or _NOTHING
    return event(
        t_s * NS_PER_S,
        "ledger-begun",
        generation=head.generation + 1,
        reason="first" if old is None else "damaged",
        size=head.size,
        root=head.root.hex(),
    )


def _beginnings(paths: list[Path], lines: list[bytes | None]) -> list[Segment]:
    """Return the segments; each but the last has the length that the next one says."""
    segments = [read_beginning(path, line or b"") for path, line in zip(paths, lines, strict=True)]
    for segment, after in pairwise(segments):
        if segment.path.stat().st_size != after.before_bytes:
            raise LedgerError(f"{segment.path.name} has another length, or one behind it is gone")
    return segments


def _replay(replay: Replay, data: bytes) -> int:
    """Feed the lines of the last segment; return how many bytes behind them were torn."""
    # Some file systems bring the new length to disk before the bytes, and show zeros then.
    written = data.rstrip(b"\0")
    at = 0
    while (end := written.find(b"\n", at)) >= 0:
        replay.feed(written[at:end])
        at = end + 1
    return len(data) - at


def _ended_cleanly(replay: Replay, earlier: list[Path]) -> bool:
    if replay.last is not None:
        return replay.last.name == "stopped"
    for path in reversed(earlier):
        for line in reversed(path.read_bytes().splitlines()):
            try:
                name = parse_line(line).name
            except LedgerError:
                return False  # Nobody can tell.
            if name not in OWN:
                return name == "stopped"
    return True


def _last_known(paths: list[Path], data: bytes, known: Head) -> Head:
    """Return the highest head that can still be told of a damaged ledger."""
    generation = known.generation
    for path in paths:
        line = first_line(path)
        try:
            generation = max(generation, read_beginning(path, line or b"").generation)
        except LedgerError:
            continue
    replay = Replay()
    best = known
    for line in data.split(b"\n"):
        try:
            replay.feed(line)
        except LedgerError:
            break
        best = max(best, Head(generation, replay.tree.size, replay.tree.root()), key=_size)
    return Head(max(generation, 0), best.size, best.root)


def _size(head: Head) -> int:
    return head.size


def _sibling(directory: Path, word: str) -> Path:
    return directory.with_name(f"{directory.name}.{word}")
