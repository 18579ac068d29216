"""What time it is for the rules of consent: never earlier than it is known to be.

Rules (design, section 5, "Time"):
 * now = max(floor, wall clock). The floor is the latest of the build time, the last synchronised
   time that was kept, and the `iat` of every verified policy; within a boot it moves on with
   CLOCK_BOOTTIME, so a wall clock that was set back does not hold time up.
 * Only synchronised time lifts the floor: a wrong date that comes and goes leaves no trace in it.
   What it has ended stays ended all the same, for ends have tombstones.
 * Only a policy of a higher `epoch` lowers the floor.
 * Spans are counted on CLOCK_BOOTTIME within one boot. Across a reboot nobody knows how long the
   board was off, unless the clock was known before and is known again; where it is not known, the
   span is None and the caller takes the worst case.
"""

from dataclasses import dataclass

from agent.core.model import NS_PER_S

BUILT_S = 1_795_392_000  # 2026-11-23T00:00Z, before every policy that this version can be given.
STEP_NS = 2 * NS_PER_S  # Wall clock against CLOCK_BOOTTIME: less is a clock that is being slewed.
TOLERANCE_NS = 86_400 * NS_PER_S  # A policy's `iat` may be a day ahead of us (core/admission).


@dataclass(frozen=True, slots=True)
class Reading:
    """What the machine's clocks say.

    Attributes:
        wall_ns: CLOCK_REALTIME, ns since the epoch.
        boot_ns: CLOCK_BOOTTIME, ns since the board started, sleep included.
        boot_id: Names this boot.
        is_synchronised: Somebody who knows (NTP, GNSS) has set the wall clock.
    """

    wall_ns: int
    boot_ns: int
    boot_id: str
    is_synchronised: bool


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, as the rules of consent take it.

    Attributes:
        now_ns: ns since the epoch, not below the floor.
        boot_ns: CLOCK_BOOTTIME, ns.
        boot_id: Names this boot.
        is_known: The wall clock is synchronised, and the floor agrees with it; time windows are
            closed while it is not.
    """

    now_ns: int
    boot_ns: int
    boot_id: str
    is_known: bool


def elapsed_ns(since: Moment, now: Moment) -> int | None:
    """Return how much time has passed between two moments, or None where nobody knows."""
    if since.boot_id == now.boot_id:
        return max(0, now.boot_ns - since.boot_ns)
    if since.is_known and now.is_known:
        # It is at least the time since this boot, whatever the clock said before.
        return max(now.boot_ns, now.now_ns - since.now_ns)
    return None


class FloorClock:
    """Keeps the floor and turns readings into moments. Used by the agent lane only.

    Attributes:
        floor_ns: To be kept on disk, ns since the epoch.
    """

    def __init__(self, floor_ns: int | None = None) -> None:
        """Begin above a floor that was kept, if there is one."""
        self.floor_ns = max(BUILT_S * NS_PER_S, floor_ns or 0)
        self._stepped_ns = 0
        self._last: Reading | None = None

    def moment(self, reading: Reading) -> Moment:
        """Return now, and lift the floor where the reading is synchronised."""
        last, self._last = self._last, reading
        if last is not None:
            passed_ns = max(0, reading.boot_ns - last.boot_ns)
            self.floor_ns += passed_ns
            jump_ns = reading.wall_ns - last.wall_ns - passed_ns
            self._stepped_ns += jump_ns if abs(jump_ns) >= STEP_NS else 0
        is_known = reading.is_synchronised and reading.wall_ns >= self.floor_ns - TOLERANCE_NS
        now_ns = max(self.floor_ns, reading.wall_ns)
        if reading.is_synchronised:
            self.floor_ns = now_ns
        return Moment(now_ns, reading.boot_ns, reading.boot_id, is_known)

    def take_step_ns(self) -> int:
        """Return how far the wall clock has jumped since this was asked last, ns."""
        stepped_ns, self._stepped_ns = self._stepped_ns, 0
        return stepped_ns

    def raise_to(self, iat_s: int) -> None:
        """Lift the floor to the time at which a verified policy was signed."""
        self.floor_ns = max(self.floor_ns, iat_s * NS_PER_S)

    def lower_to(self, iat_s: int) -> int:
        """Put the floor where a policy of a higher epoch was signed; return by how many ns it fell.

        The only way down: whoever raised it by a wrong date must not rule for ever.
        """
        lowest_ns = max(BUILT_S * NS_PER_S, iat_s * NS_PER_S)
        fell_ns = max(0, self.floor_ns - lowest_ns)
        self.floor_ns = min(self.floor_ns, lowest_ns)
        return fell_ns
