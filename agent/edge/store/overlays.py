"""What is in force beside the policy: restrictions, stops set at the vehicle, other documents.

Rules:
 * Restrictions and stops only restrict, so keeping one twice is harmless.
 * A restriction that a policy has taken over stays known: brought again, or only then, it changes
   nothing.
 * Only a policy takes restrictions over; only somebody at the vehicle lifts a local stop.
"""

from collections.abc import Sequence

from agent.edge.store.database import Database
from agent.edge.store.value import LocalStop, StoredRestriction


def restrictions(db: Database) -> tuple[StoredRestriction, ...]:
    """Return every restriction, oldest first."""
    rows = db.rows("SELECT jti, iat_s, mode, grants FROM restriction ORDER BY iat_s, jti")
    over = taken_over(db)
    return tuple(
        StoredRestriction(jti, iat_s, mode, tuple(grants.split(" ")), jti in over)
        for jti, iat_s, mode, grants in rows
    )


def taken_over(db: Database) -> frozenset[str]:
    """Return every jti that a policy took over, whether its restriction has come or not."""
    return frozenset(str(row[0]) for row in db.rows("SELECT jti FROM taken_over"))


def keep_restriction(db: Database, restriction: StoredRestriction) -> None:
    """Write a restriction; one with the same jti stays as it is."""
    db.rows(
        "INSERT INTO restriction VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        restriction.jti,
        restriction.iat_s,
        restriction.mode,
        " ".join(restriction.grants),
    )


def take_over(db: Database, jtis: Sequence[str]) -> None:
    """Keep what a policy has taken over; inside the transaction of the policy that lists them."""
    for jti in jtis:
        db.rows("INSERT OR IGNORE INTO taken_over VALUES (?)", jti)


def document(db: Database, name: str) -> bytes | None:
    """Return the document that is kept under a name, or None."""
    row = db.row("SELECT body FROM document WHERE name = ?", name)
    return None if row is None else bytes(row[0])


def keep_document(db: Database, name: str, body: bytes) -> None:
    """Write a document in the place of the one that was kept under its name."""
    db.rows("INSERT OR REPLACE INTO document VALUES (?, ?)", name, body)


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
