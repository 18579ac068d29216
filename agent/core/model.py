"""Values that cross module borders in the core.

A frame has no class: on the capture path it is four plain arguments (an object per frame
costs more than the whole gate):

    t_ns     integer ns since the epoch, whole µs in recorded logs
    bus      name of the channel or bus it came from
    can_id   Linux canid_t: the identifier with CAN_EFF_FLAG, CAN_RTR_FLAG and CAN_ERR_FLAG, so that
             standard 0x100, extended 0x100, a remote frame and an error frame are different keys
    data     payload, 0..64 bytes
"""

from collections.abc import Iterator
from dataclasses import dataclass

CAN_EFF_FLAG = 0x8000_0000  # linux/can.h: extended (29-bit) identifier
CAN_RTR_FLAG = 0x4000_0000  # linux/can.h: remote transmission request
CAN_ERR_FLAG = 0x2000_0000  # linux/can.h: error message frame
CAN_SFF_MASK = 0x0000_07FF
CAN_EFF_MASK = 0x1FFF_FFFF

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

Frame = tuple[int, str, int, bytes]  # (t_ns, bus, can_id, data)

Value = bool | int | float | str  # What a sample carries, in the catalogue's datatype and unit.


@dataclass(frozen=True, slots=True)
class Place:
    """How far the frames of a bus had come, for whoever keeps them until they are stored.

    Attributes:
        bus: The bus's name in frames.
        ring: Which memory keeps them; places of another one mean nothing there.
        position: How many frames came before it.
    """

    bus: str
    ring: int
    position: int

    def earlier(self, frames: int) -> "Place":
        """Return the place so many frames before this one."""
        return Place(self.bus, self.ring, self.position - frames)


@dataclass(frozen=True, slots=True)
class Sample:
    """One permitted value of one signal, as it is printed and sealed.

    Attributes:
        t_ns: ns since the epoch, rounded down to whole ms.
        value: The value after every constraint, in `unit`.
        unit: The catalogue's unit, verbatim, or None.
        fn: What became of the values of a window, such as "max"; None for a value as it was taken.
        window_s: Length of the window, which began at `t_ns`; None where `fn` is.
    """

    t_ns: int
    recipient: str
    grant_id: str
    scope: str
    path: str
    value: Value
    unit: str | None
    fn: str | None = None
    window_s: int | float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """The samples of one VSS path in one batch, of an aggregate those of one function.

    Attributes:
        scope: The scope under which the path was granted.
        datatype: VSS datatype from the catalogue, verbatim, or that of the function's results.
        unit: The catalogue's unit, verbatim, or None.
        scale: Step of the values where the source is linear (value = n * scale + offset), else 1;
            a hint for the codec, which checks it value by value.
        offset: Offset that belongs to `scale`, else 0.
        times_ms: ms since the epoch; not always rising (a log's time may run backwards).
        values: One for each time, after every constraint.
        fn: As in `Sample`.
        window_s: As in `Sample`, in whole ms.
    """

    scope: str
    path: str
    datatype: str
    unit: str | None
    scale: int | float
    offset: int | float
    times_ms: tuple[int, ...]
    values: tuple[Value, ...]
    fn: str | None = None
    window_s: int | float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one grant between two moments. Never empty."""

    grant_id: str
    rev: int
    recipient: str
    columns: tuple[Column, ...]

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(len(column.values) for column in self.columns)

    @property
    def span_ms(self) -> tuple[int, int]:
        """Earliest and latest sample time, ms since the epoch."""
        return (
            min(min(column.times_ms) for column in self.columns),
            max(max(column.times_ms) for column in self.columns),
        )

    def samples(self) -> Iterator[Sample]:
        """Yield the samples column by column."""
        for column in self.columns:
            for t_ms, value in zip(column.times_ms, column.values, strict=True):
                yield Sample(
                    t_ns=t_ms * NS_PER_MS,
                    recipient=self.recipient,
                    grant_id=self.grant_id,
                    scope=column.scope,
                    path=column.path,
                    value=value,
                    unit=column.unit,
                    fn=column.fn,
                    window_s=column.window_s,
                )
