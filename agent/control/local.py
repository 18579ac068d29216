"""What is asked of the agent at the vehicle: stop, resume, look, explain, hand over a document.

Rules:
 * Who may ask what was decided before (`agent.edge.control_socket`).
 * A document that is handed over here can only restrict: another kind is refused unread.
 * A failure is the answer too; but where the disk refuses what consent needs, the process must
   not go on.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict

from agent.control.consent import Consent
from agent.control.documents import Documents
from agent.control.enactment import Enactment
from agent.control.journal import Journal
from agent.control.report import Surroundings
from agent.core.admission import Admission
from agent.core.ask import Explain, Pause, Restrict, Resume, Status
from agent.core.clock import Reading
from agent.core.explain import explain
from agent.core.jws import RESTRICT_TYP, unsafe_unverified_typ
from agent.core.model import NS_PER_S
from agent.core.standing import EVERY_GRANT
from agent.core.status import StatusReport
from agent.edge.control_socket import Ask
from agent.errors import AgentError, AskRefused, PolicyRejected, StoreError


class Local:
    """Does what people at the vehicle ask for. Used by the agent thread only."""

    def __init__(  # noqa: PLR0913 - the lane's parts, by keyword
        self,
        *,
        consent: Consent,
        documents: Documents,
        enactment: Enactment,
        journal: Journal,
        clock: Callable[[], Reading],
        look: Callable[[], Surroundings],
        status: Callable[[], StatusReport],
    ) -> None:
        """Put it together.

        Args:
            consent: In force.
            documents: Obeys what is handed over.
            enactment: Puts stops in force.
            journal: Over the open ledger.
            clock: What the machine's clocks say.
            look: How the other lanes are.
            status: How the agent is.
        """
        self._consent = consent
        self._documents = documents
        self._enactment = enactment
        self._journal = journal
        self._clock = clock
        self._look = look
        self._status = status

    def answer(self, ask: Ask) -> None:
        """Do what was asked, and answer.

        Raises:
            StoreError: The disk refused what consent needs; that was the answer.
        """
        try:
            ask.answer(self._done(ask))
        except PolicyRejected as exc:
            ask.refuse(exc.message, hint=exc.hint, reason=exc.reason)
        except AgentError as exc:
            ask.refuse(exc.message, hint=exc.hint)
            if isinstance(exc, StoreError):
                raise

    def stop(self, grant_id: str, by: int, for_ns: int | None) -> None:
        """Stop a grant, or EVERY_GRANT.

        Args:
            grant_id: What is stopped.
            by: The uid of who asked.
            for_ns: How long, or None: until it is lifted.

        Raises:
            StoreError: It could not be written; it does not hold.
        """
        reading = self._clock()
        now = self._consent.moment(reading)
        self._consent.stops.hold(grant_id, who=f"uid {by}", for_ns=for_ns, now=now)
        self._enactment.enact(self._consent.refresh(reading), "stop")
        self._journal.stopped(now.now_ns, grant_id, by=by, for_ns=for_ns)

    def resume(self, grant_id: str, by: int) -> bool:
        """Lift the stop of a grant, or the one of EVERY_GRANT; False if there was none.

        Raises:
            StoreError: It could not be written; the stop holds.
        """
        if not self._consent.stops.lift(grant_id):
            return False
        reading = self._clock()
        self._enactment.enact(self._consent.refresh(reading), "stop")
        self._journal.resumed(self._consent.moment(reading).now_ns, grant_id, by=by)
        return True

    def switch(self, *, is_private: bool) -> None:
        """Follow the vehicle's privacy switch."""
        reading = self._clock()
        now = self._consent.moment(reading)
        self._consent.stops.switch(now, is_private=is_private)
        self._enactment.enact(self._consent.refresh(reading), "stop")
        if is_private:
            self._journal.stopped(now.now_ns, EVERY_GRANT, by="switch", for_ns=None)
        else:
            self._journal.resumed(now.now_ns, EVERY_GRANT, by="switch")

    def _done(self, ask: Ask) -> Mapping[str, object]:
        match ask.verb:
            case Pause(grant, for_s):
                if grant is not None and self._consent.grant(grant) is None:
                    raise AskRefused(
                        f"the policy in force has no grant {grant}",
                        hint="`consentry status` names them",
                    )
                for_ns = None if for_s is None else for_s * NS_PER_S
                self.stop(grant or EVERY_GRANT, ask.peer.uid, for_ns)
                return self._stops()
            case Resume(grant):
                if not self.resume(grant or EVERY_GRANT, ask.peer.uid):
                    raise AskRefused(
                        f"there is no stop of {grant or 'all grants'} to lift",
                        hint="the privacy switch says private, and only it can lift that"
                        if self._consent.stops.is_private
                        else "`consentry status` names the stops that hold",
                    )
                return self._stops()
            case Status():
                return self._status().members()
            case Explain(path):
                facts = self._look().facts()
                return explain(path, self._consent.view(self._clock(), facts=facts)).members()
            case Restrict(token):
                return self._restrict(token.encode("ascii"), ask.peer.uid)

    def _stops(self) -> Mapping[str, object]:
        now = self._consent.moment(self._clock())
        return {"stops": [asdict(stop) for stop in self._consent.stops.status(now)]}

    def _restrict(self, token: bytes, uid: int) -> Mapping[str, object]:
        typ = unsafe_unverified_typ(token)
        if typ != RESTRICT_TYP:
            raise PolicyRejected(
                f"the document has typ {typ}, expected {RESTRICT_TYP}",
                reason="header",
                hint="only what restricts is taken here; a policy comes from the platform",
            )
        reading = self._clock()
        now_ns = self._consent.moment(reading).now_ns
        self._journal.note(now_ns, "admin", verb="restrict", uid=uid)
        received = self._documents.obey(token, reading)
        document = received.restriction
        assert document is not None, "its typ says so"
        outcome = "repeated" if received.admission is Admission.REPEAT else "applied"
        return {"outcome": outcome, "mode": document.mode, "grants": list(document.grants)}
