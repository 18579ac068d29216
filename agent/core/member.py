"""Reading the members of a JSON object in a policy: typed, complete, nothing left over.

Rules:
 * A member that is not in the list of allowed ones refuses the policy: what the agent does not
   understand might be what limits the consent.
 * A message names the place, what was found there by kind, and what is expected; it repeats a
   value only where the value is a name.
 * Booleans are not numbers, 1.0 is not an integer.
"""

import re
from collections.abc import Iterator
from typing import Any

from agent.core.strictjson import shown
from agent.errors import PolicyRejected

ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
MAX_TEXT = 256
MAX_TIME_S = 253_402_300_799  # End of the year 9999; ms since the epoch lie beyond it.

# Lengths of nominal years and months are the shortest that a calendar has, so that nothing is
# kept longer than was promised.
_DURATION = re.compile(
    r"P(?=.)(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,5})W)?(?:(\d{1,5})D)?"
    r"(?:T(?=.)(?:(\d{1,7})H)?(?:(\d{1,8})M)?(?:(\d{1,10})S)?)?",
    re.ASCII,
)
_DURATION_S = (365 * 86_400, 28 * 86_400, 7 * 86_400, 86_400, 3_600, 60, 1)
_MAX_DURATION_S = 100 * 365 * 86_400  # Fits MQTT's 32-bit message expiry.

_KINDS = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}


class Members:
    """The members of one object, each read by the kind that it must have."""

    def __init__(self, raw: Any, place: str, allowed: tuple[str, ...]) -> None:
        """Check that `raw` is an object with no other members than the allowed ones.

        Args:
            raw: Any decoded JSON value.
            place: Where it stands, as in "grant gr_1"; begins every message.
            allowed: Names of the members that it may have.

        Raises:
            PolicyRejected: With reason `type` or `unknown-member`.
        """
        if not isinstance(raw, dict):
            raise wrong_type(place, "an object", raw)
        self._raw = raw
        self.place = place
        self._hint = f"the members are {', '.join(allowed)}"
        for name in raw:
            if name not in allowed:
                raise PolicyRejected(
                    f"{place}: unknown member {shown(name)}",
                    reason="unknown-member",
                    hint=self._hint,
                )

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def any(self, name: str) -> Any:
        """Return a member of any kind."""
        if name not in self._raw:
            raise PolicyRejected(
                f"{self.place}: {name} is missing", reason="missing-member", hint=self._hint
            )
        return self._raw[name]

    def text(self, name: str) -> str:
        """Return printable text of 1 to 256 characters."""
        return as_text(self.any(name), f"{self.place}: {name}")

    def id(self, name: str) -> str:
        """Return an id: letters, digits, `_` and `-`, at most 64."""
        return as_id(self.any(name), f"{self.place}: {name}")

    def sha256(self, name: str) -> str:
        """Return 64 lower-case hexadecimal digits."""
        text = self.text(name)
        if not SHA256.fullmatch(text):
            raise PolicyRejected(
                f"{self.place}: {name} is not 64 lower-case hexadecimal digits", reason="range"
            )
        return text

    def integer(self, name: str) -> int:
        """Return an integer that is not negative."""
        value = self.any(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(f"{self.place}: {name}", "an integer", value)
        if value < 0:
            raise PolicyRejected(f"{self.place}: {name} is negative", reason="range")
        return value

    def time_s(self, name: str) -> int:
        """Return whole seconds since the epoch (RFC 7519 NumericDate without a fraction)."""
        value = self.integer(name)
        if value > MAX_TIME_S:
            raise PolicyRejected(
                f"{self.place}: {name} lies after the year 9999",
                reason="range",
                hint="times are whole seconds since 1970, not milliseconds",
            )
        return value

    def duration_s(self, name: str) -> int:
        """Return the seconds of an ISO 8601 duration in whole numbers, above zero."""
        text = self.text(name)
        match = _DURATION.fullmatch(text)
        parts = match.groups() if match else ()
        seconds = sum(int(n or 0) * unit_s for n, unit_s in zip(parts, _DURATION_S, strict=False))
        if not 0 < seconds <= _MAX_DURATION_S:
            raise PolicyRejected(
                f"{self.place}: {name} {shown(text)} is no ISO 8601 duration above zero and up to "
                "100 years",
                reason="range",
                hint="write whole numbers, as in P30D or PT12H",
            )
        return seconds

    def elements(self, name: str) -> list[Any]:
        """Return a list, possibly empty."""
        value = self.any(name)
        if not isinstance(value, list):
            raise wrong_type(f"{self.place}: {name}", "a list", value)
        return value

    def some_elements(self, name: str) -> list[Any]:
        """Return a list of at least one element."""
        value = self.elements(name)
        if not value:
            raise PolicyRejected(f"{self.place}: {name} is empty", reason="range")
        return value

    def by_id(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield the members of an object whose names are ids."""
        place = f"{self.place}: {name}"
        value = self.any(name)
        if not isinstance(value, dict):
            raise wrong_type(place, "an object", value)
        for key, member in value.items():
            yield as_id(key, place), member


def as_text(value: Any, place: str) -> str:
    """Return the value if it is printable text of 1 to 256 characters."""
    if not isinstance(value, str):
        raise wrong_type(place, "text", value)
    if not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        raise PolicyRejected(f"{place} is not 1 to {MAX_TEXT} printable characters", reason="range")
    return value


def as_id(value: Any, place: str) -> str:
    """Return the value if it is an id."""
    if not isinstance(value, str):
        raise wrong_type(place, "text", value)
    if not ID.fullmatch(value):
        raise PolicyRejected(
            f"{place}: the id {shown(value)} does not match {ID.pattern}", reason="id"
        )
    return value


def unique(values: list[str], place: str, noun: str) -> tuple[str, ...]:
    """Return the values if none stands twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise PolicyRejected(f"{place}: {noun} {shown(value)} stands twice", reason="duplicate")
    return tuple(values)


def wrong_type(place: str, expected: str, found: Any) -> PolicyRejected:
    """Return the refusal of a value of another kind."""
    kind = _KINDS.get(type(found), "a number")
    if expected == "an integer" and isinstance(found, float):
        kind = "a number with a fraction or an exponent"
    return PolicyRejected(f"{place} is {kind}, expected {expected}", reason="type")
