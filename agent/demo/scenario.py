"""The demo's story, on loopback, in one process.

broker with TLS and client certificates, agent, two recipients, an independent auditor
policy 1: A may have odometer and speed, B the location on a coarse grid
a drive is played; mid-way the radio link is lost and the spool fills
while the vehicle is offline, the owner revokes B (policy 2)
the link comes back: the policy is obeyed before anything of B's is sent
the drive ends; an independent eye judges what was promised
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from agent.cloud.envelope import verify_ack
from agent.cloud.keys import make_device_key
from agent.control.publisher import POLICY_NEXT_S
from agent.core.catalogue import Catalogue
from agent.core.cose import device_public_key
from agent.core.model import NS_PER_S
from agent.daemon import Daemon
from agent.demo.broker import Broker
from agent.demo.consent import SCOPES_B, Platform
from agent.demo.judge import PLAINTEXT, Auditor, Seen, find_bytes
from agent.demo.link import Link
from agent.demo.player import DemoClock, Player
from agent.demo.recipients import Recipients
from agent.demo.sabotage import sabotaged
from agent.demo.state import CITY, REVOKED_B, VEHICLE, Options, Promise, State
from agent.demo.vehicle import AgentThread, installed, told
from agent.demo.verdict import Evidence, judge, needles
from agent.edge.files import load_catalogue
from agent.edge.logfile import read_logs
from agent.errors import AgentError
from agent.resources import shipped

# When things happen, as shares of the drive.
LINK_LOST, REVOKED, LINK_BACK = 0.45, 0.60, 0.65
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
        self._devices = {self._device["kid"]: device_public_key(self._device)}
        self._platform = Platform(self._catalogue)
        self._recipients = Recipients(state, changed, devices=self._devices)
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
        self._recipients.listen(stack, broker)
        clock = DemoClock(options.speed)

        first = self._platform.first_policy(self._recipients.keys, clock() // NS_PER_S)
        self._platform.publish(first, broker)
        broker.write_client("demo-vehicle", folder)
        config = installed(
            folder, options, device=self._device, trust=self._platform.trust_file(), port=link.port
        )
        vehicle = AgentThread(config, clock)
        stack.callback(vehicle.close)
        daemon = vehicle.start()
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
        self._platform.publish(self._platform.without_b(first, clock() // NS_PER_S), broker)
        self._say("the owner revoked B; the vehicle is offline and does not know yet")
        self._watch(daemon, player, clock, until_ns=at(LINK_BACK))
        # Now the spool is full: what rests on disk is looked at now, what must be gone at the end.
        spooled = find_bytes(folder / "state", {"B": self._recipients.kid(CITY), **PLAINTEXT})
        revoked_at = len(auditor.seen())
        link.restore()
        state.link_up = True
        self._await_ack(auditor, 2)
        state.policy_ver = 2
        self._say("the link is back: policy 2 came first and is in force, B is revoked")
        self._watch(daemon, player, clock, until_ns=at(1.0))
        state.phase = "the drive is over"
        self._drain(auditor)
        kept = find_bytes(folder / "state", needles(self._recipients, auditor.seen()))
        evidence = Evidence(auditor.seen(), revoked_at, spooled, kept)
        return judge(evidence, self._recipients, state, self._catalogue)

    def _say(self, text: str) -> None:
        self._state.phase = text
        self._state.events.append((time.monotonic() - self._started_s, text))
        self._changed()

    def _await_ack(self, auditor: Auditor, count: int) -> Seen:
        """Wait for the vehicle's signed answer; it must come from the device."""
        seen = auditor.first("/policy/ack", count=count, timeout_s=ACK_TIMEOUT_S)
        if seen is None:
            raise AgentError(f"the vehicle did not answer policy {count} in {ACK_TIMEOUT_S:.0f} s")
        verify_ack(seen.payload, devices=self._devices)
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
