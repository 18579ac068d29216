"""Signed documents that arrive: applied or refused, written into the ledger, and answered.

Rules:
 * The answer comes after the disk. A document that the disk refuses is not answered: it may have
   been a revocation, and the broker brings it again.
 * A refusal changes nothing, and is answered with its reason.
"""

import hashlib
import logging
from collections.abc import Callable

from agent.control.change import Change, Received
from agent.control.consent import Consent
from agent.control.enactment import Enactment
from agent.control.journal import Journal
from agent.control.keys import tell_keys
from agent.core.ack import Ack, sign_ack
from agent.core.clock import Reading
from agent.core.cose import DeviceKey
from agent.core.jws import (
    POLICY_TYP,
    RESTRICT_TYP,
    TRUST_TYP,
    unsafe_unverified_payload,
    unsafe_unverified_typ,
)
from agent.core.model import NS_PER_MS, NS_PER_S
from agent.core.standing import EVERY_GRANT
from agent.edge.store import Purged, Store
from agent.edge.uplink import Uplink
from agent.errors import PolicyRejected

_log = logging.getLogger(__name__)


class Documents:
    """Obeys policies, restrict and trust documents. Used by the agent thread only."""

    def __init__(  # noqa: PLR0913 - the lane's parts, by keyword
        self,
        *,
        vehicle: str,
        device: DeviceKey,
        store: Store,
        consent: Consent,
        uplink: Uplink,
        journal: Journal,
        enactment: Enactment,
        clock: Callable[[], Reading],
    ) -> None:
        """Put it together; the arguments are those of `Agent`."""
        self._vehicle = vehicle
        self._device = device
        self._store = store
        self._consent = consent
        self._uplink = uplink
        self._journal = journal
        self._enactment = enactment
        self._clock = clock

    def arrived(self, data: bytes) -> None:
        """Apply a document that came over the network, and answer.

        Raises:
            StoreError: The disk refused it; nothing changed, and no answer was given.
        """
        reading, before = self._clock(), self.version()
        try:
            received = self.obey(data, reading)
        except PolicyRejected as exc:
            _log.warning("policy refused", extra={"reason": exc.reason, "error": exc.message})
            self._answer(payload_digest(data), "refused", exc.reason, before, None, reading)
            return
        outcome = "repeated" if received.change is None else "applied"
        self._answer(payload_digest(data), outcome, "", before, received.change, reading)

    def obey(self, data: bytes, reading: Reading) -> Received:
        """Apply a document: consent first, then the plan, what is in flight, and the ledger.

        Raises:
            PolicyRejected: It must not be applied; nothing changed.
            StoreError: The disk refused it; nothing changed.
        """
        digest = payload_digest(data).hex()
        try:
            received = self._consent.receive(data, reading)
        except PolicyRejected as exc:
            kind = "restriction-refused" if _typ(data) == RESTRICT_TYP else "policy-refused"
            now_ns = self._consent.moment(self._clock()).now_ns
            self._journal.note(now_ns, kind, sha256=digest, reason=exc.reason)
            self._journal.checkpoint(now_ns, self._device)
            raise
        change, policy = received.change, self._consent.policy
        if change is None:
            epoch, ver = self.version()
            now_ns = self._consent.moment(self._clock()).now_ns
            self._journal.note(now_ns, "policy-repeated", sha256=digest, epoch=epoch, ver=ver)
            self._journal.checkpoint(now_ns, self._device)
            return received
        self._enactment.halt(change)
        now_ns = self._consent.moment(self._clock()).now_ns
        self._journal.note(now_ns, "policy-received", sha256=digest, bytes=len(data))
        if received.restriction is not None:
            grants = [g for g in received.restriction.grants if g != EVERY_GRANT]
            self._journal.note(
                now_ns,
                "restriction-applied",
                jti=received.restriction.jti,
                mode=received.restriction.mode,
                grants=sorted(grants),
            )
        elif received.typ == TRUST_TYP:
            self._journal.note(now_ns, "trust-applied", ver=self._consent.trust.ver)
            self.tell_keys(now_ns)
        elif policy is not None and received.typ == POLICY_TYP:
            self._journal.policy_applied(now_ns, policy, received.before)
        if fell_ns := self._consent.take_fall_ns():
            self._journal.note(
                now_ns, "floor-lowered", epoch=self.version()[0], by=fell_ns // NS_PER_S
            )
        self._journal.changed(
            now_ns, change, reason="policy" if received.restriction is None else "restriction"
        )
        self._journal.checkpoint(now_ns, self._device)
        _log.info(
            "policy applied",
            extra={
                "typ": received.typ,
                "epoch": self.version()[0],
                "version": self.version()[1],
                "live": len(change.plan.live),
                "ended": len(change.ended),
                "purged": sum(t.envelopes for t in change.purged.erased.values()),
            },
        )
        return received

    def answer_ended(self, change: Change, before: tuple[int, int], reading: Reading) -> None:
        """Give the platform a receipt for what time has ended.

        Args:
            change: What was erased.
            before: Epoch and version that were in force.
            reading: What the clocks said when it was due.
        """
        policy = self._consent.policy
        digest = bytes(32) if policy is None else bytes.fromhex(policy.payload_sha256)
        self._answer(digest, "ended", "", before, change, reading)

    def tell_keys(self, now_ns: int) -> None:
        """Write into the ledger which keys have changed since it was told last."""
        tell_keys(
            self._store,
            self._journal,
            trust=self._consent.trust,
            device=self._device,
            now_ns=now_ns,
        )

    def version(self) -> tuple[int, int]:
        """Return epoch and version of the policy in force; zeros where there is none."""
        stored = self._store.in_force()
        return (0, 0) if stored is None else (stored.epoch, stored.ver)

    def _answer(  # noqa: PLR0913, PLR0917 - the members of the answer
        self,
        digest: bytes,
        outcome: str,
        reason: str,
        before: tuple[int, int],
        change: Change | None,
        arrived: Reading,
    ) -> None:
        epoch, ver = self.version()
        skipped = self._consent.plan.skipped if outcome != "refused" else ()
        purged = change.purged if change is not None else Purged()
        now = self._clock()
        ack = Ack(
            vehicle=self._vehicle,
            payload_sha256=digest,
            epoch=epoch,
            ver=ver,
            before=before,
            outcome=outcome,
            reason=reason,
            time_s=self._consent.moment(now).now_ns // NS_PER_S,
            counter=self._store.next_counter("ack"),
            ledger_size=self._journal.head[0],
            ledger_root=self._journal.head[1],
            skipped=tuple(sorted({item.path for item in skipped})),
            erased={g: (t.envelopes, t.size_bytes) for g, t in purged.erased.items()},
            scrubbed=purged.scrubbed,
            latency_ms=max(0, now.boot_ns - arrived.boot_ns) // NS_PER_MS,
        )
        self._uplink.publish_ack(sign_ack(ack, self._device))


def _typ(token: bytes) -> str | None:
    """Return what kind of document a token says it is; None where it is no token."""
    try:
        return unsafe_unverified_typ(token)
    except PolicyRejected:
        return None


def payload_digest(token: bytes) -> bytes:
    """Return the SHA-256 that names a policy in its answer: of its payload.

    Of what is no token, and so has no payload, it is that of the bytes as they came.
    """
    try:
        return hashlib.sha256(unsafe_unverified_payload(token)).digest()
    except PolicyRejected:
        return hashlib.sha256(token).digest()
