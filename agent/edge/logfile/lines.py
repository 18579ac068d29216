"""Text logs, line by line: what every text format but candump shares."""

from collections.abc import Callable, Iterator

from agent.core.model import Frame
from agent.edge.logfile.report import LogReport, UnreadableLine
from agent.edge.logfile.source import Source

LineParser = Callable[[str], Frame | None]


def read_lines(
    source: Source, report: LogReport, parse: LineParser, *, after: int = 0
) -> Iterator[list[Frame]]:
    """Yield the frames of a text log in blocks.

    Args:
        source: The log.
        report: Broken lines are counted here.
        parse: One line, stripped and not empty → a frame, or None where it holds none.
        after: Leading lines that are not given to `parse` (a CSV header).
    """
    number = 0
    for piece in source.pieces():
        frames: list[Frame] = []
        lines = piece.split("\n")
        if not lines[-1]:
            lines.pop()
        for number, raw in enumerate(lines, number + 1):  # noqa: B020 - goes on counting
            line = raw.strip()
            if not line or number <= after:
                continue
            try:
                frame = parse(line)
            except UnreadableLine as exc:
                report.add_broken(number, str(exc))
            except (ValueError, IndexError):
                # int() and fromhex() quote what they were given, so their text goes no further.
                report.add_broken(number, "a field is missing or is no number")
            else:
                if frame is not None:
                    frames.append(frame)
        yield frames
    if source.damage is not None:
        report.add_broken(number + 1, source.damage)
