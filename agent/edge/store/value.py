"""The values that go into the store and come out of it.

Rules:
 * Times are ns since the epoch, given by the caller: the store has no clock.
 * A grant is pending, active or paused while it is live; revoked or expired for good after that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.core.model import NS_PER_S

GrantState = Literal["active", "paused", "pending"]
EndState = Literal["revoked", "expired"]


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """The policy in force: its exact bytes and what the next one is held against.

    Attributes:
        payload_sha256: Of the decoded payload of `jws`, 32 bytes.
        catalogue_sha256: Of the catalogue it was applied with, 32 bytes.
        applied_ns: When it was applied.
    """

    jws: bytes
    epoch: int
    ver: int
    payload_sha256: bytes
    catalogue_sha256: bytes
    applied_ns: int


@dataclass(frozen=True, slots=True)
class LiveGrant:
    """A grant that has not ended. Only an active one takes envelopes and gives them out.

    Attributes:
        classes: Of its scopes, in alphabetical order; the spool's limits go by them.
    """

    grant_id: str
    rev: int
    state: GrantState = "active"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A grant that has ended, for good."""

    grant_id: str
    state: EndState


@dataclass(frozen=True, slots=True)
class Tally:
    """How much lies, or lay, in the spool."""

    envelopes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Purged:
    """What a change of consent did to the spool.

    Attributes:
        erased: Per grant what was erased; a grant of which nothing lay there is absent.
        not_revived: Grants that were to be live but have a tombstone: they stay ended.
        scrubbed: Whether the bytes are gone from the whole directory. If not (the disk is full or
            failing), the change is in force all the same, and `Store.scrub` is to be called again.
    """

    erased: Mapping[str, Tally] = field(default_factory=dict)
    not_revived: tuple[str, ...] = ()
    scrubbed: bool = True


@dataclass(frozen=True, slots=True)
class ClassLimit:
    """How much of one class of scopes the spool keeps; None: as much as of all."""

    max_bytes: int | None = None
    max_age_s: int | None = None


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """How much the spool keeps, and what goes first when it is full.

    Attributes:
        max_bytes: Most bytes of envelopes; None: what the disk allows.
        max_age_s: Longest time that an envelope waits, be its retention as long as it may.
        min_free_bytes: Room on the disk that is left to others.
        classes: Class -> its own limits, beside those.
        evict_first: Classes in the order in which they go. One that is not named goes before them
            all. A grant of several classes goes with the last of them.
    """

    max_bytes: int | None = None
    max_age_s: int | None = None
    min_free_bytes: int = 0
    classes: Mapping[str, ClassLimit] = field(default_factory=dict)
    evict_first: tuple[str, ...] = ()

    def rank(self, classes: tuple[str, ...]) -> int:
        """Return when a grant's envelopes go: the lowest first."""
        places = (self.evict_first.index(c) + 1 for c in classes if c in self.evict_first)
        return max(places, default=0)

    def expires_ns(self, classes: tuple[str, ...], created_ns: int, expires_ns: int) -> int:
        """Return when an envelope is erased: at the end of its retention, or of a limit."""
        ages = (self.max_age_s, *(self.classes[c].max_age_s for c in classes if c in self.classes))
        return min([expires_ns, *(created_ns + age * NS_PER_S for age in ages if age is not None)])


GapReason = Literal["evicted", "expired", "erased", "damaged"]


@dataclass(frozen=True, slots=True)
class StoredGap:
    """Numbers of a grant that will not come, for the recipient to be told.

    Attributes:
        gap_id: Below zero, so that it is no row of the spool.
        first_n: The first number.
        last_n: The last; those between them that did come have come.
        why: evicted: the spool was full. expired: retention or the limit of age had passed.
            erased: consent ended. damaged: the spool could not be read.
        at_ns: When it was noticed first.
    """

    gap_id: int
    grant_id: str
    recipient: str
    first_n: int
    last_n: int
    why: GapReason
    at_ns: int


@dataclass(frozen=True, slots=True)
class NewEnvelope:
    """An envelope that is to be sealed and kept.

    Attributes:
        grant_id: A live, active grant.
        rev: Its revision when the samples were taken, which must still be its revision.
        recipient: To whom the envelope is addressed.
        created_ns: ns since the epoch.
        expires_ns: When the envelope is erased undelivered, ns since the epoch.
        seal: Called with n, from 1 without holes: also over revs, restarts and failures; returns
            the envelope. Called again, maybe with another n, when the first did not reach the disk.
        once: Paths that gave their single sample in this envelope.
    """

    grant_id: str
    rev: int
    recipient: str
    created_ns: int
    expires_ns: int
    seal: Callable[[int], bytes]
    once: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """An envelope that is on disk, or was evicted as it came.

    Attributes:
        n: Its number in its grant.
        size_bytes: Its length.
    """

    n: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SpoolRow:
    """One envelope that waits for delivery.

    Attributes:
        row_id: Names the row for good; no later row gets the same.
        n: The envelope's number in its grant, from 1 without holes.
        expires_ns: When it is erased undelivered.
    """

    row_id: int
    grant_id: str
    rev: int
    n: int
    recipient: str
    envelope: bytes
    expires_ns: int


@dataclass(frozen=True, slots=True)
class SpoolTally:
    """What waits of one grant, for a person at the board.

    Attributes:
        first_n: Least number of an envelope that waits.
        last_n: Highest.
        oldest_ns: When the oldest was sealed, ns since the epoch.
        newest_ns: When the newest was.
        expires_ns: When the first of them is erased undelivered.
    """

    grant_id: str
    rev: int
    state: GrantState
    envelopes: int
    size_bytes: int
    first_n: int
    last_n: int
    oldest_ns: int
    newest_ns: int
    expires_ns: int


RestrictionMode = Literal["pause", "revoke"]
EVERY_GRANT = "*"


@dataclass(frozen=True, slots=True)
class StoredRestriction:
    """A restrict document that was verified; it restricts until a policy takes it over.

    Attributes:
        jti: Names the document; the same one again changes nothing.
        iat_s: When it was signed, s since the epoch.
        grants: Grant ids, or (EVERY_GRANT,).
        taken_over: A policy has listed it, so it restricts no more.
    """

    jti: str
    iat_s: int
    mode: RestrictionMode
    grants: tuple[str, ...]
    taken_over: bool = False


@dataclass(frozen=True, slots=True)
class Floor:
    """The policy that was in force when the consent was lost: no older one may follow.

    Attributes:
        payload_sha256: Hexadecimal.
    """

    epoch: int
    ver: int
    payload_sha256: str


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of the state that could not be used and was begun anew.

    Attributes:
        why: It could not be read and was set aside; or it was there before and is not any more.
    """

    file: Literal["consent", "spool"]
    why: Literal["set-aside", "missing"]


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the numbers of a grant may have been drawn.

    Attributes:
        recipient: To whom its last envelope was addressed.
        n: No number above it has been drawn.
    """

    recipient: str
    n: int


@dataclass(frozen=True, slots=True)
class LocalStop:
    """Somebody at the vehicle has stopped collection and publishing.

    Attributes:
        grant_id: What is stopped, or EVERY_GRANT.
        who: `uid 1000`, or `switch`.
        since_ns: When, ns since the epoch.
        left_ns: How long it still holds, counted while the board runs; None: until it is lifted.
    """

    grant_id: str
    who: str
    since_ns: int
    left_ns: int | None = None
