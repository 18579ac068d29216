"""One log, or several as one recording → frames.

| format  | suffixes           | the channel's name, NAME of --channel NAME=BUS |
|---------|--------------------|------------------------------------------------|
| candump | .log, .txt, .candump | the interface ("can0")                       |
| ASC     | .asc               | the channel's number ("1")                     |
| TRC     | .trc               | the bus number, "1" where the version has none |
| BLF     | .blf               | the channel's number ("1")                     |
| MF4     | .mf4, .mdf         | the bus channel ("1"), see mf4.py              |
| CSV     | .csv               | the bus number ("0"), "1" where there is none  |

Rules:
 * What the file's first bytes say wins over its suffix; each format may also be gzip.
 * Frames come in file order, remote and error frames among them; Rx and Tx count alike.
 * Several logs are merged by time. The order inside a log is kept, also where its time runs
   backwards; of frames with the same time the earlier named log's come first.
 * The first block is read when a log is opened, so that what is wrong with the file as a whole is
   said then, and `report.absolute_time` is known before the first frame.
"""

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.core.model import Frame
from agent.edge.logfile import asc, blf, candump, mf4, table, trc
from agent.edge.logfile.report import LogReport
from agent.edge.logfile.source import Source
from agent.errors import LogError

_Reader = Callable[[Source, LogReport], Iterator[list[Frame]]]

_READERS: dict[str, _Reader] = {
    "candump": candump.read_candump,
    "ASC": asc.read_asc,
    "TRC": trc.read_trc,
    "BLF": blf.read_blf,
    "MF4": mf4.read_mf4,
    "CSV": table.read_csv,
}
_BY_SUFFIX = {
    ".log": "candump",
    ".txt": "candump",
    ".candump": "candump",
    ".asc": "ASC",
    ".trc": "TRC",
    ".csv": "CSV",
}
_BY_LINE: tuple[tuple[Callable[[str], bool], str], ...] = (
    (candump.is_candump, "candump"),
    (asc.is_asc, "ASC"),
    (trc.is_trc, "TRC"),
    (table.is_csv, "CSV"),
)
_HINT = "candump (-l, -L, -ta), Vector ASC and BLF, PEAK TRC, MDF4 and CSV are read, each also gzip"


class Log:
    """One log, opened by `open_log`. Iterating gives its frames, once.

    Attributes:
        path: The file.
        report: What was read so far, and what could not be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source = Source(path)
        try:
            self.report = LogReport(file=str(path), format=_format(self._source))
            self._blocks = _READERS[self.report.format](self._source, self.report)
            self._first = next(self._blocks, [])
        except BaseException:
            self._source.close()
            raise

    @property
    def progress(self) -> float:
        """Fraction of the file that has been read, 0 to 1."""
        return self._source.progress

    def blocks(self) -> Iterator[list[Frame]]:
        """Yield the frames in lists, which costs less than one by one.

        Raises:
            LogError: The log ended, nothing in it could be read, and something should have been.
        """
        for frames in chain((self._first,), self._blocks):
            self.report.frames += len(frames)
            yield frames
        if self.report.frames == 0 and self.report.broken:
            first = self.report.first_broken[0]
            raise LogError(
                f"no frame of it can be read as {self.report.format}: {first.reason}",
                file=self.report.file,
                line=first.line,
                hint=_HINT,
            )

    def __iter__(self) -> Iterator[Frame]:
        return chain.from_iterable(self.blocks())

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Recording:
    """Several logs as one. Iterating gives the frames of all, merged by time, once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.logs: list[Log] = []
        try:
            for path in paths:
                self.logs.append(Log(path))
        except BaseException:
            self.close()
            raise

    @property
    def reports(self) -> tuple[LogReport, ...]:
        """The report of each log, in the order in which they were named."""
        return tuple(log.report for log in self.logs)

    @property
    def absolute_time(self) -> bool:
        """Whether the times of every log are instants."""
        return all(log.report.absolute_time for log in self.logs)

    @property
    def progress(self) -> float:
        """Fraction of all files that has been read, 0 to 1."""
        return sum(log.progress for log in self.logs) / len(self.logs) if self.logs else 1.0

    def __iter__(self) -> Iterator[Frame]:
        if len(self.logs) == 1:
            return iter(self.logs[0])
        return heapq.merge(*self.logs, key=itemgetter(0))

    def close(self) -> None:
        """Close every file; closing twice is harmless."""
        for log in self.logs:
            log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_log(path: Path) -> Log:
    """Open a log and read its first block.

    Raises:
        LogError: The file is missing, empty, a folder, of an unknown format, or unreadable as a
            whole.
    """
    return Log(path)


def read_log(path: Path) -> Iterator[Frame]:
    """Yield the frames of one log, in file order; who needs its report takes `open_log`.

    Raises:
        LogError: As `open_log` and `Log.blocks`.
    """
    with open_log(path) as log:
        yield from log


def read_logs(paths: Sequence[Path]) -> Recording:
    """Open several logs as one recording.

    Raises:
        LogError: As `open_log`, for the first log that cannot be opened.
    """
    return Recording(paths)


def _format(source: Source) -> str:
    """Return the name of the log's format, by its first bytes, else by its suffix."""
    if source.head.startswith(blf.MAGIC):
        return "BLF"
    if source.head.startswith(mf4.MAGICS):
        return "MF4"
    for line in re.split(r"[\r\n]+", source.head.decode("latin-1")):
        for is_it, name in _BY_LINE:
            if is_it(line.strip()):
                return name
    suffixes = [suffix.lower() for suffix in source.path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".gzip"):
        suffixes.pop()
    if suffixes and suffixes[-1] in _BY_SUFFIX and b"\0" not in source.head:
        return _BY_SUFFIX[suffixes[-1]]
    raise LogError(
        "neither its content nor its name is that of a known log format",
        file=str(source.path),
        hint=_HINT,
    )
