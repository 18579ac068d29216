"""The last segment, open for writing: what is written of it, and what of that is on disk.

Rules:
 * What is written ends with a whole line: half a line is cut off, at the latest before the next.
 * When the disk refuses to sync, all that was not on disk before is taken back. What the kernel
   could not write it may drop, and say nothing when it is asked again.
"""

import os
import zlib
from contextlib import suppress

from agent.core.ledger import encode_line
from agent.core.ledgerevent import Event
from agent.core.merkle import Frontier, leaf_hash
from agent.edge.ledger.reserve import Reserve, is_full
from agent.edge.ledger.segment import write_all


class Tail:
    """An open segment.

    Attributes:
        tree: With all that is written.
        size_bytes: How long the segment is with it.
        crc: CRC-32 of the segment with it.
        synced: The tree with what is on disk.
    """

    def __init__(self, fd: int, tree: Frontier, *, size_bytes: int, crc: int) -> None:
        """Take a segment over that is wholly on disk.

        Args:
            fd: Appends to it; closed by `close`.
            tree: With its last line.
            size_bytes: Its length.
            crc: Its CRC-32.
        """
        self._fd = fd
        self.tree = self.synced = tree
        self.size_bytes = self._synced_bytes = size_bytes
        self.crc = self._synced_crc = crc
        self._is_ragged = False  # Half a line stands at the end.

    def add(self, happened: Event, reserve: Reserve | None = None) -> None:
        """Write a line.

        Args:
            happened: What it says.
            reserve: Gives room on a full disk; None where the line is not worth it.

        Raises:
            OSError: The disk refused; nothing changed.
        """
        line = encode_line(self.tree.size, happened)
        data = line + b"\n"
        try:
            self._write(data)
        except OSError as exc:
            if reserve is None or not is_full(exc) or not reserve.give(len(data)):
                raise
            self._write(data)
        self.tree = self.tree.extended((leaf_hash(line),))
        self.size_bytes += len(data)
        self.crc = zlib.crc32(data, self.crc)

    def sync(self) -> None:
        """Put on disk what is written.

        Raises:
            OSError: The disk refused; `take_back` is to be called.
        """
        os.fdatasync(self._fd)
        self.synced = self.tree
        self._synced_bytes, self._synced_crc = self.size_bytes, self.crc

    def take_back(self) -> int:
        """Go back to what is on disk; return how many lines were written since."""
        lines = self.tree.size - self.synced.size
        self.tree = self.synced
        self.size_bytes, self.crc = self._synced_bytes, self._synced_crc
        self._is_ragged = True
        with suppress(OSError):
            self._mend()
        return lines

    def close(self) -> None:
        """Close the segment; what is written stays so."""
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        self._mend()
        try:
            write_all(self._fd, data)
        except OSError:
            self._is_ragged = True
            self._mend()
            raise

    def _mend(self) -> None:
        if self._is_ragged:
            os.ftruncate(self._fd, self.size_bytes)
            self._is_ragged = False
