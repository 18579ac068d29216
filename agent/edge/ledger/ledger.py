"""The ledger on disk: lines are appended, heads are given out, checkpoints are signed.

Rules:
 * One process and one thread write. Whoever reads takes no lock.
 * `head` is what is on disk: a power cut never takes back what an envelope or a checkpoint named.
 * The disk refusing a line never stops whoever appends it. It is counted, and once the disk takes
   lines again, the first says how many were lost.
 * Durable lines have a reserve on a full disk; the others do not.
 * Memory does not grow with the ledger: of its lines only the tree's frontier is kept.
"""

import errno
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Self

from agent.core.checkpoint import Checkpoint, sign_checkpoint
from agent.core.cose import DeviceKey
from agent.core.ledger import Head, encode_line, encode_signed
from agent.core.ledgerevent import Event, event
from agent.core.merkle import EMPTY_ROOT, leaf_hash
from agent.core.model import NS_PER_S
from agent.edge.ledger.limits import Limits
from agent.edge.ledger.past import Past
from agent.edge.ledger.recovery import (
    DamagedLedger,
    Restored,
    begin,
    finish_begin,
    remove_old_evidence,
    restore,
)
from agent.edge.ledger.reserve import Reserve
from agent.edge.ledger.segment import (
    create_segment,
    open_segment,
    read_beginning,
    write_head,
)
from agent.edge.ledger.tail import Tail
from agent.errors import AgentError, StoreError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


RETRY_S = 10  # A ledger that cannot be opened is read again for a later entry, not for each.


