"""Reading one log in a test."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from agent.core.model import Frame
from agent.edge.logfile import LogReport, open_log
from tests.unit.edge.log_writers import S

US = 1_000
MS = 1_000_000


def read(tmp_path: Path, name: str, text: str | bytes) -> tuple[list[Frame], LogReport]:
    """Return the frames of a log with this content, and its report."""
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with open_log(path) as log:
        return list(log), log.report


def utc_ns(year: int, month: int, day: int, *time: int) -> int:
    """Return a date in UTC as ns since the epoch."""
    return int(dt.datetime(year, month, day, *time, tzinfo=dt.UTC).timestamp()) * S


def later(frames: Sequence[Frame], start_ns: int) -> list[Frame]:
    """Return the frames of a log that counts from 0, as of one that starts then."""
    return [(start_ns + t_ns, *rest) for t_ns, *rest in frames]
