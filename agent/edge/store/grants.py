"""Who may have rows in the spool: the policy in force, live grants and tombstones.

Rules:
 * What is written here is written inside the caller's transaction.
 * A grant with a tombstone does not become live, whatever a policy says of it.
 * A live grant that the next policy does not name is revoked.
 * A policy never goes back.
"""

from collections.abc import Sequence
from dataclasses import astuple

from agent.edge.store.database import Database
from agent.edge.store.value import EndState, LiveGrant, StoredPolicy, Tombstone
from agent.errors import StoreError


def in_force(db: Database) -> StoredPolicy | None:
    """Return the policy that was written last."""
    row = db.row("SELECT jws, epoch, ver, payload_sha256, catalogue_sha256, applied_ns FROM policy")
    return None if row is None else StoredPolicy(*row)


def live(db: Database) -> tuple[LiveGrant, ...]:
    """Return all grants that have not ended, in order of grant id."""
    rows = db.rows("SELECT grant_id, rev, state, classes FROM live_grant ORDER BY grant_id")
    return tuple(
        LiveGrant(grant_id, rev, state, tuple(classes.split()))
        for grant_id, rev, state, classes in rows
    )


def end_of(db: Database, grant_id: str) -> EndState | None:
    """Return how a grant ended, or None where it never did."""
    row = db.row("SELECT state FROM tombstone WHERE grant_id = ?", grant_id)
    state: EndState | None = None if row is None else row[0]
    return state


def check_not_back(before: StoredPolicy | None, after: StoredPolicy) -> None:
    """Guard once more what admission has decided.

    Raises:
        StoreError: `after` is older, or another payload under the same version.
    """
    if before is None:
        return
    old, new = (before.epoch, before.ver), (after.epoch, after.ver)
    if new < old or (new == old and before.payload_sha256 != after.payload_sha256):
        raise StoreError(
            f"policy {new[0]}.{new[1]} would replace {old[0]}.{old[1]}, expected a newer one",
            hint="sign the policy with a higher version",
        )


def replace(
    db: Database,
    policy: StoredPolicy | None,
    wanted: Sequence[LiveGrant],
    ended: Sequence[Tombstone],
    at_ns: int,
) -> tuple[str, ...]:
    """Write the policy, the tombstones and the live grants; triggers erase the rest.

    Args:
        db: In a transaction.
        policy: The new one, or None to keep the old.
        wanted: All grants that are to be live.
        ended: Grants that have ended; one that is in both lists has ended.
        at_ns: Time of the tombstones.

    Returns:
        Those of `wanted` that stay ended.
    """
    if policy is not None:
        db.rows("INSERT OR REPLACE INTO policy VALUES (1, ?, ?, ?, ?, ?, ?)", *astuple(policy))
    named = {grant.grant_id for grant in wanted} | {grant.grant_id for grant in ended}
    unnamed = [grant.grant_id for grant in live(db) if grant.grant_id not in named]
    for grave in (*ended, *(Tombstone(grant_id, "revoked") for grant_id in unnamed)):
        # The first end counts: a grant that has expired is not revoked later.
        db.rows(
            "INSERT INTO tombstone VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            grave.grant_id,
            grave.state,
            at_ns,
        )
    return tuple(grant.grant_id for grant in wanted if not _write_live(db, grant))


def _write_live(db: Database, grant: LiveGrant) -> bool:
    """Write a live grant in the place of its older revs; False if it has ended before."""
    if end_of(db, grant.grant_id) is not None:
        return False
    write(db, grant)
    return True


def write(db: Database, grant: LiveGrant) -> None:
    """Write a live grant in the place of its older revs, whose rows go."""
    db.rows("DELETE FROM live_grant WHERE grant_id = ? AND rev != ?", grant.grant_id, grant.rev)
    db.rows(
        "INSERT INTO live_grant VALUES (?, ?, ?, ?) ON CONFLICT (grant_id, rev)"
        " DO UPDATE SET state = excluded.state, classes = excluded.classes",
        grant.grant_id,
        grant.rev,
        grant.state,
        " ".join(grant.classes),
    )
