"""Bytes of a message that are characters, as the text they stand for, or why they stand for none.

Rules:
 * What a sender fills with is no part of a text: 0x00, 0xFF and spaces before and behind it. A text
   of nothing else is "not available" (SAE J1939-71 table 1; SAE J1979 pads with 0x00).
 * A J1939 text ends at its delimiter `*` (SAE J1939-71).
 * Nothing is replaced or mended. One byte that is no printable ASCII character, or for a vehicle
   identification number one that ISO 3779 does not have, and there is no text.
 * A vehicle identification number goes out as such and under no other name: whatever looks like one
   is no other text.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final

_FILL: Final = b"\x00\xff "
_J1939_DELIMITER: Final = b"*"
_ASCII: Final = re.compile(rb"[ -~]+")
# ISO 3779: 17 characters, capitals without I, O and Q. The check digit is North America's alone.
_VIN: Final = re.compile(rb"[A-HJ-NPR-Z0-9]{17}")


class TextKind(StrEnum):
    """What the characters are, as the mapping says it."""

    ASCII = "ascii"
    VIN = "vin"


class NoText(StrEnum):
    """Why bytes are no text."""

    NOT_AVAILABLE = "not available"
    ODD = "other characters"


def text_reader(kind: TextKind, *, is_j1939: bool) -> Callable[[bytes], str | NoText]:
    """Return the function from a signal's bytes to its text, or why there is none.

    Args:
        kind: What the characters are.
        is_j1939: The bytes are of a J1939 parameter group.
    """

    def read(raw: bytes) -> str | NoText:
        if is_j1939:
            raw = raw.partition(_J1939_DELIMITER)[0]
        found = raw.strip(_FILL)
        # A control unit that was never told its vehicle's number says one character 17 times.
        if not found or (kind is TextKind.VIN and len(set(found)) == 1):
            return NoText.NOT_AVAILABLE
        is_vin = _VIN.fullmatch(found) is not None
        if is_vin != (kind is TextKind.VIN) or _ASCII.fullmatch(found) is None:
            return NoText.ODD
        return found.decode("ascii")

    return read
