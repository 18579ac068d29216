"""What restricts beside the policy: restrict documents, and stops set at the vehicle.

Rules:
 * Both only restrict, so keeping one twice is harmless.
 * A restriction that a policy has taken over stays known: brought again it changes nothing.
 * Only a policy takes restrictions over; only somebody at the vehicle lifts a local stop.
"""

from collections.abc import Sequence

from agent.edge.store.database import Database
from agent.edge.store.value import LocalStop, StoredRestriction


def restrictions(db: Database) -> tuple[StoredRestriction, ...]:
    """Return every restriction, oldest first."""
    rows = db.rows(
        "SELECT jti, iat_s, mode, grants, taken_over FROM restriction ORDER BY iat_s, jti"
    )
    return tuple(
        StoredRestriction(jti, iat_s, mode, tuple(grants.split(" ")), bool(taken_over))
        for jti, iat_s, mode, grants, taken_over in rows
    )


def keep_restriction(db: Database, restriction: StoredRestriction) -> None:
    """Write a restriction; one with the same jti stays as it is."""
    db.rows(
        "INSERT INTO restriction VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        restriction.jti,
        restriction.iat_s,
        restriction.mode,
        " ".join(restriction.grants),
        int(restriction.taken_over),
    )


def take_over(db: Database, jtis: Sequence[str]) -> None:
    """Mark restrictions as taken over; inside the transaction of the policy that lists them."""
    for jti in jtis:
        db.rows("UPDATE restriction SET taken_over = 1 WHERE jti = ?", jti)


def local_stops(db: Database) -> tuple[LocalStop, ...]:
    """Return every stop, in order of grant id."""
    rows = db.rows("SELECT grant_id, who, since_ns, left_ns FROM local_stop ORDER BY grant_id")
    return tuple(LocalStop(*row) for row in rows)


def keep_local_stop(db: Database, stop: LocalStop) -> None:
    """Write a stop in the place of an older one of the same grant."""
    db.rows(
        "INSERT OR REPLACE INTO local_stop VALUES (?, ?, ?, ?)",
        stop.grant_id,
        stop.who,
        stop.since_ns,
        stop.left_ns,
    )


def lift_local_stop(db: Database, grant_id: str) -> bool:
    """Remove a stop; return whether there was one."""
    return bool(db.rows("DELETE FROM local_stop WHERE grant_id = ? RETURNING 1", grant_id))
