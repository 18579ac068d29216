"""What survives a restart: the policy in force, live grants, tombstones, and the spool."""

from agent.edge.store.store import Store
from agent.edge.store.value import (
    EndState,
    GrantState,
    LiveGrant,
    Purged,
    SpoolRow,
    StoredPolicy,
    Tally,
    Tombstone,
)

__all__ = [
    "EndState",
    "GrantState",
    "LiveGrant",
    "Purged",
    "SpoolRow",
    "Store",
    "StoredPolicy",
    "Tally",
    "Tombstone",
]
