"""The demo's story, on loopback, in one process.

broker with TLS and client certificates, agent, two recipients, an independent auditor
policy 1: A may have odometer and speed, B the location on a coarse grid
a drive is played; mid-way the radio link is lost and the spool fills
while the vehicle is offline, the owner revokes B (policy 2)
the link comes back: the policy is obeyed before anything of B's is sent
the drive ends; an independent eye judges what was promised
"""

import contextlib
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from agent.cloud import policy as cloud_policy
from agent.cloud.envelope import Opened, open_envelope, verify_ack
from agent.cloud.keys import (
    make_device_key,
    make_policy_key,
    make_recipient_key,
    recipient_private,
    save_key,
)
from agent.cloud.receiver import BrokerAddress, Receiver, Rejected, publish_policy
from agent.cloud.trust import trust_file
from agent.config import parse_config
from agent.control.publisher import POLICY_NEXT_S
from agent.core.catalogue import Catalogue
from agent.core.cose import device_public_key
from agent.core.model import NS_PER_S, Column
from agent.daemon import Daemon
from agent.demo.broker import Broker
from agent.demo.judge import PLAINTEXT, Auditor, Seen, find_bytes
from agent.demo.link import Link
from agent.demo.player import DemoClock, Player
from agent.demo.sabotage import sabotaged
from agent.demo.state import CITY, FLEET, REVOKED_B, VEHICLE, Options, Promise, State
from agent.demo.vehicle import AgentThread, told
from agent.edge.files import load_catalogue
from agent.edge.logfile import read_logs
from agent.errors import AgentError, EnvelopeRejected
from agent.resources import shipped

GRANT_A, GRANT_B = "gr_fleet", "gr_city"
SCOPES_A: dict[str, dict[str, Any]] = {
    "read_odometer": {"min_interval_s": 5},
    "read_speedometer": {"min_interval_s": 1},
}
SCOPES_B: dict[str, dict[str, Any]] = {"read_location": {"min_interval_s": 5, "grid_deg": 0.01}}

# When things happen, as shares of the drive.
LINK_LOST, REVOKED, LINK_BACK = 0.45, 0.60, 0.65
BATCH_S = 10.0  # Of the drive's time.
ACK_TIMEOUT_S = 15.0
QUIET_S = 2.0  # Without a new message for so long, everything has arrived; > POLICY_NEXT_S.


