"""The ledger's files: segments of lines, and the head that was on disk at the last checkpoint.

    ledger/segment-000000000000.jsonl    the first line's index in the name
    ledger/segment-000000004100.jsonl
    ledger/head                          size and root; never ahead of the segments

Rules:
 * Reading takes no lock and changes nothing, so it works while the agent writes.
 * A segment's first line is on disk before anything follows it.
"""

import os
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.core.ledger import Head, encode_head, parse_head, parse_line
from agent.errors import LedgerError

_NAME = re.compile(r"segment-(\d{12})\.jsonl", re.ASCII)
_HEAD = "head"
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of the ledger, by its first line.

    Attributes:
        first: Index of its first line.
        t_s: When it was begun, s since the epoch.
        before_bytes: How long the segment before it was; 0 for the very first.
        before_crc: CRC-32 of that segment, 8 hex digits; "" for the very first.
    """

    path: Path
    first: int
    t_s: int
    generation: int
    before_bytes: int
    before_crc: str


def segment_paths(directory: Path) -> list[Path]:
    """Return the segments' files in the order of their lines; none where there is no ledger."""
    try:
        return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


def first_line(path: Path) -> bytes | None:
    """Return the first line without its line feed, or None if it is not complete."""
    with path.open("rb") as file:
        line = file.readline()
    return line[:-1] if line.endswith(b"\n") else None


def read_beginning(path: Path, line: bytes) -> Segment:
    """Return what a segment's first line says of it.

    Raises:
        LedgerError: It is no beginning of that segment.
    """
    entry = parse_line(line)
    facts: Any = entry.facts
    name = _NAME.fullmatch(path.name)
    if name is None or int(name[1]) != entry.n or "generation" not in facts:
        raise LedgerError("the segment does not begin as its name says")
    return Segment(
        path,
        entry.n,
        entry.t_s,
        facts["generation"],
        before_bytes=facts.get("bytes", 0),
        before_crc=facts.get("crc", ""),
    )


def is_as_it_was(segment: Segment, after: Segment) -> bool:
    """Return whether a segment has the bytes that the one after it tells of."""
    return f"{zlib.crc32(segment.path.read_bytes()):08x}" == after.before_crc


def open_segment(path: Path) -> int:
    """Return a descriptor that appends to a segment."""
    return os.open(path, _APPEND)


def create_segment(directory: Path, first: int, line: bytes) -> tuple[Path, int]:
    """Create a segment with its first line, on disk; return it and a descriptor that appends.

    Raises:
        OSError: The disk refused; there is no such segment.
    """
    path = directory / f"segment-{first:012d}.jsonl"
    with suppress(FileNotFoundError):
        path.unlink()  # Left from an attempt that did not end.
    fd = os.open(path, _APPEND | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(fd, line + b"\n")
        os.fsync(fd)
        sync_directory(directory)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            path.unlink()
        raise
    return path, fd


def write_all(fd: int, data: bytes) -> None:
    """Write all of the data; when it raises, a part of it may stand in the file."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync_directory(directory: Path) -> None:
    """Put a directory's names on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_head(directory: Path) -> Head | None:
    """Return the head that was on disk at the last checkpoint, or None where there is no file.

    Raises:
        LedgerError: The file is damaged.
    """
    try:
        data = (directory / _HEAD).read_bytes()
    except FileNotFoundError:
        return None
    if not data.endswith(b"\n"):
        raise LedgerError("the file `head` is not complete")
    return parse_head(data[:-1])


def write_head(directory: Path, head: Head) -> None:
    """Replace the file `head`; a crash leaves the old one or the new one.

    Raises:
        OSError: The disk refused; the old one is still there.
    """
    written = directory / "head.new"
    fd = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, encode_head(head) + b"\n")
        os.fdatasync(fd)
    finally:
        os.close(fd)
    written.replace(directory / _HEAD)
