"""The tables of the two files. They keep the promise by themselves, not the code around them.

    consent.db  policy, live_grant, tombstone, restriction, taken_over, document, local_stop, mark,
                number
    spool.db    live_grant (a copy), spool, sequence, once_taken, gap, number

Rules:
 * An envelope references the (grant, rev) of a live grant in its own file; without one it cannot
   exist, and it goes with it.
 * A grant with a tombstone cannot become live.
 * No byte of an envelope lies in a leaf page of the spool: see `pad_bytes`.
"""

from agent.edge.store.file import Schema

_LIVE_GRANT = """
CREATE TABLE live_grant (
    grant_id TEXT NOT NULL UNIQUE,
    rev INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'paused', 'pending')),
    classes TEXT NOT NULL,
    PRIMARY KEY (grant_id, rev)
) STRICT, WITHOUT ROWID;
"""
_NUMBER = """
CREATE TABLE number (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

_MARK = """
CREATE TABLE mark (
    grant_id TEXT PRIMARY KEY,
    recipient TEXT NOT NULL,
    n INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

CONSENT = Schema(
    version=4,  # 1 and 2 are those of state.db, which held both.
    upgrades={3: _MARK},
    page_bytes=4096,
    sql=(
        _LIVE_GRANT,
        _NUMBER,
        _MARK,
        # Until what takes away was looked for elsewhere: the file may stand for one that was lost.
        "INSERT INTO number VALUES ('begun_anew', 1);",
        """
CREATE TABLE policy (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    jws BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    ver INTEGER NOT NULL,
    payload_sha256 BLOB NOT NULL,
    catalogue_sha256 BLOB NOT NULL,
    applied_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE tombstone (
    grant_id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('revoked', 'expired')),
    at_ns INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE restriction (
    jti TEXT PRIMARY KEY,
    iat_s INTEGER NOT NULL,
    mode TEXT NOT NULL CHECK (mode IN ('pause', 'revoke')),
    grants TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE taken_over (jti TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE document (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE local_stop (
    grant_id TEXT PRIMARY KEY,
    who TEXT NOT NULL,
    since_ns INTEGER NOT NULL,
    left_ns INTEGER
) STRICT, WITHOUT ROWID;
CREATE TRIGGER nothing_leads_back BEFORE INSERT ON live_grant
WHEN EXISTS (SELECT 1 FROM tombstone WHERE grant_id = NEW.grant_id)
BEGIN SELECT RAISE(ABORT, 'the grant has ended'); END;
CREATE TRIGGER an_end_erases AFTER INSERT ON tombstone
BEGIN DELETE FROM live_grant WHERE grant_id = NEW.grant_id; END;
""",
    ),
    # A tombstone before live grants: it keeps its own from being carried over.
    salvaged=(
        *("policy", "tombstone", "live_grant", "number"),
        *("restriction", "taken_over", "local_stop", "document", "mark"),
    ),
)

PAGE_BYTES = 1024
_USABLE = PAGE_BYTES - 4  # Of an overflow page: four bytes name the next one.
_LEAST_LOCAL = (PAGE_BYTES - 12) * 32 // 255 - 23  # M of SQLite's file format, section 1.6
_MOST_LOCAL = PAGE_BYTES - 35  # X of the same
_LEAST_PAD = 64  # From 58 on its length takes two bytes in the record's header.

SPOOL = Schema(
    version=1,
    page_bytes=PAGE_BYTES,
    # row_id is drawn from `sequence`, under no grant's name: a late PUBACK must never hit a younger
    # row that got the id of an erased one, and AUTOINCREMENT would write one page more. For the
    # same reason there is no index by expiry: an append writes six pages.
    sql=(
        _LIVE_GRANT,
        _NUMBER,
        f"""
CREATE TABLE spool (
    row_id INTEGER PRIMARY KEY,
    grant_id TEXT NOT NULL,
    rev INTEGER NOT NULL,
    n INTEGER NOT NULL,
    recipient TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    expires_ns INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    pad BLOB NOT NULL CHECK (length(pad) >= {_LEAST_PAD}),
    envelope BLOB NOT NULL,
    FOREIGN KEY (grant_id, rev) REFERENCES live_grant ON DELETE CASCADE
) STRICT;
CREATE INDEX spool_by_grant ON spool (grant_id, rev);
CREATE TABLE sequence (
    grant_id TEXT PRIMARY KEY,
    n INTEGER NOT NULL,
    recipient TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE once_taken (
    grant_id TEXT NOT NULL,
    path TEXT NOT NULL,
    PRIMARY KEY (grant_id, path)
) STRICT, WITHOUT ROWID;
CREATE TABLE gap (
    gap_id INTEGER PRIMARY KEY AUTOINCREMENT,
    grant_id TEXT NOT NULL,
    recipient TEXT NOT NULL,
    first_n INTEGER NOT NULL,
    last_n INTEGER NOT NULL CHECK (last_n >= first_n),
    why TEXT NOT NULL CHECK (why IN ('evicted', 'expired', 'erased', 'damaged')),
    at_ns INTEGER NOT NULL
) STRICT;
""",
    ),
    salvaged=("live_grant", "sequence", "once_taken", "gap", "number"),
)


def pad_bytes(columns: tuple[int | str, ...], envelope_bytes: int) -> int:
    """Return how long the pad in front of an envelope must be.

    SQLite zeroes a freed page whole, but a leaf page that it rebuilds keeps stale copies of moved
    cells in its gap: of 3,417 erased envelopes one could still be read. So the part of a record
    that stays in the leaf must end before the envelope begins. A record of P bytes keeps
    K = M + (P - M) mod (U - 4) bytes there, of which M is the least: the pad makes P such that
    K = M, and the envelope lies in overflow pages of its own, the last of them full.

    Args:
        columns: All others of the row but `row_id`, in order.
        envelope_bytes: Length of the envelope.
    """
    header, body = 2, 0  # The header's own length, and row_id, which is the key and stands as NULL.
    for value in columns:
        size = len(value.encode()) if isinstance(value, str) else _integer_bytes(value)
        header += _varint_bytes(13 + 2 * size) if isinstance(value, str) else 1
        body += size
    header += 2 + _varint_bytes(12 + 2 * envelope_bytes)
    # A header of 128 bytes and more takes a second byte for its length; ours never has as many.
    before = header + body
    least = max(before + _LEAST_PAD, _LEAST_LOCAL) + envelope_bytes
    pages = max(1, -(-(least - _LEAST_LOCAL) // _USABLE))
    record = _LEAST_LOCAL + pages * _USABLE
    assert record > _MOST_LOCAL
    return record - before - envelope_bytes


def own_page_bytes(envelope_bytes: int) -> int:
    """Return how much the pages take that an envelope has to itself, with names of usual length."""
    return -(-(envelope_bytes + _LEAST_LOCAL) // _USABLE) * PAGE_BYTES


def _integer_bytes(value: int) -> int:
    """Return how many bytes an integer takes in a record (section 2.1)."""
    if value in (0, 1):
        return 0
    for size in (1, 2, 3, 4, 6):
        if -(1 << (8 * size - 1)) <= value < 1 << (8 * size - 1):
            return size
    return 8


def _varint_bytes(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))
