"""The spool's envelopes, and the records of those that will not come → the network lane.

Rules:
 * On a new connection the policy comes first: nothing is published until the broker's retained
   policy was looked at, or has not come for a moment.
 * Only what an active grant covers is offered; the store and this module both see to it.
 * A class that may not use the interface of now waits, and so does a grant that the broker refuses;
   neither holds up the others.
 * A row goes when the broker has taken it over, not before. While the disk refuses that, it is not
   sent again.
 * While envelopes are on their way, rows go many in one transaction: a commit for each answer would
   cost an fsync and five pages each time, and the network would wait for it. Before anything
   else is done, `erase` is called, so that nobody else sees a row that was delivered.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable

from agent.control.consent import Consent
from agent.control.journal import Journal
from agent.core.catalogue import Catalogue
from agent.core.cose import DeviceKey
from agent.core.gap import Gap, sign_gap
from agent.core.model import NS_PER_S
from agent.core.standing import Standing
from agent.edge.store import Store, StoredGap
from agent.edge.uplink import Delivered, Disconnected, Refused, Uplink
from agent.errors import StoreError

POLICY_FIRST_S = 2.0  # How long a new connection waits for the retained policy before it publishes.
POLICY_NEXT_S = 0.2  # And behind a policy for another: a session brings all that it missed.
ERASE_AGAIN_S = 1.0  # After the disk refused to erase what was delivered.
ERASE_ROWS = 256  # Delivered rows that wait for the next transaction; a crash sends them again.
MAX_OWED = 2000  # Delivered envelopes on a disk that refuses; with more nothing is sent any more.
MAX_GAPS = 4  # Records offered at once, beside envelopes.

_log = logging.getLogger(__name__)


class Publisher:
    """Offers what waits and removes what has arrived. Used by the agent lane only.

    Attributes:
        is_up: There is a connection to the broker.
    """

    def __init__(  # noqa: PLR0913 - the lane's parts, by keyword
        self,
        *,
        vehicle: str,
        device: DeviceKey,
        store: Store,
        consent: Consent,
        uplink: Uplink,
        journal: Journal,
        counts: Counter[str],
    ) -> None:
        self._vehicle = vehicle
        self._device = device
        self._store = store
        self._consent = consent
        self._uplink = uplink
        self._journal = journal
        self._counts = counts
        self._unheard: set[str] = set()  # Grants of which that was told on this connection.
        self._owed: set[int] = set()  # Answered, but not erased yet.
        self._erase_after_s = 0.0
        self._is_owing = False  # It was told that the disk refuses.
        self._flying: dict[int, tuple[str, int, int]] = {}  # Row → grant, n, bytes.
        self._telling: dict[int, StoredGap] = {}  # Gaps on their way.
        self._after_s = math.inf  # Until there is a connection.
        self._saw_policy = False  # On this connection.
        self.is_up = False

    @property
    def begins_in_s(self) -> float:
        """How long nothing is published yet; 0 or less: it goes on."""
        return self._after_s - time.monotonic()

    def connected(self) -> None:
        """Wait for the policy, then begin."""
        _log.info("uplink up")
        self.is_up = True
        self._unheard.clear()
        wait_s = POLICY_NEXT_S if self._saw_policy else POLICY_FIRST_S
        self._after_s = time.monotonic() + wait_s
        self._uplink.publish_status("online")

    def disconnected(self, event: Disconnected, now_ns: int) -> None:
        """Stop; what was on its way is offered again on the next connection."""
        self.is_up = False
        self._flying.clear()
        self._telling.clear()
        for name, word in (("tls-failed", event.tls), ("auth-failed", event.auth)):
            if word:
                self._journal.count(now_ns, name, reason=word, times=1)
        # Not only at the next `Connected`: the connection may be up before we hear.
        self._after_s, self._saw_policy = math.inf, False
        _log.info("uplink down", extra={"reason": event.reason})

    def saw_policy(self) -> None:
        """A document came; another may be behind it."""
        # A session brings it before we hear of the connection.
        self._saw_policy = True
        if self._after_s < math.inf:
            self._after_s = time.monotonic() + POLICY_NEXT_S

    def refused(self, event: Refused) -> None:
        """Count an envelope that the broker does not take."""
        self._counts["refused"] += 1
        self._flying.pop(event.row_id, None)
        _log.warning(
            "broker refused an envelope",
            extra={"row": event.row_id, "reason_code": event.reason_code},
        )

    def settle(self, arrived: Iterable[Delivered], now_ns: int) -> None:
        """Take note of what the broker has taken over; `erase` removes it."""
        row_ids = [event.row_id for event in arrived]
        if not row_ids:
            return
        self._owed.update(row_ids)
        self._counts["delivered"] += sum(1 for row_id in row_ids if row_id > 0)
        for event in arrived:
            if not event.heard:
                self._tell_unheard(event)
        for row_id in row_ids:
            if flown := self._flying.pop(row_id, None):
                grant_id, n, size = flown
                self._journal.count(
                    now_ns, "delivered", n=n, grant=grant_id, envelopes=1, bytes=size
                )
            if told := self._telling.pop(row_id, None):
                self._journal.note(
                    now_ns,
                    "gap",
                    grant=told.grant_id,
                    first=told.first_n,
                    last=told.last_n,
                    reason=told.why,
                )

    def _tell_unheard(self, event: Delivered) -> None:
        """Count an envelope that nobody got, and say so once for each grant and connection."""
        self._counts["unheard"] += 1
        grant_id = self._flying.get(event.row_id, ("", 0, 0))[0]
        if grant_id and grant_id not in self._unheard:
            self._unheard.add(grant_id)
            _log.warning("nobody is subscribed", extra={"grant": grant_id})

    def erase(self, *, at_least: int = 1) -> None:
        """Erase what the broker has taken over; while the disk refuses it is not sent again.

        Args:
            at_least: Only if so many rows wait for it, or none is on its way any more.
        """
        if not self._owed or (self._is_owing and time.monotonic() < self._erase_after_s):
            return
        if len(self._owed) < at_least and (self._flying or self._telling):
            return
        self._erase_after_s = time.monotonic() + ERASE_AGAIN_S
        try:
            self._store.delivered(sorted(self._owed))
        except StoreError as exc:
            if not self._is_owing:
                _log.error("delivered envelopes stay", extra={"error": exc.message})
            self._is_owing = True
        else:
            self._owed.clear()
            self._is_owing = False

    def publish(self, now_ns: int, catalogue: Catalogue) -> None:
        """Offer as much as there is room for."""
        if time.monotonic() < self._after_s:
            return
        room = self._uplink.room()
        if room <= 0:
            return
        if len(self._owed) > MAX_OWED:
            return
        busy = self._uplink.in_flight() | self._owed
        held = self._uplink.held_grants() | self._blocked(catalogue)
        standings = self._consent.standings
        for row in self._store.pending(room, exclude=busy, without=held):
            if standings.get(row.grant_id) is not Standing.ACTIVE:
                continue  # The store says so too; the promise does not hang on one of them.
            taken = self._uplink.publish(
                row.row_id,
                recipient=row.recipient,
                grant_id=row.grant_id,
                n=row.n,
                envelope=row.envelope,
                expiry_s=max(1, (row.expires_ns - now_ns) // NS_PER_S),
            )
            if taken:
                self._flying[row.row_id] = (row.grant_id, row.n, len(row.envelope))
        self._publish_gaps()

    def _publish_gaps(self) -> None:
        """Tell recipients which numbers will not come, also of grants that have ended."""
        busy = self._uplink.in_flight() | self._owed
        for gap in self._store.gaps(MAX_GAPS, exclude=busy):
            record = Gap(
                vehicle=self._vehicle,
                device_kid=self._device.kid,
                grant_id=gap.grant_id,
                first_n=gap.first_n,
                last_n=gap.last_n,
                why=gap.why,
                time_s=max(0, gap.at_ns // NS_PER_S),
            )
            if self._uplink.publish_gap(
                gap.gap_id,
                recipient=gap.recipient,
                grant_id=gap.grant_id,
                record=sign_gap(record, self._device),
            ):
                self._telling[gap.gap_id] = gap

    def _blocked(self, catalogue: Catalogue) -> frozenset[str]:
        """Return the grants of which a class may not use the interface of now."""
        blocked = self._uplink.blocked_classes()
        policy = self._consent.policy
        if not blocked or policy is None:
            return frozenset()
        return frozenset(
            grant.grant_id
            for grant in policy.grants
            if any(catalogue.scopes[d.scope].scope_class in blocked for d in grant.details)
        )
