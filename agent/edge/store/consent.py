"""The consent on disk: policy, grants, restrictions, documents, local stops, counters.

Rules:
 * What is read here is what was committed last.
 * What ends a grant goes through `Store`, which lets the spool follow.
"""

from collections.abc import Mapping

from agent.core.model import NS_PER_S
from agent.edge.store import grants, overlays
from agent.edge.store.database import Database
from agent.edge.store.directory import StateDirectory
from agent.edge.store.tables import CONSENT
from agent.edge.store.value import (
    EndState,
    Floor,
    LiveGrant,
    LocalStop,
    StoredPolicy,
    StoredRestriction,
)

NAME = "consent.db"
BEGUN_ANEW = "begun_anew"
_FLOOR = "floor"  # The name under which the floor is kept.
FLOOR_NS = "floor_ns"  # Name of the number that is the floor of the clock.
CHANGED_NS = "changed_ns"  # And of the one that says when grants changed last.
SPOOL_ERASURES = "spool_erasures"  # How often the whole spool was erased under living grants.


class ConsentFile:
    """The open consent. Used by the agent thread only."""

    def __init__(self, directory: StateDirectory) -> None:
        self._db = Database(directory, NAME, CONSENT)

    @property
    def is_lossy(self) -> bool:
        """Whether a corrupt consent was set aside of which not all could be carried over."""
        return self._db.is_lossy

    @property
    def is_begun_anew(self) -> bool:
        """Whether the file is new, and `end_beginning` was not called."""
        return bool(self.number(BEGUN_ANEW))

    def end_beginning(self, floor: Floor | None, *, last_s: int) -> None:
        """Keep what is known of a file that this one stands for.

        Args:
            floor: The policy below which none may come, or None.
            last_s: When that file was still there, s since the epoch; 0: there was none.

        Raises:
            StoreError: The disk refused; it is still begun anew.
        """
        # Answers are fewer than one a ms, so this is above the counter of any that was given.
        numbers = {"ack": last_s * 1000, FLOOR_NS: last_s * NS_PER_S}

        def step() -> None:
            with self._db.transaction():
                if floor is not None:
                    body = f"{floor.epoch} {floor.ver} {floor.payload_sha256}".encode()
                    overlays.keep_document(self._db, _FLOOR, body)
                risen = {k: v for k, v in numbers.items() if v > (self.number(k) or 0)}
                self._write_numbers({**risen, BEGUN_ANEW: 0})

        self._db.with_reserve(step)

    def floor(self) -> Floor | None:
        """Return the policy below which none may come though it is not here any more, or None."""
        body = self.document(_FLOOR)
        if body is None:
            return None
        epoch, ver, payload_sha256 = body.decode().split()
        return Floor(int(epoch), int(ver), payload_sha256)

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

    def latest_ns(self) -> int:
        """Return the latest time on disk: of what the spool does late no better one is known."""
        policy = self.in_force()
        return max(
            self.number(CHANGED_NS) or 0,
            self.number(FLOOR_NS) or 0,
            0 if policy is None else policy.applied_ns,  # A state of 0.1.0 has no more.
        )

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
