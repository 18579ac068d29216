"""Closed batches → sealed envelopes in the spool.

Rules:
 * A batch is sealed to its recipient in RAM, before the disk sees it.
 * A batch of a grant that has ended, or was changed, since it was taken is dropped and counted; so
   is one that the disk refuses. The consent is never at stake.
 * Each envelope names the head of the ledger as it is on disk.
"""

import logging
from collections import Counter
from collections.abc import Sequence

from agent.control.consent import Consent
from agent.control.journal import Journal
from agent.core.codec import CODEC_ID, encode
from agent.core.cose import DeviceKey
from agent.core.model import NS_PER_S, Batch
from agent.core.policy import DEFAULT_RETENTION_S, Grant, Policy
from agent.core.seal import Header, header_times, recipient_key, seal
from agent.core.take import once_paths
from agent.edge.store import Kept, NewEnvelope, Store
from agent.errors import StoreError

_log = logging.getLogger(__name__)


class Sealer:
    """Seals and stores. Used by the agent lane only."""

    def __init__(  # noqa: PLR0913 - the lane's parts, by keyword
        self,
        *,
        vehicle: str,
        device: DeviceKey,
        store: Store,
        consent: Consent,
        journal: Journal,
        counts: Counter[str],
    ) -> None:
        self._vehicle = vehicle
        self._device = device
        self._store = store
        self._consent = consent
        self._journal = journal
        self._counts = counts

    def keep(self, batches: Sequence[Batch], now_ns: int) -> None:
        """Seal each batch to its recipient and append all to the spool, with one fsync."""
        covered = []
        for batch in batches:
            policy, grant = self._consent.policy, self._consent.grant(batch.grant_id)
            if (
                policy is None
                or grant is None
                or (grant.rev, grant.recipient_id) != (batch.rev, batch.recipient)
            ):
                self._counts["dropped_ended"] += 1
                self._note_dropped(batch, "ended", now_ns)
            else:
                covered.append((batch, self._new(batch, policy, grant, now_ns)))
        kept = self._store.append_all([new for _, new in covered])
        for (batch, _), result in zip(covered, kept, strict=True):
            if isinstance(result, StoreError):
                self._counts["dropped_store"] += 1
                self._note_dropped(batch, "store", now_ns)
                _log.warning(
                    "batch dropped", extra={"grant": batch.grant_id, "error": result.message}
                )
            else:
                self._note_sealed(batch, result, now_ns)

    def _new(self, batch: Batch, policy: Policy, grant: Grant, now_ns: int) -> NewEnvelope:
        """Return what seals a batch once its number is drawn."""
        recipient = policy.recipients[batch.recipient].keys[0]
        plaintext = encode(batch)
        from_s, to_s = header_times(batch)
        ledger_size, ledger_root = self._journal.head

        def sealed(n: int) -> bytes:
            header = Header(
                vehicle=self._vehicle,
                device_kid=self._device.kid,
                grant_id=batch.grant_id,
                rev=batch.rev,
                n=n,
                epoch=policy.epoch,
                ver=policy.ver,
                from_s=from_s,
                to_s=to_s,
                codec=CODEC_ID,
                ledger_size=ledger_size,
                ledger_root=ledger_root,
            )
            return seal(plaintext, header, recipient=recipient_key(recipient), device=self._device)

        return NewEnvelope(
            batch.grant_id,
            batch.rev,
            recipient=batch.recipient,
            created_ns=now_ns,
            expires_ns=now_ns + (grant.retention_s or DEFAULT_RETENTION_S) * NS_PER_S,
            seal=sealed,
            once=self._once_paths(batch, grant),
        )

    def _note_sealed(self, batch: Batch, kept: Kept, now_ns: int) -> None:
        self._journal.count(
            now_ns,
            "sealed",
            n=kept.n,
            grant=batch.grant_id,
            rev=batch.rev,
            envelopes=1,
            bytes=kept.size_bytes,
            samples=batch.count,
        )
        self._counts["sealed"] += 1
        self._counts["samples"] += batch.count

    def _note_dropped(self, batch: Batch, reason: str, now_ns: int) -> None:
        self._journal.count(
            now_ns,
            "dropped",
            grant=batch.grant_id,
            rev=batch.rev,
            batches=1,
            samples=batch.count,
            reason=reason,
        )

    def _once_paths(self, batch: Batch, grant: Grant) -> tuple[str, ...]:
        once = once_paths(grant, self._consent.catalogue)
        return tuple(column.path for column in batch.columns if column.path in once)
