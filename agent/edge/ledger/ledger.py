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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.core.checkpoint import Checkpoint, sign_checkpoint
from agent.core.cose import DeviceKey
from agent.core.ledger import Head, Replay, encode_line, encode_signed
from agent.core.ledgerevent import Event, event
from agent.core.merkle import EMPTY_ROOT, Frontier, leaf_hash
from agent.core.model import NS_PER_S
from agent.edge.ledger.recovery import (
    DamagedLedger,
    begin,
    finish_begin,
    remove_old_evidence,
    restore,
)
from agent.edge.ledger.reserve import Reserve, is_full
from agent.edge.ledger.segment import (
    Segment,
    create_segment,
    open_segment,
    write_all,
    write_head,
)
from agent.errors import AgentError, StoreError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much.

    Attributes:
        checkpoint_entries: A checkpoint is due after so many entries,
        checkpoint_s: or so long after the last, if there were any.
        segment_entries: A segment ends at the first checkpoint after so many entries,
        segment_bytes: or bytes,
        segment_s: or so long after it was begun.
        retention_s: A segment is removed once all in it is older.
        total_bytes: The oldest is removed earlier where all are longer.
        reserve_bytes: Room kept for durable lines.
    """

    checkpoint_entries: int = 256
    checkpoint_s: int = 3_600
    segment_entries: int = 4_096
    segment_bytes: int = 1024 * 1024
    segment_s: int = 86_400
    retention_s: int = 180 * 86_400
    total_bytes: int = 256 * 1024 * 1024
    reserve_bytes: int = 256 * 1024


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
        self._fd = -1
        self._segments: list[Segment] = []
        self._generation = 0
        self._tree = Frontier()  # What is written,
        self._bytes = 0  # and how long the last segment is with it.
        self._synced = Frontier()  # What is on disk,
        self._synced_bytes = 0
        self._head = (0, EMPTY_ROOT)
        self._told = 0  # Of the lost, those that a line tells of that is not on disk yet.
        self._told_lines = 0
        self._is_ragged = False  # Half a line stands at the end.
        self._checkpoint_s = 0
        self._checkpoint_size = 0

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
        try:
            self._make_ready(happened.t_s, spare=durable)
            self._add(happened, spare=durable)
        except (OSError, AgentError) as exc:
            self._fail(exc)
            self.lost += 1
            return False
        return self.sync() if durable else True

    def sync(self) -> bool:
        """Put on disk what was appended, and let `head` name it; return whether it was done."""
        if self._tree.size == self._synced.size:
            return self._fd >= 0
        try:
            os.fdatasync(self._fd)
        except OSError as exc:
            # What the kernel could not write it may drop, and say nothing when asked again. So
            # these lines are taken back.
            self._fail(exc)
            self._take_back()
            return False
        self._synced, self._synced_bytes = self._tree, self._bytes
        self._told = self._told_lines = 0
        self._head = (self._synced.size, self._synced.root())
        if self._reserve is not None:
            self._reserve.fill()
        return True

    def checkpoint_due(self, now_ns: int) -> bool:
        """Tell whether there are entries that a checkpoint should cover by now."""
        entries = self._tree.size - self._checkpoint_size
        waited_s = abs(now_ns // NS_PER_S - self._checkpoint_s)
        return entries >= self._limits.checkpoint_entries or (
            entries > 0 and waited_s >= self._limits.checkpoint_s
        )

    def checkpoint(self, now_ns: int, device: DeviceKey) -> bytes:
        """Sign the head, append that, and return it as it goes to the platform.

        A segment that has become long or old ends here, and the oldest one is removed when its
        time has come: one at most, so that a clock set wrongly cannot take all at once.
        """
        now_s = max(0, now_ns // NS_PER_S)
        with suppress(OSError, AgentError):
            self._make_ready(now_s, spare=True)
        self.sync()
        size, root = self.head
        signed = sign_checkpoint(
            Checkpoint(self._vehicle, self._generation, size, root, now_s, self._boot_id), device
        )
        # A checkpoint's line stands right behind what it covers.
        if self._tree.size == size and not self.lost:
            self.append(event(now_ns, "checkpoint", signed=encode_signed(signed)), durable=True)
        # Also where the disk refused: it is not asked again before there is more to cover.
        self._checkpoint_s, self._checkpoint_size = now_s, self._tree.size
        if self._synced.size > size:
            with suppress(OSError):
                write_head(self._directory, Head(self._generation, *self.head))
                self._end_segment(now_s)
                self._retire(now_s)
        return signed

    def close(self) -> None:
        """Put on disk what was appended and let others in; twice is harmless."""
        if self._fd >= 0:
            self.sync()
            with suppress(OSError):
                write_head(self._directory, Head(self._generation, *self.head))
            os.close(self._fd)
            self._fd = -1
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, now_s: int) -> None:
        """Restore what is on disk; where the disk refuses, some of it stays for the next time."""
        if self._reserve is None:
            self._directory.parent.mkdir(mode=0o700, exist_ok=True)
            path = self._directory.with_name(f"{self._directory.name}.reserve")
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
        self._adopt(found.replay, found.segments, found.tail_bytes)
        fd = open_segment(found.segments[-1].path)
        try:
            if found.torn_bytes:
                os.ftruncate(fd, found.tail_bytes)
            os.fsync(fd)  # Lines that a kill left in the kernel alone.
            if found.stillborn is not None:
                found.stillborn.unlink()
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.fault = None
        if found.torn_bytes:
            torn = event(now_s * NS_PER_S, "line-torn", bytes=found.torn_bytes)
            self.append(torn, durable=True)
        remove_old_evidence(self._directory, before_s=now_s - self._limits.retention_s)

    def _adopt(self, replay: Replay, segments: list[Segment], size_bytes: int) -> None:
        self._segments = segments
        self._generation = replay.generation
        self._tree = self._synced = replay.tree
        self._bytes = self._synced_bytes = size_bytes
        self._head = (replay.tree.size, replay.tree.root())
        self.ended_cleanly = replay.last is None or replay.last.name == "stopped"
        if replay.checkpoint is not None:
            self._checkpoint_s = replay.checkpoint.time_s
            self._checkpoint_size = replay.checkpoint_n + 1
        else:  # The segment was begun right behind one.
            begun = segments[-1]
            self._checkpoint_s, self._checkpoint_size = begun.t_s, begun.first + bool(begun.first)

    def _make_ready(self, now_s: int, *, spare: bool) -> None:
        """Have a segment open that ends with a whole line, and nothing lost untold."""
        if self._fd < 0:
            self._open(now_s)
        if self._is_ragged:
            os.ftruncate(self._fd, self._bytes)
            self._is_ragged = False
        if self.lost:
            told = event(
                now_s * NS_PER_S, "entries-lost", entries=self.lost, reason=_reason(self.fault)
            )
            self._add(told, spare=spare)
            self._told, self._told_lines = self._told + self.lost, self._told_lines + 1
            self.lost, self.fault = 0, None

    def _add(self, happened: Event, *, spare: bool) -> None:
        """Write a line; on a full disk with the room of the reserve, if `spare`."""
        line = encode_line(self._tree.size, happened)
        data = line + b"\n"
        try:
            self._write(data)
        except OSError as exc:
            if not spare or not is_full(exc) or self._reserve is None:
                raise
            if not self._reserve.give(len(data)):
                raise
            self._write(data)
        self._tree = self._tree.extended((leaf_hash(line),))
        self._bytes += len(data)

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._fd, data)
        except OSError:
            self._is_ragged = True
            os.ftruncate(self._fd, self._bytes)
            self._is_ragged = False
            raise

    def _take_back(self) -> None:
        """Go back to what is on disk; what was written since is lost."""
        self.lost += self._tree.size - self._synced.size - self._told_lines + self._told
        self._told = self._told_lines = 0
        self._tree, self._bytes = self._synced, self._synced_bytes
        self._is_ragged = True
        with suppress(OSError):
            os.ftruncate(self._fd, self._bytes)
            self._is_ragged = False

    def _fail(self, exc: Exception) -> None:
        number = exc.errno if isinstance(exc, OSError) else None
        self.fault = errno.errorcode.get(number or 0, "unknown")

    def _end_segment(self, now_s: int) -> None:
        """Begin the next segment, if this one is long or old enough. Right after a checkpoint."""
        now = self._segments[-1]
        limits = self._limits
        if (
            self._tree.size - now.first < limits.segment_entries
            and self._bytes < limits.segment_bytes
            and abs(now_s - now.t_s) < limits.segment_s
        ):
            return
        begun = event(
            now_s * NS_PER_S,
            "segment-begun",
            generation=self._generation,
            bytes=self._bytes,
            peaks=[peak.hex() for peak in self._tree.peaks],
        )
        first = self._tree.size
        line = encode_line(first, begun)
        fd = create_segment(self._directory, first, line)
        os.close(self._fd)
        self._fd = fd
        path = self._directory / f"segment-{first:012d}.jsonl"
        self._segments.append(Segment(path, first, now_s, self._generation, self._bytes))
        self._tree = self._synced = self._tree.extended((leaf_hash(line),))
        self._bytes = self._synced_bytes = len(line) + 1
        self._head = (self._synced.size, self._synced.root())
        self._checkpoint_size = self._synced.size

    def _retire(self, now_s: int) -> None:
        if len(self._segments) < 2:
            return
        oldest, after = self._segments[:2]
        total_bytes = self._bytes + sum(segment.before_bytes for segment in self._segments[1:])
        if after.t_s <= now_s - self._limits.retention_s:
            reason = "age"
        elif total_bytes > self._limits.total_bytes:
            reason = "space"
        else:
            return
        told = event(
            now_s * NS_PER_S,
            "segment-retired",
            first=oldest.first,
            entries=after.first - oldest.first,
            reason=reason,
        )
        if self.append(told, durable=True):
            oldest.path.unlink()
            del self._segments[0]


def _reason(fault: str | None) -> str:
    words = {
        "ENOSPC": "disk-full",
        "EDQUOT": "disk-full",
        "EFBIG": "disk-full",
        "EROFS": "read-only",
    }
    return words.get(fault or "", "disk-fault")
