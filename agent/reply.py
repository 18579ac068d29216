"""What the running agent says and does when it is asked over the control socket.

Rules:
 * Everything here runs in the agent lane's thread, between two of its turns: it may look at the
   store and the consent, and nothing that it looks at moves meanwhile.
 * Who may ask was judged at the socket; what is asked is judged here. A stop of a grant that is not
   there is refused, for whoever asked must not believe that something was stopped.
 * A stop never takes the place of a longer one: who may stop must not lift, by a short stop, what
   only others may resume.
 * No value of a signal, in no answer.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from agent.control import Agent, Consent
from agent.core.ask import Explain, Pause, Restrict, Resume, Status
from agent.core.binding import Binding
from agent.core.catalogue import Catalogue
from agent.core.clock import Moment, Reading
from agent.core.explain import explain
from agent.core.explanation import TakeFacts, View
from agent.core.model import NS_PER_S
from agent.core.pipeline import TakeCounts
from agent.core.policy import Grant, Policy
from agent.core.standing import EVERY_GRANT
from agent.core.status import (
    BusStatus,
    GrantStatus,
    LaneStatus,
    PolicyStatus,
    RestrictionStatus,
    StatusReport,
    StopStatus,
)
from agent.edge.control_socket import Ask
from agent.edge.store import LocalStop, Store
from agent.edge.uplink import Uplink
from agent.errors import AgentError, AskRefused, PolicyRejected

SWITCH = "switch"  # Who stops where the vehicle's privacy switch does.


@dataclass(frozen=True, slots=True)
class Restricted:
    """What became of a restrict document.

    Attributes:
        outcome: `applied` or `repeated`.
        mode: `pause` or `revoke`.
        grants: Grant ids, or (EVERY_GRANT,).
    """

    outcome: str
    mode: str
    grants: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sights:
    """What is looked at outside the agent lane, each when it is asked for.

    Attributes:
        lanes: How the lanes are.
        buses: How the buses are.
        counts: (grant id, path) → what became of its values.
        is_private: Whether the privacy switch says so; False without one.
    """

    lanes: Callable[[], Sequence[LaneStatus]]
    buses: Callable[[], Sequence[BusStatus]]
    counts: Callable[[], Mapping[tuple[str, str], TakeCounts]]
    is_private: Callable[[], bool]


class Replies:
    """Replies to one `Ask` after the other."""

    def __init__(  # noqa: PLR0913 - what is told and what is done, by keyword
        self,
        *,
        version: str,
        vehicle: str,
        catalogue: Catalogue,
        binding: Binding,
        agent: Agent,
        consent: Consent,
        store: Store,
        uplink: Uplink,
        clock: Callable[[], Reading],
        restrict: Callable[[bytes], Restricted],
        sights: Sights,
    ) -> None:
        """Prepare.

        Args:
            version: The agent's.
            vehicle: Its pseudonym.
            catalogue: What the policy's scopes mean.
            binding: What the vehicle can give.
            agent: The lane in whose thread this runs.
            consent: The lane's.
            store: The lane's.
            uplink: The network lane.
            clock: What the machine's clocks say.
            restrict: Applies a restrict document; may raise PolicyRejected.
            sights: Everything else.
        """
        self._version = version
        self._vehicle = vehicle
        self._catalogue = catalogue
        self._binding = binding
        self._agent = agent
        self._consent = consent
        self._store = store
        self._uplink = uplink
        self._clock = clock
        self._restrict = restrict
        self._sights = sights
        self._started_s = time.monotonic()
        self._private_since_s: int | None = None

    def to(self, ask: Ask) -> None:
        """Do what was asked and reply; what must not be done is refused.

        Raises:
            StoreError: The disk refused a stop. Whoever asked hears so; the process must end, for
                nobody knows what holds after the next start.
        """
        try:
            match ask.verb:
                case Pause(grant, for_s):
                    self._pause(grant, for_s, f"uid {ask.peer.uid}")
                    ask.answer({"stops": self._stops_told()})
                case Resume(grant):
                    self._resume(grant)
                    ask.answer({"stops": self._stops_told()})
                case Status():
                    ask.answer(self._status().members())
                case Explain(path):
                    ask.answer(explain(path, self._view()).members())
                case Restrict(token):
                    done = self._restrict(token.encode("ascii"))
                    ask.answer(
                        {"outcome": done.outcome, "mode": done.mode, "grants": list(done.grants)}
                    )
        except PolicyRejected as exc:
            ask.refuse(exc.message, hint=exc.hint, reason=exc.reason)
        except AskRefused as exc:
            ask.refuse(exc.message, hint=exc.hint)
        except AgentError as exc:
            ask.refuse(exc.message, hint=exc.hint)
            raise

    def _pause(self, grant_id: str | None, for_s: int | None, who: str) -> None:
        if grant_id is not None and self._consent.grant(grant_id) is None:
            known = ", ".join(self._consent.standings) or "none at all"
            raise AskRefused(
                f"there is no grant {grant_id} in the policy in force",
                hint=f"there are: {known}; without --grant everything stops",
            )
        which = grant_id or EVERY_GRANT
        for_ns = None if for_s is None else for_s * NS_PER_S
        held = next((stop for stop in self._store.local_stops() if stop.grant_id == which), None)
        if held is not None:
            if held.left_ns is None:
                return
            # What is left on disk is at most a minute more than is left: never shorter.
            for_ns = None if for_ns is None else max(for_ns, held.left_ns)
        self._agent.stop(which, who, for_ns)

    def _resume(self, grant_id: str | None) -> None:
        which = grant_id or EVERY_GRANT
        if not any(stop.grant_id == which for stop in self._store.local_stops()):
            what = "of all grants" if grant_id is None else f"of grant {grant_id}"
            raise AskRefused(
                f"there is no local stop {what}",
                hint="`consentry status` shows what is stopped, and by whom",
            )
        self._agent.resume(which)

    def _stops(self) -> tuple[StopStatus, ...]:
        found = [_stop_status(stop) for stop in self._store.local_stops()]
        if not self._sights.is_private():
            self._private_since_s = None
        else:
            if self._private_since_s is None:
                self._private_since_s = self._now().now_ns // NS_PER_S
            found.append(StopStatus(EVERY_GRANT, SWITCH, self._private_since_s, None))
        return tuple(found)

    def _stops_told(self) -> list[dict[str, object]]:
        return [asdict(stop) for stop in self._stops()]

    def _status(self) -> StatusReport:
        now = self._now()
        policy = self._consent.policy
        return StatusReport(
            version=self._version,
            vehicle=self._vehicle,
            started_s=now.now_ns // NS_PER_S - round(time.monotonic() - self._started_s),
            now_s=now.now_ns // NS_PER_S,
            is_time_known=now.is_known,
            policy=None
            if policy is None
            else PolicyStatus(policy.epoch, policy.ver, policy.iat_s, policy.exp_s),
            lanes=tuple(self._sights.lanes()),
            buses=tuple(self._sights.buses()),
            grants=() if policy is None else self._grants(policy),
            stops=self._stops(),
            restrictions=tuple(
                RestrictionStatus(item.jti, item.mode, item.grants, item.iat_s)
                for item in self._store.restrictions()
                if not item.taken_over
            ),
            uplink="up" if self._uplink.is_up else "down",
            in_flight=len(self._uplink.in_flight()),
            counts=dict(self._agent.counts),
        )

    def _grants(self, policy: Policy) -> tuple[GrantStatus, ...]:
        spooled, stands = self._store.counts(), self._consent.standings
        found = []
        for grant in policy.grants:
            tally = spooled.get(grant.grant_id)
            found.append(
                GrantStatus(
                    grant_id=grant.grant_id,
                    rev=grant.rev,
                    recipient=grant.recipient_id or "",
                    scopes=tuple(detail.scope for detail in grant.details),
                    state=str(stands.get(grant.grant_id, "")),
                    why=self._why(grant),
                    until_s=min(
                        (end for end in (grant.exp_s, policy.exp_s) if end is not None),
                        default=None,
                    ),
                    envelopes=tally.envelopes if tally else 0,
                    size_bytes=tally.size_bytes if tally else 0,
                )
            )
        return tuple(found)

    def _why(self, grant: Grant) -> str:
        """Say what holds a grant beside the policy."""
        overlays = self._consent.overlays
        held = {
            "restricted": overlays.revoked | overlays.paused,
            "stopped at the vehicle": overlays.stopped,
            "no fresh policy": overlays.lapsed,
        }
        return ", ".join(
            word for word, which in held.items() if {grant.grant_id, EVERY_GRANT} & set(which)
        )

    def _view(self) -> View:
        now = self._now()
        grants = self._consent.policy.grants if self._consent.policy is not None else ()
        return View(
            catalogue=self._catalogue,
            binding=self._binding,
            policy=self._consent.policy,
            plan=self._consent.plan,
            now_ns=now.now_ns,
            is_time_known=now.is_known,
            overlays=self._consent.overlays,
            stops=self._stops(),
            ended=frozenset(
                grant.grant_id
                for grant in grants
                if self._store.tombstoned(grant.grant_id) is not None
            ),
            facts={key: _facts(counts) for key, counts in self._sights.counts().items()},
        )

    def _now(self) -> Moment:
        return self._consent.moment(self._clock())


def _stop_status(stop: LocalStop) -> StopStatus:
    left_s = None if stop.left_ns is None else -(-stop.left_ns // NS_PER_S)
    return StopStatus(stop.grant_id, stop.who, stop.since_ns // NS_PER_S, left_s)


def _facts(counts: TakeCounts) -> TakeFacts:
    return TakeFacts(
        taken=counts.taken,
        thinned=counts.thinned,
        drops={drop.value: count for drop, count in counts.drops.items()},
    )
