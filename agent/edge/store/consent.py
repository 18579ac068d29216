"""The consent on disk: policy, grants, restrictions, documents, local stops, counters.

Rules:
 * What is read here is what was committed last.
 * What ends a grant goes through `Store`, which lets the spool follow.
"""

from collections.abc import Mapping

from agent.edge.store import grants, overlays
from agent.edge.store.database import Database
from agent.edge.store.directory import StateDirectory
from agent.edge.store.tables import CONSENT
from agent.edge.store.value import (
    EndState,
    LiveGrant,
    LocalStop,
    StoredPolicy,
    StoredRestriction,
)

NAME = "consent.db"


class ConsentFile:
    """The open consent. Used by the agent thread only."""

    def __init__(self, directory: StateDirectory) -> None:
        self._db = Database(directory, NAME, CONSENT)

    def in_force(self) -> StoredPolicy | None:
        """Return the policy that was applied last, expired or not."""
        return grants.in_force(self._db)

    def live_grants(self) -> tuple[LiveGrant, ...]:
        """Return all grants that have not ended, in order of grant id."""
        return grants.live(self._db)

    def tombstoned(self, grant_id: str) -> EndState | None:
        """Return how the grant ended, or None where it never did."""
        return grants.end_of(self._db, grant_id)

    def restrictions(self) -> tuple[StoredRestriction, ...]:
        """Return every restriction that has come, taken over or not, oldest first."""
        return overlays.restrictions(self._db)

    def taken_over(self) -> frozenset[str]:
        """Return every jti that a policy took over, whether its restriction has come or not."""
        return overlays.taken_over(self._db)

    def document(self, name: str) -> bytes | None:
        """Return the signed document that is kept under a name, or None."""
        return overlays.document(self._db, name)

    def keep_document(self, name: str, body: bytes) -> None:
        """Keep a signed document, such as the trust document, in the place of the one before.

        Raises:
            StoreError: The disk refused; the old one stays.
        """
        self._db.with_reserve(lambda: overlays.keep_document(self._db, name, body))

    def keep_restriction(self, restriction: StoredRestriction) -> None:
        """Keep a restriction; one that is known already stays as it is.

        Raises:
            StoreError: The disk refused.
        """
        self._db.with_reserve(lambda: overlays.keep_restriction(self._db, restriction))

    def local_stops(self) -> tuple[LocalStop, ...]:
        """Return what is stopped at the vehicle, in order of grant id."""
        return overlays.local_stops(self._db)

    def keep_local_stop(self, stop: LocalStop) -> None:
        """Keep a stop, in the place of an older one of the same grant.

        Raises:
            StoreError: The disk refused.
        """
        self._db.with_reserve(lambda: overlays.keep_local_stop(self._db, stop))

    def lift_local_stop(self, grant_id: str) -> bool:
        """Lift the stop of a grant, or the one of every grant; return whether there was one.

        Raises:
            StoreError: The disk refused; it still holds.
        """
        return self._db.with_reserve(lambda: overlays.lift_local_stop(self._db, grant_id))

    def next_counter(self, name: str) -> int:
        """Return 1, 2, 3 … for this name, never one twice, also after a crash.

        Raises:
            StoreError: The disk refused; the number is not used up.
        """
        ((value,),) = self._db.with_reserve(
            lambda: self._db.rows(
                "INSERT INTO number VALUES (?, 1)"
                " ON CONFLICT DO UPDATE SET value = value + 1 RETURNING value",
                name,
            )
        )
        return int(value)

    def number(self, name: str) -> int | None:
        """Return the number kept under this name, or None."""
        row = self._db.row("SELECT value FROM number WHERE name = ?", name)
        return None if row is None else int(row[0])

    def keep_numbers(self, numbers: Mapping[str, int]) -> None:
        """Keep numbers, such as the floor of the clock, under their names, all or none.

        Raises:
            StoreError: The disk refused; the old numbers stay.
        """

        def step() -> None:
            with self._db.transaction():
                self._write_numbers(numbers)

        self._db.with_reserve(step)

    def _write_numbers(self, numbers: Mapping[str, int]) -> None:
        for name, value in numbers.items():
            self._db.rows("INSERT OR REPLACE INTO number VALUES (?, ?)", name, value)
