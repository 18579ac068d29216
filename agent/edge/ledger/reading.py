"""The whole ledger, read by whoever wants to know, also while the agent writes it.

Rules:
 * No lock is taken and nothing is changed.
 * A segment that the agent removes or begins meanwhile is no fault. A last line that it is just
   writing is waited for.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from agent.core.ledger import Entry, Replay, parse_line
from agent.edge.ledger.segment import read_head, segment_paths
from agent.errors import LedgerError

_WAIT_S = 0.05
_WAITS = 20

Place = tuple[str, int]  # A segment's name, and the number of a line in it from 1.


def read_entries(directory: Path) -> Iterator[tuple[Place, Entry | LedgerError]]:
    """Yield each line's place and entry, or what is wrong with that line alone.

    Raises:
        LedgerError: There is no ledger, or it cannot be read.
    """
    for place, line in _lines(directory):
        try:
            yield place, parse_line(line)
        except LedgerError as exc:
            yield place, exc


def replay_all(directory: Path, replay: Replay) -> Iterator[tuple[Entry, bytes]]:
    """Hold every line against the rules, and the whole against `head`; yield entries and lines.

    Args:
        directory: Of the ledger.
        replay: Nothing read yet.

    Raises:
        LedgerError: There is no ledger, it cannot be read, or a line breaks a rule: the first such
            line is named.
    """
    try:
        head = read_head(directory)  # Before the lines: they are never behind it.
    except LedgerError as exc:
        raise LedgerError(f"head: {exc.message}") from exc
    except OSError as exc:
        raise _unreadable(directory, exc) from exc
    if head is not None:
        replay.want(head.size)
    for (name, number), line in _lines(directory):
        if number == 1:
            replay.begin_segment()
        try:
            entry = replay.feed(line)
        except LedgerError as exc:
            raise LedgerError(f"{name}:{number}: {exc.message}", hint=exc.hint) from exc
        yield entry, line
    if head is not None:
        try:
            replay.check_head(head)
        except LedgerError as exc:
            raise LedgerError(f"head: {exc.message}") from exc


def _lines(directory: Path) -> Iterator[tuple[Place, bytes]]:
    """Yield every line with its place, segments that are begun meanwhile included."""
    has_begun = False
    try:
        paths = _present(directory)
        while paths:
            for path in paths:
                try:
                    file = path.open("rb")
                except FileNotFoundError:
                    if has_begun:
                        raise
                    continue  # The oldest, removed since we looked.
                has_begun = True
                with file:
                    yield from _segment_lines(path.name, file)
            paths = [path for path in segment_paths(directory) if path > paths[-1]]
    except OSError as exc:
        raise _unreadable(directory, exc) from exc


def _present(directory: Path) -> list[Path]:
    """Return the segments there are."""
    paths = segment_paths(directory)
    if not paths:
        raise LedgerError(
            f"there is no ledger in {directory}", hint="name the state directory with --state"
        )
    return paths


def _segment_lines(name: str, file: BinaryIO) -> Iterator[tuple[Place, bytes]]:
    number = 0
    while line := file.readline():
        number += 1
        for _ in range(_WAITS):
            if line.endswith(b"\n"):
                break
            time.sleep(_WAIT_S)
            line += file.readline()
        else:
            raise LedgerError(
                f"{name}:{number}: the line is not complete",
                hint="after a power cut the agent mends that when it starts",
            )
        yield (name, number), line[:-1]


def _unreadable(directory: Path, exc: OSError) -> LedgerError:
    return LedgerError(
        f"the ledger in {directory} cannot be read: {exc.strerror}",
        hint="its files belong to the agent's user",
    )
