"""What a recipient has got: to tell duplicates, and to tell lost from evicted and erased.

Rules:
 * An envelope is the same if (vehicle, grant, n) and its bytes are. It is remembered when its
   handling is over, not before: who dies over it gets it again.
 * A number below the highest that came or was told of, which did not come, is missing. It is lost
   unless a signed record of its device says why it will not come.
 * In a file all is remembered for good; in memory so many envelopes, the oldest go first.
"""

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from agent.cloud.envelope import Devices, speaks_for
from agent.core.cose import verify1
from agent.core.gap import Gap, parse_gap
from agent.errors import EnvelopeRejected, UplinkError

REMEMBERED = 100_000  # In memory.

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    vehicle TEXT NOT NULL, grant_id TEXT NOT NULL, n INTEGER NOT NULL, digest BLOB NOT NULL,
    UNIQUE (vehicle, grant_id, n)
) STRICT;
CREATE TABLE IF NOT EXISTS told (
    vehicle TEXT NOT NULL, grant_id TEXT NOT NULL, first_n INTEGER NOT NULL,
    last_n INTEGER NOT NULL, why TEXT NOT NULL,
    UNIQUE (vehicle, grant_id, first_n, last_n, why)
) STRICT;
CREATE TABLE IF NOT EXISTS forgotten (
    vehicle TEXT NOT NULL, grant_id TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (vehicle, grant_id)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Missing:
    """Numbers that have not come.

    Attributes:
        why: A reason of `agent.core.gap`, or "lost": the device says nothing of them.
    """

    vehicle: str
    grant_id: str
    first_n: int
    last_n: int
    why: str


def verify_gap(data: bytes, *, devices: Devices) -> Gap:
    """Return a device's record of numbers that will not come.

    Args:
        data: What came on the topic.
        devices: kid -> public key of enrolled devices.

    Raises:
        EnvelopeRejected: It is no record of an enrolled device, or not of the one that it names.
    """
    signer, payload = verify1(data, devices)
    gap = parse_gap(payload)
    if gap.device_kid != signer:
        raise EnvelopeRejected(
            "another device signed the record than it names", reason="wrong-device"
        )
    speaks_for(devices[signer], gap.vehicle)
    return gap


class Inbox:
    """The memory of a recipient. Used by one thread."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the file, or begin an empty memory.

        Raises:
            UplinkError: The file cannot be used.
        """
        self._limit = None if path is not None else REMEMBERED
        try:
            self._db = sqlite3.connect(
                path or ":memory:", isolation_level=None, check_same_thread=False
            )
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as exc:
            raise UplinkError(
                f"the inbox {path} cannot be used: {exc}", hint="name another file, or none"
            ) from exc

    def close(self) -> None:
        """Close the file; twice is harmless."""
        self._db.close()

    def digest(self, vehicle: str, grant_id: str, n: int) -> bytes | None:
        """Return the hash of what came under a name, or None."""
        row = self._db.execute(
            "SELECT digest FROM seen WHERE vehicle = ? AND grant_id = ? AND n = ?",
            (vehicle, grant_id, n),
        ).fetchone()
        return None if row is None else bytes(row[0])

    def keep(self, vehicle: str, grant_id: str, n: int, digest: bytes) -> None:
        """Remember an envelope whose handling is over."""
        self._db.execute(
            "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", (vehicle, grant_id, n, digest)
        )
        if self._limit is not None:
            self._forget(self._limit)

    def keep_gap(self, gap: Gap) -> None:
        """Remember what a device has signed of numbers that will not come."""
        self._db.execute(
            "INSERT OR IGNORE INTO told VALUES (?, ?, ?, ?, ?)",
            (gap.vehicle, gap.grant_id, gap.first_n, gap.last_n, gap.why),
        )

    def missing(self) -> tuple[Missing, ...]:
        """Return every number that has not come, in runs with one reason, per vehicle and grant."""
        with closing(
            self._db.execute(
                "SELECT vehicle, grant_id FROM seen UNION SELECT vehicle, grant_id FROM told"
            )
        ) as names:
            return tuple(
                run for vehicle, grant_id in sorted(names) for run in self._runs(vehicle, grant_id)
            )

    def _runs(self, vehicle: str, grant_id: str) -> Iterator[Missing]:
        name = (vehicle, grant_id)
        came = [
            n
            for (n,) in self._db.execute(
                "SELECT n FROM seen WHERE vehicle = ? AND grant_id = ? ORDER BY n", name
            )
        ]
        told = list(
            self._db.execute(
                "SELECT first_n, last_n, why FROM told WHERE vehicle = ? AND grant_id = ?", name
            )
        )
        row = self._db.execute(
            "SELECT n FROM forgotten WHERE vehicle = ? AND grant_id = ?", name
        ).fetchone()
        before = row[0] if row else 0
        top = max([*came[-1:], *(last for _, last, _ in told)], default=0)
        for n in (*came, top + 1):
            if n - 1 > before:
                yield from _explained(vehicle, grant_id, (before + 1, n - 1), told)
            before = max(before, n)

    def _forget(self, limit: int) -> None:
        row = self._db.execute(
            "DELETE FROM seen WHERE rowid <= (SELECT max(rowid) FROM seen) - ?"
            " RETURNING vehicle, grant_id, n",
            (limit,),
        ).fetchall()
        for vehicle, grant_id, n in row:
            self._db.execute(
                "INSERT INTO forgotten VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
                " SET n = max(n, excluded.n)",
                (vehicle, grant_id, n),
            )


def _explained(
    vehicle: str, grant_id: str, hole: tuple[int, int], told: list[tuple[int, int, str]]
) -> Iterator[Missing]:
    """Cut a hole at the ends of what was told, and say of each piece why."""
    first, last = hole
    cuts = {first, last + 1}
    for begin, end, _ in told:
        cuts |= {cut for cut in (begin, end + 1) if first < cut <= last}
    edges = sorted(cuts)
    pieces: list[Missing] = []
    for begin, end in itertools.pairwise(edges):
        reasons = [why for low, high, why in told if low <= begin and end - 1 <= high]
        # The narrower word counts: `damaged` is said of all numbers there ever were.
        why = min(reasons, key=lambda word: word == "damaged", default="lost")
        start = pieces.pop().first_n if pieces and pieces[-1].why == why else begin
        pieces.append(Missing(vehicle, grant_id, start, end - 1, why))
    yield from pieces
