"""Which OBD-II questions a plan needs asked, and what answers them.

Rules:
 * No other identifier, service or PID is ever asked for than those a plan needs.
 * A question is derived from a granted signal: the message is an answer of ISO 15765-4 (0x7E8 to
   0x7EF, or 0x18DAF1xx), and the DBC's multiplexers say which service and PID it belongs to.
 * Only services 01 (current data) and 09 (vehicle information) of SAE J1979 are asked. Both read.
 * What every grant wants once (an identity) is a question only until it was given.
 * A signal whose service or PID the DBC leaves open is asked for by nobody.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from agent.core.binding import Binding
from agent.core.bound import Bound
from agent.core.decode import Field
from agent.core.model import CAN_EFF_FLAG
from agent.core.plan import Plan, Take

SERVICES = (0x01, 0x09)
_ANSWER = 0x40  # SAE J1979: an answer's service is the request's plus this.
_FIRST_ANSWER, _LAST_ANSWER = 0x7E8, 0x7EF  # ISO 15765-4 table 4: the request is 8 below.
_ANSWER_29 = CAN_EFF_FLAG | 0x18DA_F100  # ISO 15765-4 table 6: to the tester, from unit xx.
_REQUEST_29 = CAN_EFF_FLAG | 0x18DA_00F1
_REFUSED = 0x7F  # SAE J1979: then the service, and why.
_PENDING = b"\x78"  # ISO 14229-1: response pending.
MAX_PENDING = 5  # So often an answer may be announced.
_FIRST, _NEXT = 6, 7  # ISO 15765-2: bytes of a message in its first frame and in each other.
_PADDING = b"\xcc" * 5  # ISO 15765-2 9.6.2.4 recommends it.


@dataclass(frozen=True, slots=True)
class Question:
    """One request and where its answer comes from.

    Attributes:
        request_id: canid_t of the request.
        answer_id: canid_t of the answer.
        service: 1 or 9.
        pid: The PID, or info type of service 9.
        interval_ns: How often an answer is of use to a grant.
        once: (grant id, path) of those who want it once, where nobody wants it more often; else
            empty.
    """

    request_id: int
    answer_id: int
    service: int
    pid: int
    interval_ns: int
    once: frozenset[tuple[str, str]] = frozenset()

    @property
    def data(self) -> bytes:
        """The request's payload: a single frame of 2 bytes."""
        return bytes((2, self.service, self.pid)) + _PADDING


class Heard(Enum):
    """What a frame under the answer's identifier means for the question."""

    NOTHING = "nothing"
    PENDING = "the answer is to follow"
    REFUSED = "there is no answer"
    BEGUN = "the first frame of the answer; the others wait for a flow control"
    WHOLE = "the answer has passed by"


class Answer:
    """The answer to a question, as it passes by.

    Attributes:
        is_begun: The first of several frames has come.
    """

    __slots__ = ("_expected", "_left", "_pending", "_refusal", "is_begun")

    def __init__(self, question: Question) -> None:
        self._expected = bytes((question.service + _ANSWER, question.pid))
        self._refusal = bytes((_REFUSED, question.service))
        self._left = 0
        self._pending = 0
        self.is_begun = False

    def hear(self, data: bytes) -> Heard:
        """Tell what a frame means; what answers another question means nothing."""
        kind = data[0] >> 4 if data else None
        if kind == 0 and data[1:3] == self._refusal:
            self._pending += data[3:4] == _PENDING
            is_to_follow = data[3:4] == _PENDING and self._pending <= MAX_PENDING
            return Heard.PENDING if is_to_follow else Heard.REFUSED
        if kind == 0 and data[1:3] == self._expected:
            return Heard.WHOLE
        if kind == 1 and data[2:4] == self._expected and not self.is_begun:
            self.is_begun = True
            length = (data[0] & 0xF) << 8 | data[1]
            self._left = -(-(length - _FIRST) // _NEXT)
            return Heard.BEGUN
        if kind == 2 and self.is_begun:
            self._left -= 1
            return Heard.WHOLE if self._left <= 0 else Heard.NOTHING
        return Heard.NOTHING


def questions(plan: Plan, binding: Binding, bus: str) -> tuple[Question, ...]:
    """Return what is to be asked on a bus so that the plan's takes get values.

    Args:
        plan: The plan in force.
        binding: What it was compiled from.
        bus: The bus that is asked on.
    """
    bounds: dict[str, list[Bound]] = {}
    for bound in binding.bound:
        if bound.bus in (bus, None):
            bounds.setdefault(bound.vss.path, []).append(bound)
    found: dict[tuple[int, int, int, int], list[Take]] = {}
    for take in plan.takes:
        for bound in bounds.get(take.path, ()):
            for key in _asked(bound):
                found.setdefault(key, []).append(take)
    return tuple(
        Question(
            *key,
            min(take.interval_ns for take in takes),
            frozenset((take.grant_id, take.path) for take in takes if _all_once(takes)),
        )
        for key, takes in found.items()
    )


def request_id(answer_id: int) -> int | None:
    """Return the identifier whose requests are answered under this one, or None."""
    if _FIRST_ANSWER <= answer_id <= _LAST_ANSWER:
        return answer_id - 8
    if answer_id & ~0xFF == _ANSWER_29:
        return _REQUEST_29 | (answer_id & 0xFF) << 8
    return None


def _all_once(takes: Iterable[Take]) -> bool:
    return all(take.once for take in takes)


def _asked(bound: Bound) -> Iterator[tuple[int, int, int, int]]:
    """Yield (request, answer, service, PID), once or not at all."""
    request = None if bound.is_j1939 else request_id(bound.can_id)
    if request is None:
        return
    isotp = bound.entry.isotp
    # Byte 0 is the protocol's, but where the DBC counts from the message's own first byte.
    first = 0 if isotp is not None and not isotp.with_length else 1
    fixed = _fixed_bytes(bound.field)
    service, pid = fixed.get(first, 0) - _ANSWER, fixed.get(first + 1)
    if service in SERVICES and pid is not None:
        yield request, bound.can_id, service, pid


def _fixed_bytes(field: Field) -> dict[int, int]:
    """Return the bytes that must have one value for a signal to be in the message."""
    fixed: dict[int, int] = {}
    mux = field.mux
    while mux is not None:
        selector = mux.selector
        is_byte = selector.is_whole and selector.length == 8
        if is_byte and len(mux.ids) == 1 and mux.ids[0][0] == mux.ids[0][1]:
            fixed[selector.first_byte] = mux.ids[0][0]
        mux = selector.mux
    return fixed
