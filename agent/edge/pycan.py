"""A CAN bus through python-can: every adapter that it knows, by configuration only.

Rules:
 * One reader thread per bus (`agent.adapter` opens and tries again); it hands over chunks of
   frames, as many as lay waiting.
 * It never sends: there is no call that writes to the bus in this module.
 * python-can's time is float seconds; it is rounded to whole µs here and goes no further. Where it
   is that of a device's own clock it is moved to ours (`Times`).
 * Error frames are read where the adapter gives those of Linux, and only counted elsewhere: each
   kind has a code of its own.
 * While no frame is wanted the adapter is not open. While some are, all frames of the bus come into
   the process, for few adapters can choose; the gate lets go what nobody may have.
 * Frames that python-can could not give are counted by the adapter, reconnections by us.
"""

import termios
import time
from collections.abc import Callable, Mapping

import can

from agent import adapter
from agent.adapter import AdapterReader
from agent.core.bushealth import ErrorFrame
from agent.core.model import (
    CAN_EFF_FLAG,
    CAN_ERR_FLAG,
    CAN_RTR_FLAG,
    NS_PER_S,
    NS_PER_US,
    Frame,
)
from agent.errors import BusError

CHUNK = 256  # Frames handed over at once; bounds the time until a new plan is looked at.
FAR_NS = 10 * NS_PER_S  # A time that is further from ours than this is of another clock.

# An adapter that acknowledges frames takes part in the bus: only if somebody says so.
_DEFAULTS: dict[str, dict[str, bool]] = {"slcan": {"listen_only": True}}
# Whose error frames are those of linux/can/error.h.
_LINUX_ERRORS = {"gs_usb", "socketcand"}


def open_bus(
    interface: str, channel: str, options: Mapping[str, str | int | float | bool]
) -> can.BusABC:
    """Open a python-can bus: as told here, whatever python-can's own files and environment say.

    Raises:
        BusError: The interface is unknown, its library is missing, or the adapter is not there.
    """
    try:
        return can.Bus(
            channel=channel,
            interface=interface,
            # Without it a can.conf somewhere, or CAN_BITRATE, adds what nobody told us.
            ignore_config=True,
            **{**_DEFAULTS.get(interface, {}), **options},  # type: ignore[arg-type] # adapters define their own
        )
    except Exception as exc:
        # Whatever it is: without its library one adapter raises NameError, another AttributeError,
        # and a serial port that is unplugged meanwhile termios.error.
        raise BusError(
            f"the bus {channel} ({interface}) cannot be opened: {exc or type(exc).__name__}",
            hint="check interface, channel and options in agent.toml, and that the adapter is up",
        ) from exc


class PyCanReader(AdapterReader[can.BusABC]):
    """Reads one bus in a thread of its own until it is closed."""

    _losses = (BusError, can.CanError, OSError, termios.error)

    def __init__(  # noqa: PLR0913 - what an adapter needs
        self,
        name: str,
        *,
        interface: str,
        channel: str,
        options: Mapping[str, str | int | float | bool],
        sink: Callable[[list[Frame]], None],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            name: The bus's name in frames.
            interface: python-can's name of the adapter kind.
            channel: The adapter's channel.
            options: Handed to python-can as they are. `preserve_timestamps`, of its virtual bus,
                leaves frames the times that they were sent with.
            sink: Gets every chunk, in this reader's thread.
            clock: ns since the epoch.
        """
        super().__init__(name, clock=clock)
        self._interface, self._channel, self._options = interface, channel, options
        self._sink = sink
        self._times = None if options.get("preserve_timestamps") else Times(clock)
        self._tells_errors = interface in _LINUX_ERRORS

    def _open(self) -> can.BusABC:
        bus = open_bus(self._interface, self._channel, self._options)
        if self._times is not None:
            self._times.begin()
        return bus

    def _read(self, port: can.BusABC) -> None:
        chunk: list[Frame] = []
        errors: list[ErrorFrame] = []
        wait_s = adapter.POLL_S
        try:
            for _ in range(CHUNK):  # Whatever comes: a wrong bit rate is error frames without end.
                message = self._receive(port, wait_s)
                if message is None:
                    break
                wait_s = 0.0
                if message.is_error_frame and self._tells_errors:
                    can_id = message.arbitration_id | CAN_ERR_FLAG
                    errors.append((self._t_ns(message), can_id, bytes(message.data)))
                elif message.is_error_frame or _is_cut(message):
                    self._condition.count_error("reported")
                else:
                    chunk.append(_frame(message, self._t_ns(message), self.name))
        finally:  # What was read before the adapter failed counts.
            self._condition.note(chunk, errors)
            if chunk:
                self._sink(chunk)

    def _t_ns(self, message: can.Message) -> int:
        t_ns = round(message.timestamp * 1e6) * NS_PER_US
        return t_ns if self._times is None else self._times.ours(t_ns)

    def _receive(self, bus: can.BusABC, timeout_s: float) -> can.Message | None:
        """Return the next frame; None where none came, or what came was none (a serial line)."""
        try:
            return bus.recv(timeout=timeout_s)
        except UnicodeDecodeError as exc:
            # python-can's slcan keeps such bytes before everything that follows.
            raise BusError("what the adapter sends is no text", hint="check its speed") from exc
        except (ValueError, IndexError):
            self._condition.count_error("reported")
            return None


class Times:
    """Moves an adapter's times to our clock where they are of another one.

    pcan's begin with the board's start, gs_usb's with the device's and again every 71 minutes. Such
    a clock is set by ours at the first frame of each opening, and again when they part by more than
    `FAR_NS`; what waited in the adapter before that frame came makes all behind it so much late.
    An adapter whose first time is near ours is believed from then on.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        """Begin.

        Args:
            clock: ns since the epoch.
        """
        self._clock = clock
        self._ahead_ns: int | None = None  # Our clock's lead; 0: the adapter goes by it itself.

    def begin(self) -> None:
        """Take note that the adapter was opened: its clock is not known yet."""
        self._ahead_ns = None

    def ours(self, t_ns: int) -> int:
        """Return an adapter's time on our clock.

        Args:
            t_ns: The adapter's, whole µs; 0 where it has none.
        """
        if not t_ns:
            return _whole_us(self._clock())
        if self._ahead_ns is None:
            lead_ns = _whole_us(self._clock() - t_ns)
            self._ahead_ns = lead_ns if abs(lead_ns) > FAR_NS else 0
        elif self._ahead_ns:
            lead_ns = _whole_us(self._clock() - t_ns)
            if abs(lead_ns - self._ahead_ns) > FAR_NS:
                self._ahead_ns = lead_ns
        return t_ns + self._ahead_ns


def _whole_us(ns: int) -> int:
    return ns - ns % NS_PER_US


def _is_cut(message: can.Message) -> bool:
    return not message.is_remote_frame and message.dlc != len(message.data)


def _frame(message: can.Message, t_ns: int, bus: str) -> Frame:
    can_id = message.arbitration_id
    if message.is_extended_id:
        can_id |= CAN_EFF_FLAG
    if message.is_remote_frame:
        can_id |= CAN_RTR_FLAG
    return t_ns, bus, can_id, bytes(message.data or b"")
