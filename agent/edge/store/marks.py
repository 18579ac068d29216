"""How far the numbers of each grant may have been drawn, kept beside the consent.

Rules:
 * The mark of a grant is on disk, in the consent's file, before a number above the last one is
   drawn. It is raised by many at once, so that it costs an append next to nothing.
 * A spool that was lost or cannot be read goes on above the mark: no number is ever drawn twice,
   and the recipient is told that those up to it may be lost.
"""

from agent.edge.store.database import Database
from agent.edge.store.value import Mark

AHEAD = 1024  # Numbers that one write allows.


def stored(db: Database) -> dict[str, Mark]:
    """Return the mark of each grant that ever drew a number, by grant id."""
    rows = db.rows("SELECT grant_id, recipient, n FROM mark")
    return {grant_id: Mark(recipient, n) for grant_id, recipient, n in rows}


def write(db: Database, grant_id: str, mark: Mark) -> None:
    """Raise the mark of a grant."""
    db.rows("INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", grant_id, mark.recipient, mark.n)
