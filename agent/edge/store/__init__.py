"""What survives a restart: the policy in force, live grants, tombstones, and the spool."""

from agent.edge.store.consent import FLOOR_NS
from agent.edge.store.store import Store
from agent.edge.store.value import (
    EVERY_GRANT,
    ClassLimit,
    Damage,
    EndState,
    Floor,
    GapReason,
    GrantState,
    LiveGrant,
    LocalStop,
    Purged,
    SpoolLimits,
    SpoolRow,
    SpoolTally,
    StoredGap,
    StoredPolicy,
    StoredRestriction,
    Tally,
    Tombstone,
)

__all__ = [
    "EVERY_GRANT",
    "FLOOR_NS",
    "ClassLimit",
    "Damage",
    "EndState",
    "Floor",
    "GapReason",
    "GrantState",
    "LiveGrant",
    "LocalStop",
    "Purged",
    "SpoolLimits",
    "SpoolRow",
    "SpoolTally",
    "Store",
    "StoredGap",
    "StoredPolicy",
    "StoredRestriction",
    "Tally",
    "Tombstone",
]
