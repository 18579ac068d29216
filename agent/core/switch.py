"""The vehicle's privacy switch on CAN: one signal that says "private", or does not.

Rules:
 * It can only restrict: while it says private nothing is taken, whatever the plan allows; while it
   does not, the plan decides.
 * It is the one signal that is read without a grant. Its value is compared here and goes no
   further: it is neither kept, logged nor sent.
 * Where it is not known it says what the configuration says of a fault, by default private: before
   it was heard, when its sender reports an error or "not available" (SAE J1939-71), and when it has
   not been heard for too long. A payload that is too short for it says nothing.
 * A clock that was set back leaves it unknown too: how long ago it was heard, nobody knows then.
 * The frame that turns it to private is not taken from, nor any behind it.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.core.dbc import DbcFile
from agent.core.decode import Field, compile_extract, field_of, physical
from agent.core.model import CAN_EFF_FLAG, Frame
from agent.core.plan import is_j1939_id, pgn_of
from agent.core.transform import first_reserved
from agent.errors import ConfigError

_CACHE = 8192  # Ids whose answer is kept.


@dataclass(frozen=True, slots=True)
class SwitchSignal:
    """Which signal the switch is.

    Attributes:
        bus: The only bus it is heard on.
        can_id: The message's id as Linux canid_t; for J1939 as the DBC gives it.
        is_j1939: The message is matched by its PGN.
        private: Physical values that mean private.
    """

    bus: str
    can_id: int
    is_j1939: bool
    field: Field
    private: frozenset[float]

    def is_carried_by(self, can_id: int) -> bool:
        """Tell whether a frame with this id carries the signal; what a kernel filter must pass."""
        if self.is_j1939:
            return is_j1939_id(can_id) and pgn_of(can_id) == pgn_of(self.can_id)
        return can_id == self.can_id


def find_switch(
    dbcs: Sequence[DbcFile], *, bus: str, signal: str, private: Iterable[float]
) -> SwitchSignal:
    """Return the signal that a configuration names.

    Args:
        dbcs: The DBC files of that bus.
        bus: Its name.
        signal: `Message.Signal`.
        private: Physical values that mean private.

    Raises:
        ConfigError: No DBC has it, or it has several meanings.
    """
    found: dict[tuple[int, Field], SwitchSignal] = {}
    names: list[str] = []
    for dbc in dbcs:
        for message in dbc.messages:
            for item in message.signals:
                name = f"{message.name}.{item.name}"
                names.append(name)
                if name != signal:
                    continue
                can_id = message.frame_id | (CAN_EFF_FLAG if message.is_extended_frame else 0)
                j1939 = dbc.is_j1939(message)
                field = field_of(message, item.name, is_j1939=j1939)
                found.setdefault(
                    (can_id, field), SwitchSignal(bus, can_id, j1939, field, frozenset(private))
                )
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ConfigError(
            f"switch.signal: {signal} stands {len(found)} times in the DBC files of bus {bus}, "
            "with several meanings",
            hint="name a signal that is there once",
        )
    close = difflib.get_close_matches(signal, names, n=3)
    raise ConfigError(
        f"switch.signal: no DBC file of bus {bus} has {signal}",
        hint=f"close are {', '.join(close)}" if close else "it is written Message.Signal",
    )


class SignalSwitch:
    """What the switch says, frame by frame. Used by the capture lane only.

    Attributes:
        is_private: What it says now.
    """

    def __init__(self, signal: SwitchSignal, *, private_on_fault: bool, max_age_ns: int) -> None:
        """Begin without having heard it.

        Args:
            signal: Which one it is.
            private_on_fault: What it says while it is not known.
            max_age_ns: It is not known any more when it was not heard for longer.
        """
        self.signal = signal
        self.is_private = private_on_fault
        self._on_fault = private_on_fault
        self._max_age_ns = max_age_ns
        self._extract = compile_extract([signal.field])
        self._reserved = first_reserved(signal.field)
        self._carries: dict[int, bool] = {}
        self._heard_ns: int | None = None  # None: it is not known.

    def cuts(self, frames: Sequence[Frame]) -> list[tuple[int, bool]]:
        """Return where in these frames the switch turns.

        Hot path where there is a switch: 0.15 µs for a frame that does not carry it.

        Returns:
            (index, is private), rising: what is said from that frame on, itself included.
        """
        turns: list[tuple[int, bool]] = []
        bus_wanted, carries, max_age_ns = self.signal.bus, self._carries, self._max_age_ns
        for index, (t_ns, bus, can_id, data) in enumerate(frames):
            heard_ns = self._heard_ns
            is_old = heard_ns is not None and not -max_age_ns <= t_ns - heard_ns <= max_age_ns
            is_heard = bus == bus_wanted and carries.get(can_id, True)
            if not is_old and not is_heard:
                continue
            before = self.is_private
            if is_old:
                self._forget()
            if is_heard and self._carries_it(can_id):
                self._hear(t_ns, data)
            if self.is_private != before:
                turns.append((index, self.is_private))
        return turns

    def tick(self, t_ns: int) -> bool:
        """Notice at a moment without frames that it was not heard for long; True if it turned."""
        heard_ns = self._heard_ns
        if heard_ns is None or abs(t_ns - heard_ns) <= self._max_age_ns:
            return False
        before = self.is_private
        self._forget()
        return self.is_private != before

    def _carries_it(self, can_id: int) -> bool:
        carried = self._carries.get(can_id)
        if carried is None:
            carried = self.signal.is_carried_by(can_id)
            if len(self._carries) < _CACHE:
                self._carries[can_id] = carried
        return carried

    def _hear(self, t_ns: int, data: bytes) -> None:
        raw = self._extract(data)[0]
        if raw is None or isinstance(raw, bytes):  # A switch is no text.
            return
        if self._reserved is not None and raw >= self._reserved:
            self._forget()
            return
        self._heard_ns = t_ns
        self.is_private = physical(self.signal.field, raw) in self.signal.private

    def _forget(self) -> None:
        self._heard_ns, self.is_private = None, self._on_fault
