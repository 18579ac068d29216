"""JSON as a signed document may contain it: one meaning, whoever reads it.

Rules:
 * The bytes are UTF-8 without a byte order mark, hold one value and nothing behind it.
 * No name stands twice in one object: two readers must not see two documents
   (RFC 8259 section 4 leaves the result open; I-JSON, RFC 7493 section 2.3, forbids it).
 * No NaN or Infinity, no number that a double turns into infinity, no integer from 2**53 on
   (RFC 7493 section 2.2: other readers would round it).
 * No lone surrogates (RFC 7493 section 2.1).
 * Size and depth are bounded before anything is built, so no input exhausts the stack.
"""

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 8  # A policy needs 8: the object in grants/details/constraints/windows.
MAX_INTEGER = 2**53 - 1  # RFC 7493 section 2.2

# A string is one token, so brackets in it do not count. Possessive quantifiers and an optional
# closing quote keep the scan linear also for hostile text.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_MAX_LITERAL = 17  # Characters of -(2**53 - 1); int() itself gives up beyond 4300 digits.


class StrictJsonError(ValueError):
    """The bytes are not one strict JSON value; callers turn it into an error of their own.

    Attributes:
        reason: `too-large` or `json`.
    """

    def __init__(self, fault: str, *, reason: str = "json") -> None:
        super().__init__(fault)
        self.reason = reason


def parse(data: bytes, *, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:
    """Return the one JSON value that the bytes stand for.

    Args:
        data: The document.
        max_bytes: Longest document that is looked at.
        max_depth: Deepest nesting of arrays and objects; a bare number has depth 0.

    Raises:
        StrictJsonError: Nothing else, for any bytes.
    """
    if len(data) > max_bytes:
        raise StrictJsonError(
            f"{len(data)} bytes long, at most {max_bytes} are allowed", reason="too-large"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise StrictJsonError(f"byte {exc.start} is not UTF-8") from exc
    if text.startswith("\ufeff"):
        raise StrictJsonError("it begins with a byte order mark")
    _check_depth(text, max_depth)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except json.JSONDecodeError as exc:
        fault = exc.msg[:1].lower() + exc.msg[1:]
        raise StrictJsonError(f"line {exc.lineno}, column {exc.colno}: {fault}") from exc
    try:
        # The decoder has paired what can be paired; what is left over cannot be encoded.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as exc:
        raise StrictJsonError("a string holds half of a surrogate pair") from exc
    return value


def shown(text: str, limit: int = 40) -> str:
    """Return text from outside as it may stand in a message: quoted, ASCII, short."""
    return ascii(text if len(text) <= limit else text[: limit - 3] + "...")


def _check_depth(text: str, max_depth: int) -> None:
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth > max_depth:
                raise StrictJsonError(f"it nests deeper than {max_depth} levels")
        elif token[0] in ("]", "}"):
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise StrictJsonError(f"the name {shown(name)} stands twice in one object")
        members[name] = value
    return members


def _constant(literal: str) -> NoReturn:
    raise StrictJsonError(f"{literal} is no JSON number")


def _integer(literal: str) -> int:
    if len(literal) > _MAX_LITERAL or abs(value := int(literal)) > MAX_INTEGER:
        raise StrictJsonError("an integer is 2**53 or more in magnitude")
    return value


def _number(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise StrictJsonError("a number is too large for a double")
    return value
