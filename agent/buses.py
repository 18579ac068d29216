"""The buses of a vehicle: who reads each, what may come in, and which sockets outlive us.

Rules:
 * Which adapter a bus has is known here and nowhere else.
 * What the plan does not need is not let in: kernel filters where there are some, and no socket or
   port at all without a live grant.
 * A CAN socket outlives the process: systemd keeps a copy of each, in which the kernel goes on
   queueing frames, and hands it to the next process. So does the memory of the frames that were
   read and are not stored. What no bus needs is closed for good.
 * When the configuration changes, the reader of a bus that is as before goes on.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from agent.config import Bus
from agent.core.bushealth import BusHealth
from agent.core.canfilter import CanFilter, compile_filters
from agent.core.model import NS_PER_S, Place
from agent.core.plan import Plan, empty_plan
from agent.core.status import BusStatus
from agent.edge.capture import Capture
from agent.edge.socketcan import SocketCanReader
from agent.edge.systemd import Unit
from agent.watch import Lane

if TYPE_CHECKING:
    from agent.edge.gnss import GnssReader
    from agent.edge.pycan import PyCanReader

Reader: TypeAlias = "SocketCanReader | PyCanReader | GnssReader"
Source = tuple[str, str, str, tuple[tuple[str, str | int | float | bool], ...]]

_log = logging.getLogger(__name__)


class Buses:
    """The readers of all buses. Used by the agent thread."""

    def __init__(
        self,
        buses: Iterable[Bus],
        *,
        capture: Capture,
        last_row: int,
        clock: Callable[[], int],
        unit: Unit,
    ) -> None:
        """Make the readers; `let_in` and `start` begin.

        Args:
            buses: As configured.
            capture: Gets every chunk of frames, in the readers' threads.
            last_row: Of the spool, as it is on disk.
            clock: ns since the epoch, for what brings no time of its own.
            unit: Keeps the CAN sockets over a restart, and what was read from them over a kill.
        """
        self._capture = capture
        self._last_row = last_row
        self._clock = clock
        self._unit = unit
        self._plan: Plan = empty_plan()
        self._extra: Mapping[str, tuple[CanFilter, ...]] = {}
        self._readers = {source_of(bus): self._reader(bus) for bus in buses}
        for name in unit.drop_rest():
            _log.info("socket not needed", extra={"kept": name})

    def __len__(self) -> int:
        return len(self._readers)

    def let_in(self, plan: Plan, extra: Mapping[str, tuple[CanFilter, ...]]) -> None:
        """Let in what a plan needs, and nothing else; where that is nothing, close.

        Args:
            plan: The plan in force.
            extra: Bus -> what is needed besides, such as the privacy switch's frames.
        """
        self._plan, self._extra = plan, extra
        for reader in self._readers.values():
            if isinstance(reader, SocketCanReader):
                reader.keep_only(_consent(plan))
            self._filter(reader)

    def start(self) -> None:
        """Begin reading."""
        for reader in self._readers.values():
            reader.start()

    def follow(self, buses: Iterable[Bus]) -> None:
        """Read these buses from now on: end and begin what differs."""
        wanted = {source_of(bus): bus for bus in buses}
        gone = [self._readers.pop(source) for source in self._readers.keys() - wanted.keys()]
        _end(gone)
        for reader in gone:
            for name in _kept_as(reader.name):
                self._unit.drop(name)
        for source in wanted.keys() - self._readers.keys():
            reader = self._readers[source] = self._reader(wanted[source])
            self._filter(reader)
            if isinstance(reader, SocketCanReader):
                reader.note_consent(_consent(self._plan))
            reader.start()

    def announce(self, places: Iterable[Place], row: int) -> None:
        """Take note that what came up to these places is about to be stored.

        Args:
            places: From the capture lane.
            row: The spool has this row when it is.
        """
        for reader, place in self._placed(places):
            reader.announce(place, row)

    def settle(self, places: Iterable[Place]) -> None:
        """Let go what came up to these places: it is stored, or nobody may have it."""
        for reader, place in self._placed(places):
            reader.settle(place)

    def taken_under(self, plan: Plan) -> None:
        """Take note of the plan under which all was taken that is not settled yet."""
        for reader in self._readers.values():
            if isinstance(reader, SocketCanReader):
                reader.note_consent(_consent(plan))

    def lanes(self) -> list[Lane]:
        """Return how each reader's thread is."""
        return [Lane(f"bus {r.name}", r.is_alive, r.turns) for r in self._readers.values()]

    def health(self) -> list[BusHealth]:
        """Return how each bus does; it stays on the board."""
        return [reader.health() for reader in self._readers.values()]

    def status(self) -> tuple[BusStatus, ...]:
        """Return the same for people at the vehicle."""
        return tuple(_told(bus) for bus in self.health())

    def close(self) -> None:
        """Hand over what lies in the sockets, and end. Twice is harmless."""
        _end(self._readers.values())

    def _placed(self, places: Iterable[Place]) -> Iterator[tuple[SocketCanReader, Place]]:
        by_bus = {place.bus: place for place in places}
        for reader in self._readers.values():
            if isinstance(reader, SocketCanReader) and reader.name in by_bus:
                yield reader, by_bus[reader.name]

    def _filter(self, reader: Reader) -> None:
        made = compile_filters(self._plan, reader.name, extra=self._extra.get(reader.name, ()))
        if made.beyond:
            _log.warning("filters widened", extra={"bus": reader.name, "identifiers": made.beyond})
        reader.set_filters(made.filters)

    def _reader(self, bus: Bus) -> Reader:
        if bus.interface == "socketcan":
            socket_as, frames_as = _kept_as(bus.name)
            reader = SocketCanReader(
                bus.name,
                channel=bus.channel,
                sink=self._capture.put,
                has_room=self._capture.has_room,
                on_rest=partial(self._tell_rest, bus.name),
                on_socket=partial(self._keep, socket_as),
                on_frames=partial(self._keep, frames_as),
            )
            if (descriptor := self._unit.take(socket_as)) is not None:
                reader.adopt(descriptor)
            if (descriptor := self._unit.take(frames_as)) is not None:
                reader.adopt_frames(descriptor, last_row=self._last_row)
            return reader
        if bus.interface == "gnss":
            from agent.edge.gnss import GnssReader  # noqa: PLC0415 - as python-can below

            return GnssReader(
                bus.name,
                channel=bus.channel,
                options=bus.options,
                sink=self._capture.put,
                clock=self._clock,
            )
        # Not at the top: python-can is a sixth of all that is imported, and most buses need none.
        from agent.edge.pycan import PyCanReader  # noqa: PLC0415

        return PyCanReader(
            bus.name,
            interface=bus.interface,
            channel=bus.channel,
            options=bus.options,
            sink=self._capture.put,
            clock=self._clock,
        )

    def _tell_rest(self, bus: str, is_to_come: bool) -> None:  # noqa: FBT001 - readers' callback
        if is_to_come:
            self._capture.expect(bus)
        else:
            self._capture.caught_up(bus)

    def _keep(self, name: str, descriptor: int | None) -> None:
        if descriptor is None:
            self._unit.drop(name)
        else:
            self._unit.keep(name, descriptor)


