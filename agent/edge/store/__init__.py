"""What survives a restart: the policy in force, live grants, tombstones, and the spool."""

from agent.edge.store.store import Store
from agent.edge.store.value import (
    EVERY_GRANT,
    EndState,
    GrantState,
    LiveGrant,
    LocalStop,
    Purged,
    SpoolRow,
    StoredPolicy,
    StoredRestriction,
    Tally,
    Tombstone,
)

__all__ = [
    "EVERY_GRANT",
    "EndState",
    "GrantState",
    "LiveGrant",
    "LocalStop",
    "Purged",
    "SpoolRow",
    "Store",
    "StoredPolicy",
    "StoredRestriction",
    "Tally",
    "Tombstone",
]
