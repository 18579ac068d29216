"""Puts what has changed in force: the plan, what is in flight, and the ledger that tells of it.

Rules:
 * The plan is swapped first, so that nothing more is taken; then what is in flight of grants that
   may not publish any more is settled; then it is written down.
"""

from collections.abc import Callable

from agent.control.change import Change
from agent.control.journal import Journal
from agent.core.clock import Moment
from agent.core.cose import DeviceKey
from agent.core.plan import Plan
from agent.edge.uplink import Uplink


class Enactment:
    """The one way from a change of consent to the other lanes. Used by the agent thread only."""

    def __init__(
        self,
        *,
        swap: Callable[[Plan], None],
        uplink: Uplink,
        journal: Journal,
        device: DeviceKey,
        now: Callable[[], Moment],
    ) -> None:
        """Put it together.

        Args:
            swap: Puts a plan in force in the capture lane.
            uplink: Where envelopes may be in flight.
            journal: Over the open ledger.
            device: Signs its checkpoints.
            now: The time by the rules of consent.
        """
        self._swap = swap
        self._uplink = uplink
        self._journal = journal
        self._device = device
        self._now = now

    def halt(self, change: Change) -> None:
        """Swap the plan, then settle what is in flight of grants that may not publish any more."""
        self._swap(change.plan)
        for grant_id in change.halted:
            self._uplink.cancel(grant_id)

    def enact(self, change: Change, reason: str) -> None:
        """Put in force what was changed without a document, and write it down.

        Args:
            change: What was changed.
            reason: `stop` or `time`.
        """
        self.halt(change)
        if change.moved or change.purged.erased or change.lifted:
            now_ns = self._now().now_ns
            self._journal.changed(now_ns, change, reason=reason)
            self._journal.checkpoint(now_ns, self._device)
