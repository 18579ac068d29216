"""The demo's story, on loopback, in one process.

    broker with TLS and client certificates, agent, two recipients, an independent auditor
    policy 1: A may have odometer and speed, B the location on a coarse grid
    a drive is played; mid-way the radio link is lost and the spool fills
    while the vehicle is offline, the owner revokes B (policy 2)
    the link comes back: the policy is obeyed before anything of B's is sent
    the drive ends; an independent eye judges what was promised
"""

import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.cloud import policy as cloud_policy
from agent.cloud.envelope import open_envelope
from agent.cloud.keys import make_device_key, make_policy_key, make_recipient_key
from agent.core.catalogue import Catalogue
from agent.core.model import NS_PER_S
from agent.daemon import Daemon, load_parts
from agent.demo.broker import Broker
from agent.demo.judge import Auditor, Seen, find_bytes
from agent.demo.link import Link
from agent.demo.player import DemoClock, Player
from agent.demo.sabotage import sabotaged
from agent.edge.files import load_catalogue
from agent.edge.logfile import read_logs
from agent.errors import AgentError, EnvelopeRejected
from agent.resources import shipped

VEHICLE = "demo-vehicle"
FLEET, CITY = "fleet-a", "city-b"  # Recipients A and B.
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


@dataclass(frozen=True, slots=True)
class Options:
    """What is played, and how.

    Attributes:
        logs: One recording.
        dbcs: The DBC files of its bus.
        mapping: VSS path -> signal.
        speed: How many times as fast as the recording.
        longest_s: At most so much of the recording is played, in its own time.
        sabotage: Which promise is broken on purpose, for tests.
    """

    logs: tuple[Path, ...]
    dbcs: tuple[Path, ...]
    mapping: Path
    speed: float
    longest_s: float
    sabotage: str | None = None


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise, whether it was kept, and how that was seen."""

    text: str
    kept: bool
    evidence: str


@dataclass(slots=True)
class State:
    """What the screen shows; written by the story, read by the screen."""

    phase: str = "starting"
    broker: str = ""
    policy_ver: int = 0
    frames: int = 0
    link_up: bool = True
    opened: dict[str, Counter[str]] = field(
        default_factory=lambda: {FLEET: Counter(), CITY: Counter()}
    )
    envelopes: Counter[str] = field(default_factory=Counter)
    blocked: dict[str, str] = field(default_factory=dict)
    promises: list[Promise] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)


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
        drive_s = min(_length_s(options.logs), options.longest_s)
        self._say("starting a broker with TLS and client certificates")
        broker = stack.enter_context(Broker(folder / "broker"))
        state.broker = broker.name
        auditor = stack.enter_context(Auditor(port=broker.port, tls=broker.tls("auditor")))
        link = stack.enter_context(Link(broker.port))
        clock = DemoClock(options.speed)

        first = self._first_policy(clock)
        self._publish_policy(broker, first)
        daemon = self._start_daemon(stack, folder, broker, link, clock)
        self._await_ack(auditor, 1)
        state.policy_ver = 1
        self._say("policy 1 is in force: A may have odometer and speed, B the coarse location")

        start_ns = clock()
        player = Player(
            options.logs, channel=VEHICLE, clock=clock, start_ns=start_ns, duration_s=drive_s
        )
        stack.callback(player.close)
        player.start()

        def at(share: float) -> int:
            return start_ns + int(share * drive_s * NS_PER_S)

        self._watch(auditor, player, clock, until_ns=at(LINK_LOST))
        link.cut()
        state.link_up = False
        self._say("the vehicle lost its link; what is sealed waits on its disk")
        self._watch(auditor, player, clock, until_ns=at(REVOKED))
        second = cloud_policy.revoke(first, GRANT_B, iat_s=clock() // NS_PER_S)
        self._publish_policy(broker, second)
        self._say("the owner revoked B; the vehicle is offline and does not know yet")
        self._watch(auditor, player, clock, until_ns=at(LINK_BACK))
        kept_before = find_bytes(folder / "state", {"B": self._kid(CITY)})["B"]
        revoked_at = len(auditor.seen())
        link.restore()
        state.link_up = True
        self._await_ack(auditor, 2)
        state.policy_ver = 2
        self._say("the link is back: policy 2 came first and is in force, B is revoked")
        self._watch(auditor, player, clock, until_ns=at(1.0))
        state.phase = "the drive is over"
        self._drain(daemon, auditor)
        kept_after = find_bytes(folder / "state", self._needles(auditor.seen()))
        return self._judge(auditor.seen(), revoked_at, kept_before, kept_after)
