"""The messages of transport protocols that are under way on the buses of a pipeline.

Rules:
 * Only frames that the plan names with a tap for transport come here.
 * A message that is under way goes on over a swap of the plan where the new one wants it too;
   everything else that was collected is let go.
"""

from dataclasses import dataclass

from agent.core.gate import IsoTpTap, J1939Tap, Tap, Taps
from agent.core.isotp import IsoTpReassembly
from agent.core.j1939tp import PGN_DT, J1939Reassembly
from agent.core.mapping import IsoTp
from agent.core.model import CAN_EFF_FLAG
from agent.core.plan import Plan

_Key = tuple[str, int, IsoTp, int]  # (bus, canid_t, addressing, bytes that the DBC knows)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the taps of one identifier come to.

    Attributes:
        plain: Taps for the frames themselves.
        isotp: Reassemblies, each with the tap of its messages.
        j1939: The bus's reassembly, where the frames are its own.
    """

    plain: tuple[Tap, ...]
    isotp: tuple[tuple[IsoTpReassembly, Tap], ...]
    j1939: J1939Reassembly | None


class Joints:
    """The reassemblies of a pipeline, by bus."""

    def __init__(self) -> None:
        self._isotp: dict[_Key, IsoTpReassembly] = {}
        self._j1939: dict[str, J1939Reassembly] = {}
        self._before = 0  # Given up by reassemblies that are gone.

    @property
    def given_up(self) -> int:
        """Messages that were begun and could not be put together, so far."""
        return self._before + sum(r.broken for r in self._all())

    def _all(self) -> tuple[IsoTpReassembly | J1939Reassembly, ...]:
        return (*self._isotp.values(), *self._j1939.values())

    def split(self, bus: str, can_id: int, taps: Taps) -> Parts:
        """Return the taps of an identifier, those for transport with their reassemblies."""
        j1939 = None
        isotp = []
        for tap in taps:
            if isinstance(tap, IsoTpTap):
                isotp.append((self._of_id(bus, can_id, tap), tap.tap))
            elif isinstance(tap, J1939Tap):
                j1939 = self._j1939.setdefault(bus, J1939Reassembly(tap.wants))
        plain = tuple(tap for tap in taps if isinstance(tap, Tap))
        return Parts(plain, tuple(isotp), j1939)

    def swap(self, plan: Plan) -> None:
        """Keep what is under way and still wanted under a plan."""
        before = self.given_up
        self._isotp = {
            key: reassembly
            for key, reassembly in self._isotp.items()
            if any(
                isinstance(tap, IsoTpTap) and _key(key[0], key[1], tap) == key
                for tap in plan.taps(key[0], key[1])
            )
        }
        kept: dict[str, J1939Reassembly] = {}
        for bus, reassembly in self._j1939.items():
            for tap in plan.taps(bus, CAN_EFF_FLAG | PGN_DT << 8):
                if isinstance(tap, J1939Tap):
                    reassembly.want(tap.wants)
                    kept[bus] = reassembly
        self._j1939 = kept
        self._before += before - self.given_up

    def _of_id(self, bus: str, can_id: int, tap: IsoTpTap) -> IsoTpReassembly:
        key = _key(bus, can_id, tap)
        if key not in self._isotp:
            self._isotp[key] = IsoTpReassembly(
                keep=tap.keep, address=tap.isotp.address, with_length=tap.isotp.with_length
            )
        return self._isotp[key]


def _key(bus: str, can_id: int, tap: IsoTpTap) -> _Key:
    return bus, can_id, tap.isotp, tap.keep
