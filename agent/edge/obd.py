"""Asks the vehicle's control units over OBD-II: the one module of the agent that sends on a bus.

Rules:
 * It exists only with `obd.poll = true`, and its bus is open only while there are questions.
 * What it sends is a question that a live grant needs (`agent.core.obd`), or the flow control that
   lets the answer to one go on. Each is checked against what is permitted at that very moment,
   under a lock: when `ask` returns, nothing is sent any more that it did not permit.
 * One question at a time, at most `max_per_s`; who does not answer is asked ever more seldom, and a
   vehicle that sleeps is not kept awake.
 * What is wanted once is asked for ever more seldom, answered or not, until it was given; then no
   more, over restarts too.
 * A tester that somebody else has plugged in goes first: its requests silence us for a while.
 * Only the answer to the question lets the next one come, and only it gets a flow control; one that
   a unit has announced ("response pending") is waited for.
 * Answers are not read here. They pass the gate as frames of the bus, like all others.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import can

from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK, NS_PER_S, Batch
from agent.core.obd import Answer, Heard, Question
from agent.errors import BusError

ANSWER_S = 0.1  # ISO 15765-4: P2 is 50 ms; twice that for slow gateways.
CONSECUTIVE_S = 1.0  # ISO 15765-2 N_Cr.
PENDING_S = 5.0  # ISO 14229-2 P2*: until the answer that a unit has announced.
LOOK_S = 0.5  # So long at most until a withdrawn question is not waited for any more.
MIN_INTERVAL_S = 0.2  # One question is never asked more often.
MAX_INTERVAL_S = 300.0  # ... and at least so often, however long it was not answered.
ASLEEP_AFTER = 5  # Questions in a row without an answer.
ASLEEP_PAUSE_S = 30.0
TESTER_PAUSE_S = 60.0
FAILED_PAUSE_S = 30.0
MOVE_S = 4.0  # The thread moves at least this often.

# ISO 15765-4: functional, and physical to the units 1 to 8; 29 bits likewise.
_FOREIGN_REQUESTS = (
    {"can_id": 0x7DF, "can_mask": 0x7FF, "extended": False},
    {"can_id": 0x7E0, "can_mask": 0x7F8, "extended": False},
    {"can_id": 0x18DB_33F1, "can_mask": CAN_EFF_MASK, "extended": True},
    {"can_id": 0x18DA_00F1, "can_mask": 0x1FFF_00FF, "extended": True},
)
_ANSWERS = (
    {"can_id": 0x7E8, "can_mask": 0x7F8, "extended": False},
    {"can_id": 0x18DA_F100, "can_mask": 0x1FFF_FF00, "extended": True},
)
_FLOW_CONTROL = b"\x30\x00\x00" + b"\xcc" * 5  # Go on, all of it, as fast as you like.

_log = logging.getLogger(__name__)


class ObdPoller:
    """Asks on one bus, in a thread of its own."""

    def __init__(  # noqa: PLR0913 - a bus, as a reader has it, and two limits
        self,
        name: str,
        *,
        interface: str,
        channel: str,
        options: Mapping[str, str | int | float | bool],
        max_per_s: float,
        given: Iterable[tuple[str, str]] = (),
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            name: The bus's name, for the log.
            interface: python-can's name of the adapter kind.
            channel: The adapter's channel.
            options: Handed to python-can as they are.
            max_per_s: Most questions in a second.
            given: (grant id, path) of what is given once and was, before this poller.
            clock: ns since the epoch, by which a permission ends.
        """
        self.name = name
        self.turns = 0  # Rises whenever the thread has gone round its loop.
        self.asked = 0
        self.unanswered = 0
        self.failure: BaseException | None = None
        self._interface = interface
        self._channel = channel
        self._options = dict(options)
        self._gap_s = 1 / max_per_s
        self._clock = clock
        self._changed = threading.Condition()  # Guards what follows.
        self._questions: tuple[Question, ...] = ()
        self._given = set(given)
        self._until_ns = 0
        self._stop = False
        self._due: dict[Question, float] = {}  # The thread's own, as what follows.
        self._missed: dict[Question, int] = {}
        self._silent = 0
        self._free_s = 0.0  # Not before this moment of the monotonic clock.
        self._thread = threading.Thread(target=self._run, name="obd", daemon=True)

    def ask(self, questions: Sequence[Question], until_ns: int) -> None:
        """Ask these questions from now on, and no others. For any thread.

        Args:
            questions: () ends all asking before this returns.
            until_ns: First moment at which nothing of it is permitted any more, by the wall clock.
        """
        with self._changed:
            self._questions, self._until_ns = tuple(questions), until_ns
            self._leave_out()
            self._changed.notify_all()

    def give(self, batches: Iterable[Batch]) -> None:
        """Ask no more for what is wanted once and is in these batches. For any thread."""
        came = {(batch.grant_id, column.path) for batch in batches for column in batch.columns}
        with self._changed:
            for question in self._questions:
                self._given |= question.once & came
            self._leave_out()

    def start(self) -> None:
        """Begin; the bus is opened when there is something to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking and let the thread end; `close` waits for it."""
        with self._changed:
            self._stop, self._questions = True, ()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop and give the bus back. Harmless when called twice."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(timeout=CONSECUTIVE_S * 2)

    @property
    def is_alive(self) -> bool:
        """Whether the poller's thread runs."""
        return self._thread.is_alive()

    def _leave_out(self) -> None:
        """Keep the questions to which somebody still wants an answer."""
        self._questions = tuple(
            question
            for question in self._questions
            if not question.once or not question.once <= self._given
        )

    def _run(self) -> None:
        try:
            while not self._stop:
                self.turns += 1
                if not self._questions:
                    self._wait(MOVE_S, ())
                    continue
                try:
                    with self._open() as bus:
                        _log.info("obd polling", extra={"bus": self.name})
                        while self._questions:
                            self._turn(bus)
                except (BusError, can.CanError, OSError, ValueError) as exc:
                    _log.warning("obd request failed", extra={"bus": self.name, "error": str(exc)})
                    self._free_s = time.monotonic() + FAILED_PAUSE_S
                    self._wait_until_free()
        except Exception as exc:  # noqa: BLE001 - the thread's top, see below
            # The thread's top: the daemon sees the dead lane and ends the process.
            self.failure = exc
            _log.exception("obd poller died", extra={"bus": self.name})

    def _open(self) -> can.BusABC:
        try:
            return can.Bus(
                channel=self._channel,
                interface=self._interface,
                can_filters=[*_ANSWERS, *_FOREIGN_REQUESTS],
                ignore_config=True,  # What agent.toml says, and not a can.conf somewhere.
                **self._options,  # type: ignore[arg-type] # adapters define their own
            )
        except (can.CanError, OSError, ValueError, ImportError, TypeError) as exc:
            raise BusError(
                f"the bus {self._channel} ({self._interface}) cannot be opened to ask on it: {exc}",
                hint="a listen-only interface cannot be asked on",
            ) from exc

    def _turn(self, bus: can.BusABC) -> None:
        """Ask the next question when its time has come, and wait for the answer."""
        self.turns += 1
        now_s = time.monotonic()
        questions = self._questions
        self._heed_testers(bus)
        if not questions:
            return
        question = min(questions, key=lambda q: self._due.get(q, 0.0))
        left_s = max(self._due.get(question, 0.0), self._free_s) - now_s
        if left_s > 0:
            self._wait(min(left_s, MOVE_S), questions)
            return
        if not self._send(bus, question, question.data):
            self._wait(ANSWER_S, questions)  # Its time is over; the next plan is on its way.
            return
        self.asked += 1
        self._free_s = now_s + self._gap_s
        self._weigh(question, answered=self._await_answer(bus, question))

    def _send(self, bus: can.BusABC, question: Question, data: bytes) -> bool:
        """Send what belongs to a question, if that is permitted now."""
        with self._changed:
            if question not in self._questions or self._clock() >= self._until_ns:
                return False
            bus.send(
                can.Message(
                    arbitration_id=question.request_id & CAN_EFF_MASK,
                    is_extended_id=bool(question.request_id & CAN_EFF_FLAG),
                    data=data,
                )
            )
            return True

    def _await_answer(self, bus: can.BusABC, question: Question) -> bool:
        """Wait until the answer has passed by; let one of several frames go on."""
        answer, end_s = Answer(question), time.monotonic() + ANSWER_S
        while (wait_s := end_s - time.monotonic()) > 0 and question in self._questions:
            self.turns += 1
            message = bus.recv(timeout=min(wait_s, LOOK_S))
            if message is None:
                continue
            if _canid(message) != question.answer_id:
                self._heed(message)
                continue
            match answer.hear(bytes(message.data)):
                case Heard.WHOLE:
                    return True
                case Heard.REFUSED:
                    return False
                case Heard.PENDING:
                    end_s = time.monotonic() + PENDING_S
                case Heard.BEGUN:
                    if not self._send(bus, question, _FLOW_CONTROL):
                        return False
                    end_s = time.monotonic() + CONSECUTIVE_S
        return answer.is_begun

    def _weigh(self, question: Question, *, answered: bool) -> None:
        """Decide when a question is asked again."""
        self.unanswered += not answered
        self._silent = 0 if answered else self._silent + 1
        # What was answered and is a question still has not been given: perhaps it was no value, or
        # came before the bus was read.
        in_vain = bool(question.once) or not answered
        self._missed[question] = self._missed.get(question, 0) + 1 if in_vain else 0
        interval_s = max(question.interval_ns / NS_PER_S, MIN_INTERVAL_S)
        waits_s = interval_s * 2 ** min(self._missed[question], 10)
        now_s = time.monotonic()
        self._due[question] = now_s + max(interval_s, min(waits_s, MAX_INTERVAL_S))
        if self._silent >= ASLEEP_AFTER:
            self._free_s = now_s + ASLEEP_PAUSE_S

    def _heed_testers(self, bus: can.BusABC) -> None:
        while (message := bus.recv(timeout=0)) is not None:
            self._heed(message)

    def _heed(self, message: can.Message) -> None:
        """Fall silent for a while where a frame is another tester's request."""
        can_id = message.arbitration_id
        for each in _FOREIGN_REQUESTS:
            if (
                message.is_extended_id == each["extended"]
                and can_id & each["can_mask"] == (each["can_id"])
            ):
                self._free_s = time.monotonic() + TESTER_PAUSE_S

    def _wait_until_free(self) -> None:
        while not self._stop and (left_s := self._free_s - time.monotonic()) > 0:
            self.turns += 1
            self._wait(min(left_s, MOVE_S), self._questions)

    def _wait(self, longest_s: float, questions: tuple[Question, ...]) -> None:
        """Wait while these are the questions."""
        with self._changed:
            if not self._stop and self._questions == questions:
                self._changed.wait(longest_s)


def _canid(message: can.Message) -> int:
    return message.arbitration_id | (CAN_EFF_FLAG if message.is_extended_id else 0)
