"""A consent that had to be begun anew gets from the ledger what takes away, before it is in force.

Rules:
 * It happens once for each new `consent.db`, also after a crash in the middle: the file says so
   until it was done. In a new vehicle the ledger is empty, and there is nothing to do.
 * Nothing is granted by it. The platform's policy comes again by itself (it is retained), and is
   held against the version that the ledger names.
 * Where consent was lost and the ledger does not know all either, everything is stopped until
   somebody at the vehicle resumes.
"""

import logging
from collections.abc import Iterable

from agent.core.clock import Moment
from agent.core.ledger import Entry
from agent.core.model import NS_PER_S
from agent.core.recall import Recalled, recall
from agent.core.standing import EVERY_GRANT
from agent.edge.store import Floor, LocalStop, Store, StoredRestriction, Tombstone
from agent.errors import LedgerError

BY_DAMAGE = "damage"

_log = logging.getLogger(__name__)


def recover(store: Store, entries: Iterable[Entry | LedgerError], now: Moment) -> bool:
    """Write into a consent that was begun anew what a ledger knows of the one before.

    Args:
        store: Open, and asked for nothing yet.
        entries: Of the ledger, in order.
        now: When.

    Returns:
        Whether everything was stopped, because not all is known.

    Raises:
        StoreError: The disk refused; it is done again at the next start.
    """
    if not store.is_begun_anew:
        return False
    known = recall(entries)
    _write(store, known, now)
    was_lost = store.is_lossy or (store.in_force() is None and known.version is not None)
    must_stop = was_lost and not known.is_whole
    if must_stop:
        store.keep_local_stop(LocalStop(EVERY_GRANT, BY_DAMAGE, now.now_ns))
    if was_lost:
        _log.error("consent recalled", extra={"ended": len(known.ended), "stopped": must_stop})
    floor = None if known.version is None else Floor(*known.version)
    store.end_beginning(floor, last_s=known.last_s if was_lost else 0)
    return must_stop


def _write(store: Store, known: Recalled, now: Moment) -> None:
    unknown = [
        Tombstone(grant_id, state)
        for grant_id, state in known.ended.items()
        if store.tombstoned(grant_id) is None
    ]
    if unknown:
        store.end_grants(unknown, now.now_ns)
    for seen in known.restrictions:
        store.keep_restriction(StoredRestriction(seen.jti, seen.at_s, seen.mode, seen.grants))
    held = {stop.grant_id for stop in store.local_stops()}
    for grant_id, stop in known.stops.items():
        if grant_id not in held:
            who = stop.by if isinstance(stop.by, str) else f"uid {stop.by}"
            left_ns = None if stop.for_s is None else stop.for_s * NS_PER_S
            store.keep_local_stop(LocalStop(grant_id, who, stop.since_s * NS_PER_S, left_ns))
