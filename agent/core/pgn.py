"""J1939 identifiers: which parameter group a frame belongs to (SAE J1939-21 5.1 and 5.2)."""

from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, CAN_ERR_FLAG, CAN_RTR_FLAG

SOURCE_MASK = 0xFF
_PDU2_FIRST_FORMAT = 240  # SAE J1939-21 5.2.3: below it the PDU specific byte is a destination.


def is_j1939_id(can_id: int) -> bool:
    """Tell whether a frame can carry a parameter group: extended, no remote or error frame."""
    return can_id & (CAN_EFF_FLAG | CAN_RTR_FLAG | CAN_ERR_FLAG) == CAN_EFF_FLAG


def pgn_of(can_id: int) -> int:
    """Return the parameter group number of an extended identifier (SAE J1939-21 5.1.2)."""
    pgn = (can_id & CAN_EFF_MASK) >> 8 & 0x3FFFF
    return pgn & 0x3FF00 if is_pdu1(pgn) else pgn


def is_pdu1(pgn: int) -> bool:
    """Tell whether the PDU specific byte is a destination (SAE J1939-21 5.2.3)."""
    return (pgn >> 8) & 0xFF < _PDU2_FIRST_FORMAT
