"""How the agent is, for whoever asks at the vehicle and, in counters, for the platform.

Rules:
 * Nothing told here is a signal's value; counts of traffic that nobody granted stay on the board.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.control.consent import Consent
from agent.control.journal import Journal
from agent.core.clock import Moment
from agent.core.explanation import TakeFacts
from agent.core.model import NS_PER_S
from agent.core.policy import Grant
from agent.core.standing import EVERY_GRANT, Standing
from agent.core.status import (
    BusStatus,
    CaptureStatus,
    DiskStatus,
    GrantStatus,
    LaneStatus,
    PolicyStatus,
    RestrictionStatus,
    StatusReport,
)
from agent.edge.store import Store, Tally
from agent.edge.uplink import Uplink

HEALTH_VERSION = 1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the agent lane does not own but is asked about.

    Attributes:
        started_s: s since the epoch.
        facts: Returns (grant id, path) → what became of its values; no value among it. To be asked
            by who needs it: it goes through all that is granted.
    """

    version: str
    started_s: int
    lanes: tuple[LaneStatus, ...]
    buses: tuple[BusStatus, ...]
    facts: Callable[[], Mapping[tuple[str, str], TakeFacts]] = dict
    capture: CaptureStatus = field(default_factory=CaptureStatus)


def told_soon(around: Surroundings) -> tuple[dict[str, str], frozenset[str]]:
    """Return what health tells within seconds: how buses are, and which lanes stand still."""
    still = frozenset(lane.name for lane in around.lanes if lane.still_since_s is not None)
    return {bus.name: bus.state for bus in around.buses}, still


def health(status: StatusReport) -> bytes:
    """Return the counters that the platform gets: nothing of them tells of ungranted traffic."""
    policy = status.policy
    return json.dumps(
        {
            "v": HEALTH_VERSION,
            "version": status.version,
            "t": status.now_s,
            "up_s": max(0, status.now_s - status.started_s),
            "time_known": status.is_time_known,
            "policy": None if policy is None else [policy.epoch, policy.ver],
            "grants": {grant.grant_id: grant.state for grant in status.grants},
            "spool": {
                "envelopes": sum(grant.envelopes for grant in status.grants),
                "bytes": sum(grant.size_bytes for grant in status.grants),
            },
            "ledger": {"size": status.disk.ledger_size, "lost": status.disk.ledger_lost},
            "stopped": bool(status.stops),
            "counts": dict(sorted(status.counts.items())),
            "buses": {bus.name: bus.state for bus in status.buses},
            "still": {
                lane.name: lane.still_since_s
                for lane in status.lanes
                if lane.still_since_s is not None
            },
            "certificate_ends_s": status.certificate_ends_s,
            "warnings": list(status.warnings),
        },
        separators=(",", ":"),
    ).encode()


def status_report(  # noqa: PLR0913 - whoever is asked
    vehicle: str,
    consent: Consent,
    store: Store,
    uplink: Uplink,
    journal: Journal,
    *,
    now: Moment,
    counts: Mapping[str, int],
    is_up: bool,
    around: Surroundings,
) -> StatusReport:
    """Return how the agent is."""
    policy, tallies = consent.policy, store.counts()
    return StatusReport(
        version=around.version,
        vehicle=vehicle,
        started_s=around.started_s,
        now_s=now.now_ns // NS_PER_S,
        is_time_known=now.is_known,
        policy=None
        if policy is None
        else PolicyStatus(policy.epoch, policy.ver, policy.iat_s, policy.exp_s),
        lanes=around.lanes,
        buses=around.buses,
        grants=tuple(
            _grant(grant, consent, tallies.get(grant.grant_id, Tally(0, 0)))
            for grant in (policy.grants if policy is not None else ())
        ),
        stops=consent.stops.status(now),
        restrictions=tuple(
            RestrictionStatus(r.jti, r.mode, r.grants, r.iat_s)
            for r in store.restrictions()
            if not r.taken_over
        ),
        uplink="up" if is_up else "down",
        in_flight=uplink.unanswered(),
        counts=counts,
        certificate_ends_s=uplink.certificate_ends_s,
        capture=around.capture,
        disk=DiskStatus(
            spool_fault=store.spool_fault,
            ledger_size=journal.head[0],
            ledger_lost=journal.lost,
            ledger_fault=journal.fault,
            set_aside=store.evidence,
        ),
    )


def _grant(grant: Grant, consent: Consent, tally: Tally) -> GrantStatus:
    policy = consent.policy
    ends = [end for end in (grant.exp_s, policy.exp_s if policy else None) if end is not None]
    return GrantStatus(
        grant_id=grant.grant_id,
        rev=grant.rev,
        recipient=grant.recipient_id or "",
        scopes=tuple(detail.scope for detail in grant.details),
        state=consent.standings.get(grant.grant_id, Standing.PENDING).value,
        why=_why(grant.grant_id, consent),
        until_s=min(ends, default=None),
        envelopes=tally.envelopes,
        size_bytes=tally.size_bytes,
    )


def _why(grant_id: str, consent: Consent) -> str:
    """Say what holds a grant beside the policy."""
    overlays = consent.overlays
    for which, words in (
        (overlays.stopped, "stopped at the vehicle"),
        (overlays.revoked, "revoked by a restrict document"),
        (overlays.paused, "paused by a restrict document"),
        (overlays.lapsed, "no fresh policy for longer than offline_s"),
    ):
        if grant_id in which or EVERY_GRANT in which:
            return words
    return ""
