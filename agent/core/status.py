"""How the agent is, as it tells whoever may look: lanes, consent, spool; never a signal's value.

The agent lane fills it in, the command line draws it; between them it is JSON with these very
names. Times are s since the epoch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from agent.errors import AgentError

CERTIFICATE_WARN_S = 30 * 86_400


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One thread of the agent.

    Attributes:
        still_since_s: Since when it stands still though it is alive; None while it moves.
    """

    name: str
    is_alive: bool
    still_since_s: int | None = None


@dataclass(frozen=True, slots=True)
class BusStatus:
    """One CAN bus.

    Attributes:
        state: Where it stands, a word of `agent.core.bushealth`.
        frames: Handed over since the start.
        reconnects: How often it was lost, or could not be opened.
        lost_frames: That the process or the controller was too slow for, at the least.
        errors: Kind of what the controller or the line complained of -> how often.
        last_frame_s: When the last frame came; None before the first.
    """

    name: str
    state: str
    frames: int
    reconnects: int
    lost_frames: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    last_frame_s: int | None = None


@dataclass(frozen=True, slots=True)
class GrantStatus:
    """One grant of the policy in force.

    Attributes:
        state: Where it stands: pending, active, paused, revoked, expired.
        why: What holds it beside the policy, such as a local stop; "" for nothing.
        until_s: Its end or the policy's, whichever comes first; None where nothing ends it.
        envelopes: That wait in the spool.
        size_bytes: Of these.
    """

    grant_id: str
    rev: int
    recipient: str
    scopes: tuple[str, ...]
    state: str
    why: str
    until_s: int | None
    envelopes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StopStatus:
    """A local stop that holds.

    Attributes:
        grant_id: What is stopped, or "*" for every grant.
        who: `uid 1000`, or `switch`.
        left_s: How long it still holds; None: until it is lifted.
    """

    grant_id: str
    who: str
    since_s: int
    left_s: int | None


@dataclass(frozen=True, slots=True)
class RestrictionStatus:
    """A restrict document that no policy has taken over yet."""

    jti: str
    mode: str
    grants: tuple[str, ...]
    since_s: int


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """The capture lane. It stays on the board: some of it tells of traffic that nobody granted.

    Attributes:
        frames: That it took.
        overrun: That it was too slow for, and never saw.
        given_up: Messages of transport protocols that could not be put together.
    """

    frames: int = 0
    overrun: int = 0
    given_up: int = 0


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """What the disk does with spool and ledger.

    Attributes:
        spool_fault: Why the spool takes or gives nothing; "" while it does.
        ledger_size: Entries on disk.
        ledger_lost: Entries that the disk refused since it last took one.
        ledger_fault: Why, a name of errno.h; "" while it takes them.
        set_aside: Names of damaged files and ledgers that were set aside and lie there still.
    """

    spool_fault: str = ""
    ledger_size: int = 0
    ledger_lost: int = 0
    ledger_fault: str = ""
    set_aside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """The policy in force, expired or not.

    Attributes:
        until_s: Its `exp`, or None.
    """

    epoch: int
    ver: int
    iat_s: int
    until_s: int | None


@dataclass(frozen=True, slots=True)
class StatusReport:
    """All of it.

    Attributes:
        version: The agent's.
        vehicle: Its pseudonym.
        is_time_known: Somebody who knows has set the clock; time windows are closed while not.
        policy: None before the first.
        uplink: `up` or `down`.
        in_flight: Envelopes that the broker has not answered yet.
        counts: What became of batches and envelopes since the start, by name.
        certificate_ends_s: When our certificate ends; None: not known, or no TLS.
    """

    version: str
    vehicle: str
    started_s: int
    now_s: int
    is_time_known: bool
    policy: PolicyStatus | None
    lanes: tuple[LaneStatus, ...]
    buses: tuple[BusStatus, ...]
    grants: tuple[GrantStatus, ...]
    stops: tuple[StopStatus, ...]
    restrictions: tuple[RestrictionStatus, ...]
    uplink: str
    in_flight: int
    counts: Mapping[str, int]
    certificate_ends_s: int | None = None
    capture: CaptureStatus = CaptureStatus()
    disk: DiskStatus = DiskStatus()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Words for what somebody must look after; none of them tells of the bus."""
        left_s = None if self.certificate_ends_s is None else self.certificate_ends_s - self.now_s
        found = {
            "certificate-ended": left_s is not None and left_s <= 0,
            "certificate-ends-soon": left_s is not None and 0 < left_s <= CERTIFICATE_WARN_S,
            "lane-still": any(lane.still_since_s is not None for lane in self.lanes),
            "ledger-refused": bool(self.disk.ledger_fault or self.disk.ledger_lost),
            "spool-unusable": bool(self.disk.spool_fault),
            "state-set-aside": bool(self.disk.set_aside),
        }
        return tuple(word for word, is_so in found.items() if is_so)

    def members(self) -> dict[str, Any]:
        """Return it as JSON members."""
        # asdict makes nonsense of a Counter, which the counts may be.
        return asdict(replace(self, counts=dict(self.counts)))


def parse_status(members: Mapping[str, Any]) -> StatusReport:
    """Return what the agent told.

    Raises:
        AgentError: It is of another version than this program.
    """
    try:
        raw = dict(members)
        policy = raw.pop("policy")
        return StatusReport(
            policy=None if policy is None else PolicyStatus(**policy),
            lanes=tuple(LaneStatus(**lane) for lane in raw.pop("lanes")),
            buses=tuple(BusStatus(**bus) for bus in raw.pop("buses")),
            grants=tuple(
                GrantStatus(**(grant | {"scopes": tuple(grant["scopes"])}))
                for grant in raw.pop("grants")
            ),
            stops=parse_stops(raw),
            capture=CaptureStatus(**raw.pop("capture")),
            disk=_disk(raw.pop("disk")),
            restrictions=tuple(
                RestrictionStatus(**(item | {"grants": tuple(item["grants"])}))
                for item in raw.pop("restrictions")
            ),
            **raw,
        )
    except (KeyError, TypeError) as exc:
        raise _of_another_version() from exc


def _disk(members: dict[str, Any]) -> DiskStatus:
    return DiskStatus(**(members | {"set_aside": tuple(members["set_aside"])}))


def parse_stops(members: dict[str, Any]) -> tuple[StopStatus, ...]:
    """Take the local stops out of an answer and return them.

    Raises:
        AgentError: It is of another version than this program.
    """
    try:
        return tuple(StopStatus(**stop) for stop in members.pop("stops"))
    except (KeyError, TypeError) as exc:
        raise _of_another_version() from exc


def _of_another_version() -> AgentError:
    return AgentError(
        "the agent's answer is not what this version of consentry expects",
        hint="the running agent is of another version: restart it",
    )
