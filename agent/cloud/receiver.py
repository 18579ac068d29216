"""Receive from a broker: a recipient's envelopes, opened and de-duplicated; and push policies.

Rules:
 * A message is acknowledged to the broker only when its handling is over: when the next one is
   asked for, or `settle` is called. A receiver that dies before gets it again.
 * An envelope is the same if (vehicle, grant, n) and its bytes are; it is handed over once. Other
   bytes under the same name are handed over and counted: a vehicle whose disk was set back numbers
   anew, and its data must not be lost over it. Without a file the memory for this ends with the
   process.
 * Devices sign which numbers will not come, and why; `missing` tells them from what was lost.
 * A device that was struck off is believed no more, whatever it signed before.
 * The topic is nobody's word; it must agree with the sealed and signed header.
 * What does not open is handed over as `Rejected` and then acknowledged: it would never open.
"""

import hashlib
import logging
import queue
import re
import uuid
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.cloud.envelope import (
    Devices,
    Opened,
    RecipientKeys,
    open_envelope,
    verify_ack,
)
from agent.cloud.inbox import Inbox, Missing, verify_gap
from agent.cloud.session import Arrived, BrokerAddress, Session
from agent.core.ack import Ack
from agent.core.jws import POLICY_TYP, unsafe_unverified_payload, unsafe_unverified_typ
from agent.errors import EnvelopeRejected, PolicyRejected, UplinkError

__all__ = ["BrokerAddress", "Missing", "Receiver", "Rejected", "publish_policy", "push_policy"]