class Story:
    """Runs the demo once."""

    def __init__(self, options: Options, state: State, changed: Callable[[], None]) -> None:
        """Prepare.

        Args:
            options: What is played.
            state: Updated as the story goes.
            changed: Called after every change that a person would want to see.
        """
        self._options = options
        self._state = state
        self._changed = changed
        self._catalogue: Catalogue = load_catalogue(shipped("config/catalogue.json"))
        self._device = make_device_key("demo-device-1")
        self._signer = make_policy_key("demo-platform-1")
        self._keys = {
            FLEET: make_recipient_key("fleet-a-key-1"),
            CITY: make_recipient_key("city-b-key-1"),
        }
        self._opened: dict[str, list[Opened]] = {FLEET: [], CITY: []}
        self._unopened: Counter[str] = Counter()
        self._started_s = time.monotonic()

    def run(self) -> list[Promise]:
        """Play the story and return what the judge found.

        Raises:
            AgentError: The story could not be played to its end.
        """
        with ExitStack() as stack:
            stack.enter_context(sabotaged(self._options.sabotage))
            folder = Path(tempfile.mkdtemp(prefix="consentry-demo-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            return self._play(stack, folder)

    def _play(self, stack: ExitStack, folder: Path) -> list[Promise]:
        options, state = self._options, self._state
        drive_s = min(drive_length_s(options.logs), options.longest_s)
        broker = Broker(folder / "broker")
        state.broker = broker.name
        asks = "client certificates" if broker.asks_for_certificates else "no client certificates"
        self._say(f"starting {broker.name} with TLS and {asks}")
        stack.enter_context(broker)
        auditor = stack.enter_context(Auditor(port=broker.port, tls=broker.tls("auditor")))
        link = stack.enter_context(Link(broker.port))
        self._listen(stack, broker)
        clock = DemoClock(options.speed)

        first = self._first_policy(clock)
        self._publish_policy(broker, first)
        daemon = self._start_daemon(stack, folder, broker, link, clock)
        self._await_ack(auditor, 1)
        state.policy_ver = 1
        self._say("policy 1 is in force: A may have odometer and speed, B the coarse location")

        time.sleep(POLICY_NEXT_S)  # Until then the vehicle publishes nothing.
        start_ns = clock()
        player = Player(
            options.logs, channel=VEHICLE, clock=clock, start_ns=start_ns, duration_s=drive_s
        )
        stack.callback(player.close)
        player.start()

        def at(share: float) -> int:
            return start_ns + int(share * drive_s * NS_PER_S)

        self._watch(daemon, player, clock, until_ns=at(LINK_LOST))
        link.cut()
        state.link_up = False
        self._say("the vehicle lost its link; what is sealed waits on its disk")
        self._watch(daemon, player, clock, until_ns=at(REVOKED))
        second = cloud_policy.revoke(first, GRANT_B, iat_s=clock() // NS_PER_S)
        self._publish_policy(broker, second)
        self._say("the owner revoked B; the vehicle is offline and does not know yet")
        self._watch(daemon, player, clock, until_ns=at(LINK_BACK))
        # Now the spool is full: what rests on disk is looked at now, what must be gone at the end.
        spooled = find_bytes(folder / "state", {"B": self._kid(CITY), **PLAINTEXT})
        revoked_at = len(auditor.seen())
        link.restore()
        state.link_up = True
        self._await_ack(auditor, 2)
        state.policy_ver = 2
        self._say("the link is back: policy 2 came first and is in force, B is revoked")
        self._watch(daemon, player, clock, until_ns=at(1.0))
        state.phase = "the drive is over"
        self._drain(auditor)
        kept = find_bytes(folder / "state", self._needles(auditor.seen()))
        return self._judge(auditor.seen(), revoked_at, spooled, kept)

    def _say(self, text: str) -> None:
        self._state.phase = text
        self._state.events.append((time.monotonic() - self._started_s, text))
        self._changed()

    def _kid(self, recipient: str) -> bytes:
        kid: str = self._keys[recipient]["kid"]
        return kid.encode()

    def _first_policy(self, clock: DemoClock) -> dict[str, Any]:
        now_s = clock() // NS_PER_S

        def grant(grant_id: str, name: str, scopes: dict[str, dict[str, Any]]) -> dict[str, Any]:
            return cloud_policy.grant(
                grant_id,
                name,
                scopes,
                nbf_s=now_s,
                exp_s=now_s + cloud_policy.DAY_S,
                purposes=["dpv:ServiceProvision"],
                retention="P1D",
            )

        return cloud_policy.new_policy(
            vehicle=VEHICLE,
            issuer="https://consent.example",
            catalogue=self._catalogue,
            recipients={
                name: cloud_policy.recipient(name, key) for name, key in self._keys.items()
            },
            grants=[
                grant(GRANT_A, FLEET, SCOPES_A),
                grant(GRANT_B, CITY, SCOPES_B),
            ],
            iat_s=now_s,
            valid_s=cloud_policy.DAY_S,
        )

    def _publish_policy(self, broker: Broker, policy: dict[str, Any]) -> None:
        token = cloud_policy.sign_policy(policy, self._signer, catalogue=self._catalogue)
        address = BrokerAddress("localhost", broker.port, broker.tls("platform"))
        publish_policy(VEHICLE, token, address)

    def _start_daemon(
        self, stack: ExitStack, folder: Path, broker: Broker, link: Link, clock: DemoClock
    ) -> Daemon:
        """Write the vehicle's files as an installer would, and start the agent on them."""
        save_key(folder / "device.jwk", self._device)
        (folder / "trust.json").write_bytes(trust_file(self._signer))
        broker.write_client("demo-vehicle", folder)
        settings = {
            "vehicle": {"id": VEHICLE, "trust": "trust.json"},
            "state": {"directory": "state"},
            "keys": {"device": "device.jwk"},
            "control": {"socket": "control.sock"},
            "batch": {"max_age_s": BATCH_S},
            "bus": [
                {
                    "name": "can0",
                    "interface": "virtual",
                    "channel": VEHICLE,
                    "dbc": [str(path.resolve()) for path in self._options.dbcs],
                    "mapping": str(self._options.mapping.resolve()),
                    "options": {"preserve_timestamps": True},
                }
            ],
            "uplink": {
                "host": "localhost",
                "port": link.port,
                "ca": "ca.pem",
                "certificate": "client.pem",
                "private_key": "client.key",
                "min_backoff_s": 0.2,
                "max_backoff_s": 0.5,
            },
        }
        config = parse_config(settings, folder)
        vehicle = AgentThread(config, clock)
        stack.callback(vehicle.close)
        return vehicle.start()

    def _listen(self, stack: ExitStack, broker: Broker) -> None:
        """Start both recipients; each opens what arrives on its topic with its own key."""
        devices = {self._device["kid"]: device_public_key(self._device)}
        for name, key in self._keys.items():
            receiver = stack.enter_context(
                Receiver(
                    BrokerAddress("localhost", broker.port, broker.tls(name)),
                    recipient=name,
                    recipient_keys={key["kid"]: recipient_private(key)},
                    devices=devices,
                )
            )
            threading.Thread(
                target=self._receive, args=(name, receiver), name=f"demo-{name}", daemon=True
            ).start()

    def _receive(self, name: str, receiver: Receiver) -> None:
        for item in receiver:
            if isinstance(item, Rejected):
                self._unopened[name] += 1
                continue
            self._opened[name].append(item)
            self._state.envelopes[name] += 1
            for column in item.columns:
                self._state.opened[name][column.path] += len(column.values)
            self._changed()

    def _await_ack(self, auditor: Auditor, count: int) -> Seen:
        """Wait for the vehicle's signed answer; it must come from the device."""
        seen = auditor.first("/policy/ack", count=count, timeout_s=ACK_TIMEOUT_S)
        if seen is None:
            raise AgentError(f"the vehicle did not answer policy {count} in {ACK_TIMEOUT_S:.0f} s")
        devices = {self._device["kid"]: device_public_key(self._device)}
        verify_ack(seen.payload, devices=devices)
        return seen

    def _watch(self, daemon: Daemon, player: Player, clock: DemoClock, until_ns: int) -> None:
        """Let the drive go on until a moment of the demo's clock."""
        while clock() < until_ns and player.failure is None:
            self._state.frames = player.sent
            self._state.blocked = self._blocked(daemon)
            self._changed()
            clock.wait_until(min(until_ns, clock() + int(0.1 * clock.speed * NS_PER_S)))
        if player.failure is not None:
            raise told("the drive could not be played", player.failure)

    def _blocked(self, daemon: Daemon) -> dict[str, str]:
        """Say for every path that the vehicle could give why nobody gets it now."""
        granted = {take.path for take in daemon.plan.takes}
        revoked = self._state.policy_ver > 1
        scopes_b = set(SCOPES_B)
        reasons: dict[str, str] = {}
        for bound in daemon.binding.bound:
            if bound.vss.path not in granted:
                scope = bound.scope.name
                ended = revoked and scope in scopes_b
                reasons[bound.vss.path] = REVOKED_B if ended else f"no grant names {scope}"
        return reasons

    def _drain(self, auditor: Auditor) -> None:
        """Wait until nothing more of A arrives: the spool has been emptied."""
        # Envelopes alone: at high speed the counters of the agent's health never fall silent.
        last, still_since = _envelopes(auditor.seen()), time.monotonic()
        while time.monotonic() - still_since < QUIET_S:
            time.sleep(0.05)
            count = _envelopes(auditor.seen())
            if count != last:
                last, still_since = count, time.monotonic()

    def _needles(self, seen: list[Seen]) -> dict[str, bytes]:
        """Return what must not lie in the state directory: B's envelopes, and any plaintext."""
        needles = {"key of B": self._kid(CITY), **PLAINTEXT}
        for index, item in enumerate(seen):
            if f"/data/{CITY}/" in item.topic:
                middle = len(item.payload) // 2
                needles[f"envelope {index} of B"] = item.payload[middle : middle + 24]
        return needles

    def _judge(
        self, seen: list[Seen], revoked_at: int, spooled: dict[str, int], kept: dict[str, int]
    ) -> list[Promise]:
        # Before the broker's answer came, the link was cut: such an envelope is sent again.
        data = list({item.payload: item for item in seen if "/data/" in item.topic}.values())
        late = [item for item in seen[revoked_at:] if f"/data/{CITY}/" in item.topic]
        to_a = [item for item in data if f"/data/{FLEET}/" in item.topic]
        numbers = sorted(opened.header.n for opened in self._opened[FLEET])
        of_b = sum(count for label, count in kept.items() if label not in PLAINTEXT)
        unsealed = {label: spooled[label] + kept[label] for label in PLAINTEXT}
        readable = [
            item for item in data if any(sign in item.payload for sign in PLAINTEXT.values())
        ]
        opened = sum(map(len, self._opened.values()))
        return [
            Promise(
                "only what was consented to arrived",
                self._only_consented(),
                f"A opened {sum(self._state.opened[FLEET].values())} samples of "
                f"{len(self._state.opened[FLEET])} paths, B "
                f"{sum(self._state.opened[CITY].values())} of {len(self._state.opened[CITY])}",
            ),
            Promise(
                "every envelope opened for its recipient, and for nobody else",
                opened == len(data) > 0
                and not sum(self._unopened.values())
                and not readable
                and not self._opened_by_others(data),
                f"{opened} of {len(data)} envelopes seen on the wire opened; each was tried with "
                "the other's key too",
            ),
            Promise(
                "nothing of B's was sent after the revocation",
                not late,
                f"an independent subscriber saw {len(late)} of B's envelopes after it",
            ),
            Promise(
                "nothing of B's is kept after the revocation",
                spooled["B"] > 0 and of_b == 0,
                f"B's envelopes lay in {spooled['B']} places of the state directory before it, "
                f"{of_b} after it",
            ),
            Promise(
                "what rests on disk is sealed",
                not any(unsealed.values()),
                " and ".join(f"{count} {label}" for label, count in unsealed.items())
                + " in the bytes of the state directory, full and at the end",
            ),
            Promise(
                "nothing of A's was lost in the outage",
                numbers == list(range(1, len(to_a) + 1)) and bool(numbers),
                f"A received numbers 1 to {len(numbers)} without a hole",
            ),
        ]

    def _only_consented(self) -> bool:
        """Check every opened sample against the grant's scopes, grid and interval."""
        for name, scopes in ((FLEET, SCOPES_A), (CITY, SCOPES_B)):
            allowed = {
                signal.path: limits
                for scope, limits in scopes.items()
                for signal in self._catalogue.scopes[scope].signals
            }
            for opened in self._opened[name]:
                for column in opened.columns:
                    limits = allowed.get(column.path)
                    if limits is None or not _obeys(column, limits):
                        return False
        return bool(self._opened[FLEET]) and bool(self._opened[CITY])

    def _opened_by_others(self, data: list[Seen]) -> int:
        """Try every envelope with the other recipient's key."""
        devices = {self._device["kid"]: device_public_key(self._device)}
        count = 0
        for item in data:
            other = CITY if f"/data/{FLEET}/" in item.topic else FLEET
            stranger = recipient_private(self._keys[other])
            # Under every kid, so that it is the key that fails and not its name.
            keys = {key["kid"]: stranger for key in self._keys.values()}
            with contextlib.suppress(EnvelopeRejected):
                open_envelope(item.payload, recipient_keys=keys, devices=devices)
                count += 1
        return count


def _obeys(column: Column, limits: dict[str, Any]) -> bool:
    """Tell whether a column keeps its grant's interval and grid."""
    least_ms = limits.get("min_interval_s", 0) * 1000 - 1  # Times are rounded down to whole ms.
    gaps = zip(column.times_ms, column.times_ms[1:], strict=False)
    if any(after - before < least_ms for before, after in gaps):
        return False
    grid = limits.get("grid_deg")
    if grid is None or column.path.rpartition(".")[2] not in ("Latitude", "Longitude"):
        return True
    return all(abs((float(value) / grid) % 1 - 0.5) < 1e-3 for value in column.values)


def drive_length_s(logs: tuple[Path, ...]) -> float:
    """Return how long a recording is, s."""
    first = last = None
    with read_logs(logs) as recording:
        for t_ns, *_ in recording:
            first = t_ns if first is None else first
            last = t_ns
    if first is None or last is None or last <= first:
        raise AgentError(f"there is no drive in {', '.join(log.name for log in logs)}")
    return (last - first) / NS_PER_S


def _envelopes(seen: list[Seen]) -> int:
    return sum("/data/" in item.topic for item in seen)