def source_of(bus: Bus) -> Source:
    """Return what makes a reader another one when it changes."""
    return bus.name, bus.interface, bus.channel, tuple(sorted(bus.options.items()))


def _consent(plan: Plan) -> int:
    """Return what tells one set of live grants from another, in any process.

    What is left of a plan, such as the hours for which it holds, it says itself of each frame.
    """
    grants = sorted((grant.grant_id, grant.rev) for grant in plan.live)
    return int.from_bytes(hashlib.sha256(repr(grants).encode()).digest()[:8])


def _told(bus: BusHealth) -> BusStatus:
    return BusStatus(
        name=bus.bus,
        state=bus.state.value,
        frames=bus.frames,
        reconnects=bus.reconnects,
        lost_frames=bus.kernel_drops + bus.overruns + bus.abandoned,
        errors=bus.errors,
        last_frame_s=None if bus.last_frame_ns is None else bus.last_frame_ns // NS_PER_S,
    )


def _kept_as(bus: str) -> tuple[str, str]:
    """Return the names under which systemd keeps a bus's socket, and the frames read from it."""
    return f"can-{bus}", f"frames-{bus}"


def _end(readers: Iterable[Reader]) -> None:
    """End readers side by side."""
    ending = list(readers)
    for reader in ending:
        reader.stop()
    for reader in ending:
        reader.close()
