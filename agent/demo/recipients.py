"""The demo's two recipients: each opens what arrives on its topic with its own key.

Rules:
 * What cannot be opened is counted, not dropped in silence.
 * Nobody's key opens what was sealed to the other; that is tried.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from agent.cloud.envelope import Opened, open_envelope
from agent.cloud.keys import make_recipient_key, recipient_private
from agent.cloud.receiver import BrokerAddress, Receiver, Rejected
from agent.core.cose import DevicePublicKey
from agent.demo.broker import Broker
from agent.demo.judge import Seen
from agent.demo.state import CITY, FLEET, State
from agent.errors import EnvelopeRejected


class Recipients:
    """A and B.

    Attributes:
        keys: Recipient -> its key, a JWK.
        opened: Recipient -> what it opened, as it came.
        unopened: Recipient -> how many it could not open.
    """

    def __init__(
        self, state: State, changed: Callable[[], None], *, devices: dict[str, DevicePublicKey]
    ) -> None:
        """Draw their keys.

        Args:
            state: Updated with each envelope.
            changed: Called after that.
            devices: The vehicles whose envelopes they take, by kid.
        """
        self._state = state
        self._changed = changed
        self._devices = devices
        self.keys: dict[str, dict[str, Any]] = {
            FLEET: make_recipient_key("fleet-a-key-1"),
            CITY: make_recipient_key("city-b-key-1"),
        }
        self.opened: dict[str, list[Opened]] = {FLEET: [], CITY: []}
        self.unopened: Counter[str] = Counter()

    def kid(self, recipient: str) -> bytes:
        """Return the name of a recipient's key, as it stands in each envelope for it."""
        kid: str = self.keys[recipient]["kid"]
        return kid.encode()

    def listen(self, stack: ExitStack, broker: Broker) -> None:
        """Start both, until the stack is left."""
        for name, key in self.keys.items():
            receiver = stack.enter_context(
                Receiver(
                    BrokerAddress("localhost", broker.port, broker.tls(name)),
                    recipient=name,
                    recipient_keys={key["kid"]: recipient_private(key)},
                    devices=self._devices,
                )
            )
            threading.Thread(
                target=self._receive, args=(name, receiver), name=f"demo-{name}", daemon=True
            ).start()

    def opened_by_others(self, data: Iterable[Seen]) -> int:
        """Try every envelope with the other recipient's key; return how many that opens."""
        count = 0
        for item in data:
            other = CITY if f"/data/{FLEET}/" in item.topic else FLEET
            stranger = recipient_private(self.keys[other])
            # Under every kid, so that it is the key that fails and not its name.
            keys = {key["kid"]: stranger for key in self.keys.values()}
            with contextlib.suppress(EnvelopeRejected):
                open_envelope(item.payload, recipient_keys=keys, devices=self._devices)
                count += 1
        return count

    def _receive(self, name: str, receiver: Receiver) -> None:
        for item in receiver:
            if isinstance(item, Rejected):
                self.unopened[name] += 1
                continue
            self.opened[name].append(item)
            self._state.envelopes[name] += 1
            for column in item.columns:
                self._state.opened[name][column.path] += len(column.values)
            self._changed()
