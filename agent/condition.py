"""What is known of a bus: its state, what was counted, and what of it is worth a line in the log.

Rules:
 * A change of the state, errors and losses are told when they happen, repeats at most every 10 s
   with how many were held back: a broken bus must not fill the disk.
 * A bus that is open and gives nothing for `SILENT_S` is silent. That is the rule in a parked
   vehicle, so it is told as a fact and not as a fault, and at most every 10 minutes.
 * The socket's count of dropped frames comes from two sides, with each frame and when it is asked
   for; an older one is no news.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

from agent.core.bushealth import BusHealth, BusState, ErrorFrame, read_error
from agent.core.model import Frame
from agent.log import Repeats

SILENT_S = 30.0  # What comes by itself on a vehicle's bus comes at least every 10 s.
SILENCE_REPEAT_S = 600.0

_U32 = 1 << 32
_UNHEARD = {BusState.MISSING, BusState.DOWN, BusState.BUS_OFF}  # A data frame disproves these.

_log = logging.getLogger(__name__)


class Condition:
    """The condition of one bus. One thread at a time tells it; `health` is for any.

    Attributes:
        state: Where the bus stands.
        reconnects: Times that it was lost, or could not be opened.
        frames: Frames that came.
    """

    def __init__(self, bus: str, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Begin with a bus that is not open.

        Args:
            bus: Its name.
            clock_s: Seconds that only rise.
        """
        self._bus = bus
        self._clock_s = clock_s
        self._heard_s = clock_s()  # When something came, or the bus became active.
        self._repeats = Repeats(clock_s=clock_s)
        self._silences = Repeats(SILENCE_REPEAT_S, clock_s=clock_s)
        self.state = BusState.IDLE
        self.reconnects = 0
        self.frames = 0
        self._since_ns = 0
        self._drops_before = 0  # Of sockets that are closed.
        self._drops = 0  # Of this one.
        self._overruns = 0
        self._abandoned = 0
        self._errors: Counter[str] = Counter()
        self._last_frame_ns: int | None = None

    def health(self) -> BusHealth:
        """Return it as a value."""
        return BusHealth(
            bus=self._bus,
            state=self.state,
            frames=self.frames,
            kernel_drops=self._drops_before + self._drops,
            overruns=self._overruns,
            abandoned=self._abandoned,
            errors=dict(self._errors),
            reconnects=self.reconnects,
            last_frame_ns=self._last_frame_ns,
        )

    def note(self, frames: Sequence[Frame], errors: Sequence[ErrorFrame] = ()) -> None:
        """Count what came, and take up what it says of the bus."""
        self.frames += len(frames)
        for t_ns, can_id, data in errors:
            report = read_error(can_id, data)
            self._errors.update(report.kinds)
            self._overruns += report.is_overrun
            if report.state is not None:
                self.enter(report.state, t_ns)
        if errors:
            self._tell_errors()
        if frames:
            self._heard_s = self._clock_s()
            self._last_frame_ns = frames[-1][0]
            if self.state is BusState.SILENT:
                self.enter(BusState.ACTIVE, self._last_frame_ns)
            # What lay in the socket when the trouble came proves nothing.
            if self.state in _UNHEARD and self._last_frame_ns > self._since_ns:
                self.enter(BusState.ACTIVE, self._last_frame_ns)

    def look(self, t_ns: int) -> None:
        """Find out whether the bus has become silent; to be called every few seconds.

        Args:
            t_ns: Now, on the clock of the frames.
        """
        is_quiet = self._clock_s() - self._heard_s >= SILENT_S
        if is_quiet and self.state is BusState.ACTIVE:
            self.enter(BusState.SILENT, t_ns)

    def count_error(self, kind: str) -> None:
        """Count what an adapter complains of in words of its own."""
        self._errors[kind] += 1
        self._tell_errors()

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

    def abandon(self, frames: int) -> None:
        """Count frames that a process before us read, and that nobody can store any more."""
        self._abandoned += frames
        _log.warning("frames abandoned", extra={"bus": self._bus, "frames": self._abandoned})

    def lose(self, t_ns: int, why: str) -> None:
        """Take up that the bus was lost, or could not be opened.

        Args:
            t_ns: When, on the clock of the frames.
            why: What the system or the adapter said.
        """
        self.reconnects += 1
        self.enter(BusState.MISSING, t_ns, why)

    def enter(self, state: BusState, t_ns: int, why: str = "") -> None:
        """Take up a state and say so.

        Args:
            state: The state.
            t_ns: Since when, on the clock of the frames.
            why: What the system or the adapter said, if anything.
        """
        before, self.state, self._since_ns = self.state, state, t_ns
        if state is before:
            return
        if state is BusState.ACTIVE:
            self._heard_s = self._clock_s()
        if state is BusState.IDLE:
            _log.info("bus closed", extra={"bus": self._bus})
            return
        if before is BusState.IDLE and state is BusState.ACTIVE:
            return  # Whoever opens it says so.
        is_silence = BusState.SILENT in (before, state)
        held_back = (self._silences if is_silence else self._repeats).due(state)
        if held_back is None:
            return
        if state is BusState.SILENT:
            _log.info(
                "bus silent",
                extra={"bus": self._bus, "for_s": int(SILENT_S), "held_back": held_back},
            )
        elif state is BusState.ACTIVE:
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
                    "error": why,
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
