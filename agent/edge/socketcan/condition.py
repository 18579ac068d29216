"""What is known of a bus: its state, what was counted, and what of it is worth a line in the log.

Rules:
 * A change of the state, errors and losses are told when they happen, repeats at most every 10 s
   with how many were held back: a broken bus must not fill the disk.
 * The socket's count of dropped frames comes from two sides, with each frame and when it is asked
   for; an older one is no news.
"""

import logging
from collections import Counter

from agent.core.bushealth import BusHealth, BusState, read_error
from agent.edge.socketcan.receiver import Received
from agent.log import Repeats

_U32 = 1 << 32
_SILENT = {BusState.MISSING, BusState.DOWN, BusState.BUS_OFF}  # A data frame disproves these.

_log = logging.getLogger(__name__)


class Condition:
    """The condition of one bus. Used by one thread at a time.

    Attributes:
        state: Where the bus stands.
        reconnects: Times that it was lost, or could not be opened.
    """

    def __init__(self, bus: str) -> None:
        self._bus = bus
        self._repeats = Repeats()
        self.state = BusState.IDLE
        self.reconnects = 0
        self._since_ns = 0
        self._frames = 0
        self._drops_before = 0  # Of sockets that are closed.
        self._drops = 0  # Of this one.
        self._overruns = 0
        self._errors: Counter[str] = Counter()
        self._last_frame_ns: int | None = None

    def health(self) -> BusHealth:
        """Return it as a value."""
        return BusHealth(
            bus=self._bus,
            state=self.state,
            frames=self._frames,
            kernel_drops=self._drops_before + self._drops,
            overruns=self._overruns,
            errors=dict(self._errors),
            reconnects=self.reconnects,
            last_frame_ns=self._last_frame_ns,
        )

    def note(self, received: Received) -> None:
        """Count what came, and take up what it says of the bus."""
        self._frames += len(received.frames)
        if received.drops is not None:
            self.count_drops(received.drops)
        for t_ns, can_id, data in received.errors:
            report = read_error(can_id, data)
            self._errors.update(report.kinds)
            self._overruns += report.is_overrun
            if report.state is not None:
                self.enter(report.state, t_ns)
        if received.errors:
            self._tell_errors()
        if received.frames:
            self._last_frame_ns = received.frames[-1][0]
            # What lay in the socket when the trouble came proves nothing.
            if self.state in _SILENT and self._last_frame_ns > self._since_ns:
                self.enter(BusState.ACTIVE, self._last_frame_ns)

    def begin_socket(self) -> None:
        """Take note of a new socket, whose count begins anew."""
        self._drops_before, self._drops = self._drops_before + self._drops, 0

    def count_drops(self, drops: int) -> None:
        """Take up the socket's count of dropped frames, which is of 32 bits."""
        lost = (drops - self._drops) % _U32
        if not 0 < lost < _U32 // 2:
            return
        self._drops += lost
        held_back = self._repeats.due("frames lost")
        if held_back is not None:
            _log.warning(
                "frames lost",
                extra={
                    "bus": self._bus,
                    "kernel_drops": self._drops_before + self._drops,
                    "held_back": held_back,
                },
            )

    def enter(self, state: BusState, t_ns: int, exc: OSError | None = None) -> None:
        """Take up a state and say so.

        Args:
            state: The state.
            t_ns: Since when, on the clock of the frames.
            exc: Why, where the system said so.
        """
        before, self.state, self._since_ns = self.state, state, t_ns
        if state is before:
            return
        if state is BusState.IDLE:
            _log.info("bus closed", extra={"bus": self._bus})
            return
        if before is BusState.IDLE and state is BusState.ACTIVE:
            return  # Whoever opens it says so.
        held_back = self._repeats.due(state)
        if held_back is None:
            return
        if state is BusState.ACTIVE:
            _log.info(
                "bus back",
                extra={"bus": self._bus, "before": before.value, "held_back": held_back},
            )
        else:
            _log.warning(
                "bus trouble",
                extra={
                    "bus": self._bus,
                    "state": state.value,
                    "error": "" if exc is None else exc.strerror,
                    "held_back": held_back,
                },
            )

    def _tell_errors(self) -> None:
        held_back = self._repeats.due("bus errors")
        if held_back is not None:
            kinds = ",".join(f"{kind}:{count}" for kind, count in sorted(self._errors.items()))
            _log.warning(
                "bus errors",
                extra={
                    "bus": self._bus,
                    "kinds": kinds,
                    "overruns": self._overruns,
                    "held_back": held_back,
                },
            )
