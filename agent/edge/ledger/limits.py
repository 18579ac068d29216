"""When a checkpoint is due, a segment ends, and an old one goes."""

from dataclasses import dataclass


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
