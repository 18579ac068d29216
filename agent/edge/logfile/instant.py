"""Times of a log → whole µs, in integer ns since the epoch.

Rules:
 * Decimal text is converted exactly; a float never comes between the file and the integer.
 * The result is rounded to whole µs, ties to even.
 * A date without a zone is UTC. The zone of the machine never enters: the same log gives the same
   times everywhere.
"""

import datetime as dt
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

from agent.core.model import NS_PER_S, NS_PER_US
from agent.edge.logfile.report import UnreadableLine

# 1990-01-01: earlier times are those of a recorder that counts from its own start, or of a board
# without a clock, which starts in 1970. CAN itself is younger than any log before 1990.
FIRST_INSTANT_NS = 631_152_000 * NS_PER_S

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MAX_DIGITS = 20


def is_instant(t_ns: int) -> bool:
    """Return whether a time can be an instant of the calendar rather than a count from 0."""
    return t_ns >= FIRST_INSTANT_NS


def whole_us(t_ns: int) -> int:
    """Return a time in ns, rounded to whole µs, ties to even."""
    us, rest = divmod(t_ns, NS_PER_US)
    if rest > NS_PER_US // 2 or (rest == NS_PER_US // 2 and us % 2):
        us += 1
    return us * NS_PER_US


def decimal_ns(text: str, *, digits: int = 9) -> int:
    """Return decimal text as integer ns, not yet rounded to µs.

    Args:
        text: ASCII digits with at most one point, such as "12.345678".
        digits: Power of ten from the text's unit to ns: 9 for seconds, 6 for ms, 3 for µs.

    Returns:
        ns; digits beyond 1 ns are rounded, ties to even.

    Raises:
        UnreadableLine: The text is no such number.
    """
    whole, _, part = text.partition(".")
    if not (whole.isdecimal() and whole.isascii() and len(whole) <= _MAX_DIGITS):
        raise UnreadableLine("the time is not a decimal number")
    if not part:
        return int(whole) * _power(digits)
    if not (part.isdecimal() and part.isascii() and len(part) <= _MAX_DIGITS):
        raise UnreadableLine("the time is not a decimal number")
    if len(part) <= digits:
        return int(whole + part) * _power(digits - len(part))
    return scaled_ns(text, factor=_power(digits))


def scaled_ns(text: str, *, factor: int) -> int:
    """Return decimal text times `factor` ns, rounded to whole ns, ties to even.

    Raises:
        UnreadableLine: The text is no number.
    """
    try:
        return int((Decimal(text) * factor).to_integral_value(ROUND_HALF_EVEN))
    except (InvalidOperation, ValueError, OverflowError) as exc:
        raise UnreadableLine("the time is not a decimal number") from exc


def utc_ns(date: dt.datetime) -> int:
    """Return a naive date, taken as UTC, as ns since the epoch."""
    us = (date.replace(tzinfo=dt.UTC) - _EPOCH) // dt.timedelta(microseconds=1)
    return us * NS_PER_US


def _power(exponent: int) -> int:
    """Return a power of ten as the integer that it is (mypy allows for negative exponents)."""
    return int(10**exponent)
