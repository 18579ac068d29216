"""Times and spans of time as a person reads them, in UTC."""

from datetime import UTC, datetime

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def moment(time_s: int | None, *, otherwise: str = "without end") -> str:
    """Return a time, s since the epoch, as in 2026-11-24 10:00 UTC."""
    if time_s is None:
        return otherwise
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "in the far future" if time_s > 0 else "long ago"


def span(span_s: int) -> str:
    """Return a span of time in its two largest units, as in 1 h 20 min."""
    parts = []
    for unit, size in _UNITS:
        count, span_s = divmod(span_s, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
