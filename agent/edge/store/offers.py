"""What the spool offers to be sent: of each grant its share, so that none starves another."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from agent.edge.store.database import Database
from agent.edge.store.value import LiveGrant, SpoolRow


def offered(
    db: Database,
    may_go: Sequence[LiveGrant],
    limit: int,
    *,
    exclude: AbstractSet[int],
    newest_first: bool,
) -> tuple[SpoolRow, ...]:
    """Return up to `limit` envelopes, in the order in which they are to go.

    Args:
        db: Of the spool.
        may_go: The grants whose envelopes may be sent.
        limit: Most envelopes.
        exclude: Rows that are on their way already.
        newest_first: Which of a grant go first.
    """
    order = "DESC" if newest_first else "ASC"
    offers = [
        [
            row_id
            for (row_id,) in db.rows(
                "SELECT row_id FROM spool WHERE grant_id = ? AND rev = ?"  # noqa: S608 - a fixed word
                f" ORDER BY row_id {order} LIMIT ?",
                grant.grant_id,
                grant.rev,
                limit + len(exclude),
            )
            if row_id not in exclude
        ]
        for grant in may_go
    ]
    chosen = sorted(_share(offers, limit), reverse=newest_first)
    marks = ", ".join("?" * len(chosen))
    rows = db.rows(
        "SELECT row_id, grant_id, rev, n, recipient, envelope, expires_ns"  # noqa: S608 - question marks
        f" FROM spool WHERE row_id IN ({marks}) ORDER BY row_id {order}",
        *chosen,
    )
    return tuple(SpoolRow(*row) for row in rows)


def _share(offers: Sequence[Sequence[int]], limit: int) -> list[int]:
    """Return up to `limit` of all, one of each in turn: none may starve another."""
    chosen: list[int] = []
    turn = 0
    while len(chosen) < limit and any(turn < len(offer) for offer in offers):
        chosen += [offer[turn] for offer in offers if turn < len(offer)]
        turn += 1
    return chosen[:limit]
