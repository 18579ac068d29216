"""What the vehicle publishes, each with its topic and properties.

Rules:
 * Ids become levels of topics, so nothing but their own alphabet gets through.
 * Everything is QoS 1 but for `health`; only `status` is retained.
"""

from dataclasses import dataclass, field
from typing import Any

from agent.edge.uplink.value import check_id

COSE_TYPE = 'application/cose; cose-type="cose-sign1"'  # RFC 9052 section 11.3.1
JSON_TYPE = "application/json"
MAX_EXPIRY_S = 2**32 - 1  # MQTT 5 section 3.3.2.3.3

Stream = tuple[str, bool]


@dataclass(slots=True, eq=False)
class Message:
    """A publish: where to, what, and the MQTT 5 properties about it."""

    topic: str
    payload: bytes
    about: dict[str, Any]
    qos: int = 1
    retain: bool = False
    row_id: int | None = None
    grant_id: str | None = None
    sent_ns: int = field(default=0, init=False)

    @property
    def stream(self) -> Stream:
        """The grant, and whether it is its envelopes or its records of gaps."""
        return self.grant_id or "", (self.row_id or 0) < 0


class Messages:
    """Writes the messages of one vehicle.

    Attributes:
        policy_topic: The only topic that the vehicle reads.
    """

    def __init__(self, vehicle: str) -> None:
        self._base = f"consentry/v1/{vehicle}"
        self.policy_topic = f"{self._base}/policy"
        self.status_topic = f"{self._base}/status"

    def envelope(  # noqa: PLR0913, PLR0917 - the columns of a spool row
        self, row_id: int, recipient: str, grant_id: str, n: int, envelope: bytes, expiry_s: int
    ) -> Message:
        """Return an envelope; the broker may keep it for `expiry_s`, at least 1.

        Raises:
            ConfigError: An id that cannot stand in a topic.
        """
        about = {"content_type": COSE_TYPE, "expiry_s": min(expiry_s, MAX_EXPIRY_S), "n": n}
        topic = self._topic("data", recipient, grant_id)
        return Message(topic, envelope, about, row_id=row_id, grant_id=grant_id)

    def gap(self, gap_id: int, recipient: str, grant_id: str, record: bytes) -> Message:
        """Return a record of a gap.

        Raises:
            ConfigError: An id that cannot stand in a topic.
        """
        about = {"content_type": COSE_TYPE}
        topic = self._topic("gap", recipient, grant_id)
        return Message(topic, record, about, row_id=gap_id, grant_id=grant_id)

    def ack(self, data: bytes) -> Message:
        """Return a signed answer to a policy."""
        return Message(f"{self.policy_topic}/ack", data, {"content_type": COSE_TYPE})

    def head(self, data: bytes) -> Message:
        """Return a signed head of the ledger."""
        return Message(f"{self._base}/ledger/head", data, {"content_type": COSE_TYPE})

    def status(self, state: str) -> Message:
        """Return a word such as `online`."""
        about = {"content_type": JSON_TYPE}
        return Message(self.status_topic, status(state), about, retain=True)

    def health(self, data: bytes) -> Message:
        """Return counters."""
        return Message(f"{self._base}/health", data, {"content_type": JSON_TYPE}, qos=0)

    def _topic(self, kind: str, recipient: str, grant_id: str) -> str:
        check_id("recipient", recipient)
        check_id("grant", grant_id)
        return f"{self._base}/{kind}/{recipient}/{grant_id}"


def status(state: str) -> bytes:
    """Return the payload of a status."""
    return b'{"state":"%s"}' % state.encode("ascii")
