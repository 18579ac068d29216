"""What the agent lane writes into the ledger: at once what consent does, once a minute what flows.

Rules:
 * A change of consent is on disk, under a signed checkpoint, before it is answered.
 * Envelopes are counted by grant and written as one entry a minute: the ledger tells how much
   flowed, not when each batch did.
 * The disk refusing an entry stops nothing; the ledger itself says later how many it lost.
 * Where it is not known who may read: no value, no position, no VIN has a place in an entry
   (`agent.core.ledgerevent`).
"""

from collections.abc import Callable, Iterable

from agent.control.change import Change
from agent.core.cose import DeviceKey
from agent.core.ledgerevent import Fact, event
from agent.core.model import NS_PER_S
from agent.core.policy import GrantState, Policy
from agent.core.rollup import RollUp
from agent.core.standing import EVERY_GRANT
from agent.edge.ledger import Ledger
from agent.edge.store import Damage


class Journal:
    """Turns what happens in the agent lane into entries. Used by that lane only."""

    def __init__(self, ledger: Ledger, *, publish: Callable[[bytes], None]) -> None:
        """Write into a ledger.

        Args:
            ledger: Open; owned by the agent lane.
            publish: Sends a signed checkpoint to the platform.
        """
        self._ledger = ledger
        self._publish = publish
        self._minute = RollUp()

    @property
    def head(self) -> tuple[int, bytes]:
        """Size and root of what is on disk."""
        return self._ledger.head

    @property
    def fault(self) -> str:
        """Why the disk refuses entries, a name of errno.h; "" while it takes them."""
        return self._ledger.fault or ""

    @property
    def lost(self) -> int:
        """Entries that the disk refused since it last took one."""
        return self._ledger.lost

    def note(self, now_ns: int, name: str, **facts: Fact) -> None:
        """Write an entry to disk at once."""
        self._ledger.append(event(now_ns, name, **facts), durable=True)

    def count(self, now_ns: int, name: str, *, n: int | None = None, **facts: int | str) -> None:
        """Count something that is written once a minute; see `RollUp.add`."""
        self._minute.add(now_ns, name, n=n, **facts)

    def policy_applied(self, now_ns: int, policy: Policy, before: Policy | None) -> None:
        """Write what a policy changed, by grant and revision."""
        old = {} if before is None else _revisions(before)
        new = _revisions(policy)
        self.note(
            now_ns,
            "policy-applied",
            sha256=policy.payload_sha256,
            epoch=policy.epoch,
            ver=policy.ver,
            added={g: rev for g, rev in new.items() if g not in old},
            changed={g: rev for g, rev in new.items() if g in old and old[g] != rev},
            ended={g: rev for g, rev in old.items() if g not in new},
        )

    def changed(self, now_ns: int, change: Change, *, reason: str) -> None:
        """Write where grants stand now, and what was erased with them; a checkpoint must follow.

        Args:
            now_ns: ns since the epoch.
            change: What was changed.
            reason: `policy`, `restriction`, `stop` or `time`.
        """
        for grant_id in change.lifted:
            self.resumed(now_ns, grant_id, by="timer")
        for grant_id, rev, standing in change.moved:
            self._add(now_ns, "grant-state", grant=grant_id, rev=rev, state=standing.value)
        for grant_id, tally in change.purged.erased.items():
            self._add(
                now_ns,
                "purged",
                grant=grant_id,
                envelopes=tally.envelopes,
                bytes=tally.size_bytes,
                reason=reason,
            )
        for grant_id, rev, standing in change.moved:
            if standing.is_end and change.purged.scrubbed:
                self._add(now_ns, "grant-state", grant=grant_id, rev=rev, state="purged")

    def damaged(self, now_ns: int, damage: Iterable[Damage]) -> None:
        """Write which files of the state had to be begun anew."""
        for item in damage:
            self.note(now_ns, "state-damaged", file=item.file, reason=item.why)

    def stopped(self, now_ns: int, grant_id: str, *, by: int | str, for_ns: int | None) -> None:
        """Write that a grant, or EVERY_GRANT, was stopped at the vehicle.

        Args:
            now_ns: ns since the epoch.
            grant_id: What was stopped.
            by: The uid of who asked, or `switch`.
            for_ns: For how long; None: until it is lifted.
        """
        self._local_stop(now_ns, "on", grant_id, by, (for_ns or 0) // NS_PER_S)

    def resumed(self, now_ns: int, grant_id: str, *, by: int | str) -> None:
        """Write that such a stop was lifted: by a uid, `switch`, or `timer`."""
        self._local_stop(now_ns, "off", grant_id, by, 0)

    def tick(self, now_ns: int, device: DeviceKey) -> None:
        """Write the minute's counts, and a checkpoint where one is due."""
        if self._minute.is_due(now_ns):
            self.roll_up(now_ns)
        if self._ledger.checkpoint_due(now_ns):
            self.checkpoint(now_ns, device)

    def checkpoint(self, now_ns: int, device: DeviceKey) -> None:
        """Sign the head, keep that, and send it."""
        self._publish(self._ledger.checkpoint(now_ns, device))

    def _local_stop(
        self, now_ns: int, state: str, grant_id: str, by: int | str, seconds: int
    ) -> None:
        grants = [] if grant_id == EVERY_GRANT else [grant_id]
        self.note(now_ns, "local-stop", state=state, by=by, grants=grants, seconds=seconds)

    def _add(self, now_ns: int, name: str, **facts: Fact) -> None:
        """Write an entry that the next checkpoint puts on disk."""
        self._ledger.append(event(now_ns, name, **facts), durable=False)

    def roll_up(self, now_ns: int) -> None:
        """Write what was counted since the last time."""
        for counted in self._minute.take(now_ns):
            self._ledger.append(counted, durable=False)
        self._ledger.sync()


def _revisions(policy: Policy) -> dict[str, int]:
    return {g.grant_id: g.rev for g in policy.grants if g.state is not GrantState.REVOKED}