class Ledger:
    """The open ledger. Not thread-safe: the agent lane owns it.

    Attributes:
        set_aside: Where a damaged ledger was moved when this one was opened, or None.
        ended_cleanly: Whether the ledger's last entry before this start was `stopped`; True for a
            new one.
        lost: Entries that the disk refused since it last took one.
        fault: Why, in the disk's words, or None while it takes them.
    """

    def __init__(self, directory: Path, *, vehicle: str, boot_id: str, limits: Limits) -> None:
        """Use `open`."""
        self._directory = directory
        self._vehicle = vehicle
        self._boot_id = boot_id
        self._limits = limits
        self.set_aside: Path | None = None
        self.ended_cleanly = True
        self.lost = 0
        self.fault: str | None = None
        self._reserve: Reserve | None = None
        self._tail: Tail | None = None  # None until the disk lets us open it.
        self._past = Past([], limits)
        self._generation = 0
        self._head = (0, EMPTY_ROOT)
        self._told = self._told_lines = 0  # Of the lost, those that lines not yet on disk tell of.
        self._checkpoint_s = self._checkpoint_size = 0
        self._tried_s = -RETRY_S  # When opening was tried last.

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        vehicle: str,
        boot_id: str,
        now_ns: int,
        limits: Limits | None = None,
    ) -> Self:
        """Open the ledger in a directory, or begin one.

        A line that a power cut tore is cut off, a damaged ledger set aside, and both recorded. A
        full or read-only disk is no reason to fail: it is tried again with each entry.

        Args:
            directory: Of the ledger alone; its parent is the state directory. Beside it stand its
                reserve and ledgers that were set aside.
            vehicle: The vehicle's pseudonym.
            boot_id: Of the running kernel.
            now_ns: ns since the epoch.
            limits: For tests.

        Raises:
            StoreBusy: Another process holds it.
            StoreError: It cannot be read or may not be written.
        """
        ledger = cls(directory, vehicle=vehicle, boot_id=boot_id, limits=limits or Limits())
        try:
            ledger._open(now_ns // NS_PER_S)
        except OSError as exc:
            ledger._fail(exc)
            if exc.errno not in _NO_ROOM:
                ledger.close()
                raise StoreError(f"the ledger {directory}: {exc.strerror}") from exc
        except BaseException:
            ledger.close()
            raise
        return ledger

    @property
    def head(self) -> tuple[int, bytes]:
        """The size and root of what is on disk: what an envelope names."""
        return self._head

    @property
    def generation(self) -> int:
        """How many ledgers were begun before this one."""
        return self._generation

    def append(self, happened: Event, *, durable: bool) -> bool:
        """Append an event; return whether it was written.

        Args:
            happened: From `agent.core.ledgerevent.event`.
            durable: Return only when it is on disk.
        """
        reserve = self._reserve if durable else None
        try:
            self._make_ready(happened.t_s, reserve).add(happened, reserve)
        except (OSError, AgentError) as exc:
            if not (isinstance(exc, OSError) and exc.errno == errno.EAGAIN):
                self._fail(exc)
            self.lost += 1
            return False
        return self.sync() if durable else True

    def sync(self) -> bool:
        """Put on disk what was appended, and let `head` name it; return whether it was done."""
        tail = self._tail
        if tail is None or tail.tree.size == tail.synced.size:
            return tail is not None
        try:
            tail.sync()
        except OSError as exc:
            self._fail(exc)
            self.lost += tail.take_back() - self._told_lines + self._told
            self._told = self._told_lines = 0
            return False
        self._told = self._told_lines = 0
        self._head = (tail.synced.size, tail.synced.root())
        if self._reserve is not None:
            self._reserve.fill()
        return True

    def checkpoint_due(self, now_ns: int) -> bool:
        """Tell whether there are entries that a checkpoint should cover by now."""
        if self._tail is None:
            return False
        entries = self._tail.tree.size - self._checkpoint_size
        waited_s = abs(now_ns // NS_PER_S - self._checkpoint_s)
        return entries >= self._limits.checkpoint_entries or (
            entries > 0 and waited_s >= self._limits.checkpoint_s
        )

    def checkpoint(self, now_ns: int, device: DeviceKey) -> bytes:
        """Sign the head, append that, and return it as it goes to the platform.

        A segment that has become long or old ends here, and the oldest one is removed when its
        time has come: one at most, so that a clock set wrongly cannot take all at once. One of the
        older ones is read again.
        """
        now_s = max(0, now_ns // NS_PER_S)
        with suppress(OSError, AgentError):
            self._make_ready(now_s, self._reserve)
        self.sync()
        size, root = self.head
        signed = sign_checkpoint(
            Checkpoint(self._vehicle, self._generation, size, root, now_s, self._boot_id), device
        )
        self._checkpoint_s = now_s
        tail = self._tail
        if tail is None:
            return signed
        # A checkpoint's line stands right behind what it covers.
        if tail.tree.size == size and not self.lost:
            self.append(event(now_ns, "checkpoint", signed=encode_signed(signed)), durable=True)
        # Also where the disk refused: it is not asked again before there is more to cover.
        self._checkpoint_size = tail.tree.size
        if tail.synced.size > size:
            with suppress(OSError):
                write_head(self._directory, Head(self._generation, *self.head))
                tail = self._end_segment(tail, now_s)
                self._retire(tail, now_s)
                self._patrol(now_s)
        return signed

    def close(self) -> None:
        """Put on disk what was appended and let others in; twice is harmless."""
        if self._tail is not None:
            self.sync()
            with suppress(OSError):
                write_head(self._directory, Head(self._generation, *self.head))
            self._tail.close()
            self._tail = None
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, now_s: int) -> Tail:
        """Restore what is on disk; where the disk refuses, some of it stays for the next time."""
        if abs(now_s - self._tried_s) < RETRY_S:
            raise OSError(errno.EAGAIN, "tried a moment ago")
        self._tried_s = now_s
        if self._reserve is None:
            self._directory.parent.mkdir(mode=0o700, exist_ok=True)
            path = self._directory.with_name(f"{self._directory.name}.reserve")
            with suppress(OSError):  # On a read-only disk the ledger can still be read.
                self._reserve = Reserve(path, self._limits.reserve_bytes)
        finish_begin(self._directory)
        try:
            found = restore(self._directory)
        except DamagedLedger as exc:
            self.set_aside = begin(self._directory, t_s=now_s, old=exc.head)
            found = None
        else:
            if found is None:
                begin(self._directory, t_s=now_s, old=None)
        if found is None:
            found = restore(self._directory)
            assert found is not None, "a ledger that was just begun is there"
        tail = self._adopt(found)
        if found.torn_bytes:
            torn = event(now_s * NS_PER_S, "line-torn", bytes=found.torn_bytes)
            self.append(torn, durable=True)
        remove_old_evidence(self._directory, before_s=now_s - self._limits.retention_s)
        return tail

    def _adopt(self, found: Restored) -> Tail:
        """Go on with a ledger that holds."""
        replay, last = found.replay, found.segments[-1]
        self._past = Past(found.segments, self._limits)
        self._generation = replay.generation
        self._head = (replay.tree.size, replay.tree.root())
        self.ended_cleanly = found.ended_cleanly
        fd = open_segment(last.path)
        try:
            if found.torn_bytes:
                os.ftruncate(fd, found.tail_bytes)
            os.fsync(fd)  # Lines that a kill left in the kernel alone.
            if found.stillborn is not None:
                found.stillborn.unlink()
        except BaseException:
            os.close(fd)
            raise
        tail = self._tail = Tail(fd, replay.tree, size_bytes=found.tail_bytes, crc=found.tail_crc)
        if replay.checkpoint is not None:
            self._checkpoint_s = replay.checkpoint.time_s
            self._checkpoint_size = replay.checkpoint_n + 1
        else:  # The segment was begun right behind one.
            self._checkpoint_s, self._checkpoint_size = last.t_s, last.first + bool(last.first)
        return tail

    def _make_ready(self, now_s: int, reserve: Reserve | None) -> Tail:
        """Return the tail, with nothing lost untold."""
        tail = self._tail or self._open(now_s)
        if self.lost:
            told = event(
                now_s * NS_PER_S, "entries-lost", entries=self.lost, reason=_reason(self.fault)
            )
            tail.add(told, reserve)
            self._told, self._told_lines = self._told + self.lost, self._told_lines + 1
            self.lost, self.fault = 0, None
        return tail

    def _fail(self, exc: Exception) -> None:
        number = exc.errno if isinstance(exc, OSError) else None
        self.fault = errno.errorcode.get(number or 0, "unknown")

    def _end_segment(self, tail: Tail, now_s: int) -> Tail:
        """Begin the next segment, if this one is long or old enough. Right after a checkpoint."""
        now, first = self._past.last, tail.tree.size
        limits = self._limits
        if (
            first - now.first < limits.segment_entries
            and tail.size_bytes < limits.segment_bytes
            and abs(now_s - now.t_s) < limits.segment_s
        ):
            return tail
        begun = event(
            now_s * NS_PER_S,
            "segment-begun",
            generation=self._generation,
            bytes=tail.size_bytes,
            crc=f"{tail.crc:08x}",
            peaks=[peak.hex() for peak in tail.tree.peaks],
        )
        line = encode_line(first, begun)
        path, fd = create_segment(self._directory, first, line)
        tail.close()
        self._past.add(read_beginning(path, line))
        tree = tail.tree.extended((leaf_hash(line),))
        data = line + b"\n"
        self._tail = Tail(fd, tree, size_bytes=len(data), crc=zlib.crc32(data))
        self._head = (tree.size, tree.root())
        self._checkpoint_size = tree.size
        return self._tail

    def _retire(self, tail: Tail, now_s: int) -> None:
        leaving = self._past.leaving(now_s, tail.size_bytes)
        if leaving is not None and self.append(
            event(
                now_s * NS_PER_S,
                "segment-retired",
                first=leaving.segment.first,
                entries=leaving.entries,
                reason=leaving.reason,
            ),
            durable=True,
        ):
            self._past.remove_oldest()

    def _patrol(self, now_s: int) -> None:
        damaged = self._past.look_at_next()
        if damaged is not None:
            first, entries = damaged
            told = event(now_s * NS_PER_S, "segment-damaged", first=first, entries=entries)
            self.append(told, durable=True)


def _reason(fault: str | None) -> str:
    words = {
        "ENOSPC": "disk-full",
        "EDQUOT": "disk-full",
        "EFBIG": "disk-full",
        "EROFS": "read-only",
    }
    return words.get(fault or "", "disk-fault")
