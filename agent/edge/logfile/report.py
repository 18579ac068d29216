"""What became of a log: how many frames it gave, and what in it could not be read.

Rules:
 * Whatever is not a frame is counted: as skipped when it is whole but no CAN frame (a statistic, a
   comment event), as broken when it should have been a frame.
 * A broken line costs that line. Reading goes on.
 * No reason repeats what stands in the line: it may be a position or a VIN.
"""

from dataclasses import dataclass, field

KEPT_BROKEN = 10  # Enough to find the cause; a log of garbage must not fill the memory.


class UnreadableLine(ValueError):  # noqa: N818 - control flow inside this package, never leaves it
    """A line that should have been a frame; the message is the reason, without the line's text."""


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """Something in a log that could not be read.

    Attributes:
        line: 1-based line number, or None in binary formats, whose reason says where.
        reason: Why, without the line's content.
    """

    line: int | None
    reason: str


@dataclass(slots=True)
class LogReport:
    """Filled while the log is read; up to one block ahead of the frames that were taken from it.

    Attributes:
        file: The log as the user named it.
        format: candump, ASC, TRC, BLF, CSV or MF4.
        frames: Frames given, remote and error frames among them.
        remote: Remote frames among them.
        errors: Error frames among them.
        skipped: Lines or objects that are whole, but no CAN frame.
        broken: Lines or objects that could not be read.
        first_broken: The first of them, at most KEPT_BROKEN.
        absolute_time: False where the log counts from 0 (or from the start of its recorder), so
            that its times are no instants.
        notes: What an engineer should know about the log, each said once.
    """

    file: str
    format: str
    frames: int = 0
    remote: int = 0
    errors: int = 0
    skipped: int = 0
    broken: int = 0
    first_broken: list[BrokenLine] = field(default_factory=list)
    absolute_time: bool = False
    notes: list[str] = field(default_factory=list)

    def add_broken(self, line: int | None, reason: str) -> None:
        """Count one unreadable line or object."""
        self.broken += 1
        if len(self.first_broken) < KEPT_BROKEN:
            self.first_broken.append(BrokenLine(line=line, reason=reason))