PREFIX = "consentry/v1"
SESSION_S = 7 * 86_400  # How long the broker keeps envelopes for a receiver that is away.
_TOPIC_LEVEL = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that is no envelope for us."""

    topic: str
    error: EnvelopeRejected


class Receiver:
    """A recipient's subscription. Iterating gives what arrives, until `close`. A context manager.

    Attributes:
        duplicates: Envelopes that came again and were not handed over again.
        conflicts: Envelopes that were handed over although another had their name.
    """

    def __init__(  # noqa: PLR0913 - who it is and whom it believes, by keyword
        self,
        broker: BrokerAddress,
        *,
        recipient: str,
        recipient_keys: RecipientKeys,
        devices: Devices,
        revoked: AbstractSet[str] = frozenset(),
        inbox: Path | None = None,
        client_id: str | None = None,
    ) -> None:
        """Connect and subscribe; the connection comes back by itself when it is lost.

        Args:
            broker: Where.
            recipient: Our id in policies, a topic level.
            recipient_keys: kid -> our private keys.
            devices: kid -> public keys of enrolled devices.
            revoked: Kids of devices that were struck off; looked at for each message.
            inbox: A file that remembers what has come; None: memory.
            client_id: Names the session that the broker keeps; default: the recipient's id.

        Raises:
            UplinkError: The broker is not there, or does not let us in, or the inbox cannot be
                used.
        """
        self.duplicates = 0
        self.conflicts = 0
        self._keys = recipient_keys
        self._devices = devices
        self._revoked = revoked
        self._inbox = Inbox(inbox)
        self._queue: queue.SimpleQueue[Arrived | None] = queue.SimpleQueue()
        self._handed: Arrived | None = None
        self._name: tuple[str, str, int, bytes] | None = None  # Of what was handed over.
        level = _level("recipient", recipient)
        self._session = Session(
            broker,
            client_id=client_id or f"recipient-{recipient}",
            session_s=SESSION_S,
            topics=[f"{PREFIX}/+/data/{level}/#", f"{PREFIX}/+/gap/{level}/#"],
            arrived=self._queue.put,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Opened | Rejected]:
        while True:
            self.settle()
            arrived = self._queue.get()
            if arrived is None:
                return
            self._handed = arrived
            item = self._open(arrived)
            if item is not None:
                yield item

    def settle(self) -> None:
        """Acknowledge what was handed over last; asking for the next one does it too."""
        handed, self._handed = self._handed, None
        name, self._name = self._name, None
        if name is not None:
            self._inbox.keep(*name)
        if handed is not None:
            self._session.acknowledge(handed)

    @property
    def connections(self) -> int:
        """How often the subscription stood so far: rises by one when a lost link is back."""
        return self._session.subscriptions

    def missing(self) -> tuple[Missing, ...]:
        """Return the numbers that have not come, each run with the reason, or `lost`.

        What the vehicle still holds is not among them: numbers above all that came are not known.
        """
        return self._inbox.missing()

    def close(self) -> None:
        """End; the broker keeps what arrives meanwhile. Any thread; harmless when called twice."""
        self._session.close()
        self._queue.put(None)

    def _open(self, arrived: Arrived) -> Opened | Rejected | None:
        try:
            if arrived.topic.split("/")[3:4] == ["gap"]:
                gap = verify_gap(arrived.payload, devices=self._devices)
                self._check(arrived.topic, gap.device_kid, gap.vehicle, gap.grant_id)
                self._inbox.keep_gap(gap)
                return None
            opened = open_envelope(
                arrived.payload, recipient_keys=self._keys, devices=self._devices
            )
            header = opened.header
            self._check(arrived.topic, header.device_kid, header.vehicle, header.grant_id)
        except EnvelopeRejected as exc:
            return Rejected(arrived.topic, exc)
        digest = hashlib.sha256(arrived.payload).digest()
        before = self._inbox.digest(header.vehicle, header.grant_id, header.n)
        if before == digest:
            self.duplicates += 1
            return None
        self.conflicts += before is not None
        self._name = (header.vehicle, header.grant_id, header.n, digest)
        return opened

    def _check(self, topic: str, device_kid: str, vehicle: str, grant_id: str) -> None:
        if device_kid in self._revoked:
            raise EnvelopeRejected(f"device {device_kid} was struck off", reason="revoked-device")
        levels = topic.split("/")
        if len(levels) != 6 or levels[2] != vehicle or levels[5] != grant_id:
            raise EnvelopeRejected(
                "the message came on a topic of another vehicle or grant", reason="wrong-topic"
            )


def publish_policy(vehicle: str, token: str | bytes, broker: BrokerAddress) -> None:
    """Put a signed document on a vehicle's topic.

    A policy is retained: it waits there for the vehicle. Restrict and trust documents are not, or
    they would take the policy's place; they wait in the vehicle's session.

    Args:
        vehicle: The vehicle's pseudonym, the policy's `aud`.
        token: The signed document.
        broker: Where, as the platform.

    Raises:
        UplinkError: The broker is not there, or does not take it.
    """
    session = Session(broker, client_id=f"platform-{uuid.uuid4()}")
    try:
        topic = f"{PREFIX}/{_level('vehicle', vehicle)}/policy"
        session.publish(topic, token, retain=_is_retained(token))
    finally:
        session.close()


def push_policy(
    vehicle: str,
    token: str | bytes,
    broker: BrokerAddress,
    *,
    devices: Devices,
    timeout_s: float = 60.0,
) -> Ack:
    """Do as `publish_policy` and wait for the vehicle's signed answer to the document.

    Args:
        vehicle: The vehicle's pseudonym, the policy's `aud`.
        token: The signed document.
        broker: Where, as the platform.
        devices: kid -> public keys of enrolled devices.
        timeout_s: How long to wait; the document waits for the vehicle all the same.

    Returns:
        The answer, its signature checked. Whether its counter has risen is for the caller to tell,
        who knows the last one.

    Raises:
        PolicyRejected: `token` is no JWS.
        UplinkError: The broker does not take it, or the vehicle has not answered in time.
    """
    data = token.encode() if isinstance(token, str) else token
    digest = hashlib.sha256(unsafe_unverified_payload(data)).digest()
    answers: queue.SimpleQueue[Ack] = queue.SimpleQueue()

    def arrived(message: Arrived) -> None:
        try:
            _, ack = verify_ack(message.payload, devices=devices)
        except EnvelopeRejected as exc:
            _log.warning("answer rejected", extra={"reason": exc.reason, "topic": message.topic})
            return
        if ack.vehicle == vehicle and ack.payload_sha256 == digest:
            answers.put(ack)

    base = f"{PREFIX}/{_level('vehicle', vehicle)}"
    session = Session(
        broker, client_id=f"platform-{uuid.uuid4()}", topics=[f"{base}/policy/ack"], arrived=arrived
    )
    try:
        session.publish(f"{base}/policy", token, retain=_is_retained(token))
        return answers.get(timeout=timeout_s)
    except queue.Empty as exc:
        raise UplinkError(
            f"the vehicle {vehicle} has not answered the policy within {timeout_s:g} s",
            hint="the policy waits for it; a vehicle that is away answers when it is back",
        ) from exc
    finally:
        session.close()


def _is_retained(token: str | bytes) -> bool:
    """Whether a document is to wait on the topic: a policy, and what no vehicle would read."""
    try:
        typ = unsafe_unverified_typ(token.encode() if isinstance(token, str) else token)
    except PolicyRejected:
        return True
    return typ == POLICY_TYP


def _level(what: str, found: str) -> str:
    if not _TOPIC_LEVEL.fullmatch(found):
        raise UplinkError(f"{what} {found!r}, expected 1 to 64 characters of A-Z a-z 0-9 _ -")
    return found
