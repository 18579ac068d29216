"""One VSS path and the signal that stands for it: what a mapping and a DBC file agree on."""

from dataclasses import dataclass

from agent.core.catalogue import Scope
from agent.core.catalogue import Signal as VssSignal
from agent.core.decode import Field
from agent.core.mapping import Entry
from agent.core.units import Conversion

FRAME_BYTES = 8  # ISO 11898-1: the most that a classic CAN frame carries.


@dataclass(frozen=True, slots=True)
class Bound:
    """One VSS path and the signal that stands for it on one bus.

    Attributes:
        entry: The mapping's line.
        scope: The catalogue's scope that holds the path.
        vss: Path, datatype and unit from the catalogue.
        bus: The bus, or None for every bus.
        message: The DBC message's name.
        can_id: The message's id as Linux canid_t; for J1939 as the DBC gives it.
        is_j1939: The message is matched by its PGN.
        length: The message's bytes; at least what the signals need that are taken.
        field: The signal's layout and conversion.
        conditions: Signals of the same message that must have these physical values.
        conversion: From the entry's unit to the catalogue's.
    """

    entry: Entry
    scope: Scope
    vss: VssSignal
    bus: str | None
    message: str
    can_id: int
    is_j1939: bool
    length: int
    field: Field
    conditions: tuple[tuple[Field, int], ...]
    conversion: Conversion

    @property
    def is_transported(self) -> bool:
        """Whether the message comes in several frames of a transport protocol."""
        return self.entry.isotp is not None or (self.is_j1939 and self.length > FRAME_BYTES)
