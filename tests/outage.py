"""Hours without a broker, by the vehicle's clock, then the catch-up.

`consentry run` with a simulated clock (tests/timelapse.py) collects while mosquitto is down; then
mosquitto comes back. Four grants, one for each thing that must hold meanwhile:

    gr_all      everything waits, and comes
    gr_short    its retention is a quarter of the outage: what is older is erased, and told
    gr_lapsing  its `offline_s` is half of the outage: nothing is collected after it, and nothing of
                it is sent before a fresh policy
    gr_place    its class has room for little: the oldest give way, and are told

`python -m tests.outage --report docs/reports/outage.md` is part of `make test-long`.
"""

import argparse
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from agent.cloud.inbox import verify_gap
from agent.cloud.receiver import BrokerAddress, publish_policy, push_policy
from agent.core.ask import Status
from agent.core.model import NS_PER_S
from agent.core.seal import Header
from agent.core.status import parse_status
from agent.edge.keys import client_tls
from tests import car
from tests.bench.bench_spool import ENVELOPE_BYTES, published
from tests.broker import Broker
from tests.cloud import VEHICLE, Cloud
from tests.peer import Peer
from tests.pki import Pki, context
from tests.timelapse import START_S, Vehicle, drawn, held, write_config
from tests.timelapse_child import DELIVERED, SEALED, SPOOLED

WAIT_S = 3600.0
HOUR_S = 3600
ONLINE_S = 120  # How long the broker is there at first.
SLACK_S = 61  # Envelopes tell their times rounded to minutes.
PLACE_BYTES = 20_000
MIB = 1 << 20
RESIDENT_BYTES = 3 * MIB  # More than before the catch-up is not flat.
WINDOW = 20  # The default of agent.toml.
QUIET_S = 0.7
SESSION_S = 7 * 86_400
ORDERS = {"oldest": "rising", "newest": "falling"}

Waiting = dict[str, tuple[int, int]]  # Envelopes and their bytes, per grant.


@dataclass
class Figures:
    """What was seen.

    Attributes:
        resident: Bytes in RAM: when the outage begins, ends, and the most of the catch-up.
        per_s: Envelopes/s of the catch-up, and paho's publishes/s in the same run.
        at_outage: Messages that had come by then.
        online: Envelopes among them.
        again: Envelopes that came again: the broker had no answer to them when it went.
        order: Whether numbers came `rising` or `falling`, per grant, of what had waited.
    """

    hours: float
    order_wanted: str
    seed: int
    at_outage: int = 0
    online: int = 0
    again: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    resident: tuple[int, int, int] = (0, 0, 0)
    per_s: tuple[float, float] = (0.0, 0.0)
    order: dict[str, str] = field(default_factory=dict)
    drawn: dict[str, int] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    most_in_a_second: int = 0
    seconds: float = 0.0

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of a table."""
        ours, theirs = self.per_s
        return [
            ("order", f"{self.order_wanted} first"),
            ("seed", str(self.seed)),
            ("hours without a broker, by the vehicle's clock", f"{self.hours:g}"),
            ("envelopes that waited at its end", f"{self.waiting:,}"),
            ("their bytes", f"{self.waiting_bytes:,}"),
            *((f"numbers drawn: {name}", f"{count:,}") for name, count in self.drawn.items()),
            *((f"opened: {name}", f"{count:,}") for name, count in self.opened.items()),
            *((f"told as {name}", f"{count:,}") for name, count in self.told.items()),
            ("came again and were told apart", f"{self.again:,}"),
            ("lost", "0"),
            *((f"what had waited came: {name}", found) for name, found in self.order.items()),
            ("envelopes/s of the catch-up", f"{ours:,.0f}"),
            (
                f"paho alone, publishes/s of {ENVELOPE_BYTES} bytes in the same run",
                f"{theirs:,.0f}",
            ),
            ("ours to paho's", f"{ours / theirs:.2f}" if theirs else "-"),
            ("most envelopes in a second", f"{self.most_in_a_second:,}"),
            (
                "MiB in RAM: outage begins, ends, most of the catch-up",
                ", ".join(f"{found / MIB:.1f}" for found in self.resident),
            ),
            ("seconds", f"{self.seconds:.0f}"),
        ]


class Scene:
    """Platform, recipient and the vehicle's files."""

    def __init__(
        self,
        folder: Path,
        pki: Pki,
        broker: Broker,
        socket_path: str,
        *,
        hours: float,
        every_s: float,
        order: str,
        max_rate_per_s: float,
    ) -> None:
        self.folder = folder
        self.cloud = Cloud()
        self.start_s = self.cloud.now_s
        platform = pki.client("platform", pki.backend)
        tls = client_tls(
            ca=platform.ca, certificate=platform.certificate, private_key=platform.private_key
        )
        self.platform = BrokerAddress("127.0.0.1", broker.backend_port, tls)
        folder.mkdir()
        (folder / "car.dbc").write_bytes(car.DBC)
        (folder / "car.vspec").write_bytes(car.MAPPING)
        self.cloud.write_files(folder)
        config = write_config(
            folder,
            broker.port,
            pki.vehicle(VEHICLE),
            socket=socket_path,
            bus={"dbc": ["car.dbc"], "mapping": "car.vspec"},
            batch={"max_samples": 1},  # An envelope for each: many, small.
            spool={"class_max_bytes": {"location": PLACE_BYTES}},
            uplink={"order": order, "max_rate_per_s": max_rate_per_s, "window": WINDOW},
        )
        self.vehicle = Vehicle(
            config,
            socket=socket_path,
            drive=f"car:{max(1, round(2 / every_s))}",
            start_ns=self.start_s * NS_PER_S,
        )
        mileage = {"read_odometer": {"min_interval_s": every_s}}
        rarely = {"read_odometer": {"min_interval_s": 4 * every_s}}
        place = {"read_location": {"min_interval_s": max(30.0, every_s)}}
        quarter = f"PT{max(1, round(hours * 15))}M"
        self.half_s = int(hours * HOUR_S / 2)
        make = self.cloud.grant
        self.grants = [
            make(mileage, grant_id="gr_all"),
            make(rarely, grant_id="gr_short", retention=quarter),
            make(rarely, grant_id="gr_lapsing", offline_s=self.half_s),
            make(place, grant_id="gr_place"),
        ]

    def policy(self) -> str:
        """Sign the policy of now."""
        self.cloud.now_s = max(self.start_s, self.vehicle.now_s)
        return self.cloud.policy(*self.grants)

    def renew(self) -> None:
        """Give the vehicle a fresh policy, and wait for its word."""
        device = self.cloud.device
        devices = {device.kid: device.public_half}
        ack = push_policy(VEHICLE, self.policy(), self.platform, devices=devices)
        assert ack.outcome == "applied", ack

    def waiting(self) -> Waiting:
        """Return how many envelopes and bytes wait in the running vehicle, per grant."""
        report = parse_status(self.vehicle.ask(Status()))
        return {g.grant_id: (g.envelopes, g.size_bytes) for g in report.grants if g.envelopes}


def run(
    folder: Path,
    *,
    hours: float,
    every_s: float,
    order: str,
    max_rate_per_s: float,
    seed: int,
) -> Figures:
    """Let a vehicle be without a broker for hours; return what was seen, all accounted for.

    Args:
        folder: Empty.
        hours: Of the outage.
        every_s: How often `gr_all` gives an envelope, by the vehicle's clock.
        order: As in agent.toml.
        max_rate_per_s: As in agent.toml.
        seed: Draws how long the outage is, to a hundredth.
    """
    begun_s = time.monotonic()
    hours *= random.Random(seed).uniform(1.0, 1.01)
    figures = Figures(hours, order, seed)
    pki = Pki(folder / "pki")
    with Broker(folder / "broker", pki) as broker, tempfile.TemporaryDirectory() as sockets:
        scene = Scene(
            folder / "car",
            pki,
            broker,
            f"{sockets}/control.sock",
            hours=hours,
            every_s=every_s,
            order=order,
            max_rate_per_s=max_rate_per_s,
        )
        publish_policy(VEHICLE, scene.policy(), scene.platform)
        fleet = Peer(
            broker.recipient_port,
            context(pki.client("fleet", pki.recipients)),
            client_id="fleet",
            session_s=SESSION_S,
        )
        with fleet, scene.vehicle:
            fleet.subscribe("consentry/v1/+/data/fleet/#").subscribe("consentry/v1/+/gap/fleet/#")
            waiting = _collect(scene, broker, fleet, figures)
            on_s = scene.vehicle.now_s
            _catch_up(scene, broker, fleet, figures)
        opened = _opened(scene, fleet, figures)
        _judge(scene, opened, figures, on_s, waiting)
        _account(scene, fleet, opened, figures)
        if max_rate_per_s >= 1e4:
            count = max(2_000, figures.waiting // 5)
            files = context(pki.vehicle("veh-2"))
            with Peer(
                broker.recipient_port,
                context(pki.client("fleet", pki.recipients)),
                client_id="fleet",
                session_s=SESSION_S,
            ) as other:
                other.subscribe("consentry/v1/+/data/fleet/#")
                seconds = published(broker.port, files, count)
            figures.per_s = (figures.per_s[0], count / seconds)
    figures.seconds = time.monotonic() - begun_s
    return figures


def _collect(scene: Scene, broker: Broker, fleet: Peer, figures: Figures) -> Waiting:
    """Drive with the broker, then without it for hours; return what waits."""
    vehicle = scene.vehicle
    vehicle.wait(lambda: b"policy applied" in vehicle.log.read_bytes(), START_S)
    vehicle.drive(1_000)
    vehicle.drive_until(scene.start_s + ONLINE_S, WAIT_S)
    vehicle.drive(0)
    _settle(
        vehicle,
        lambda: vehicle.gauges[SPOOLED] == 0 and len(fleet.messages) == vehicle.gauges[DELIVERED],
    )
    figures.at_outage = len(fleet.messages)
    broker.stop()
    off_s = vehicle.now_s
    before = vehicle.use().resident_bytes
    with _kept(broker):
        vehicle.drive(100_000)
        vehicle.drive_until(off_s + figures.hours * HOUR_S, WAIT_S)
        vehicle.drive(0)
        _settle(vehicle, lambda: True)
    figures.resident = (before, vehicle.use().resident_bytes, 0)
    waiting = scene.waiting()
    figures.waiting = sum(count for count, _ in waiting.values())
    figures.waiting_bytes = sum(size for _, size in waiting.values())
    assert waiting["gr_place"][1] <= PLACE_BYTES
    assert vehicle.gauges[SPOOLED] == figures.waiting
    return waiting


@contextmanager
def _kept(broker: Broker) -> Iterator[None]:
    """Keep others from the ports of a broker that is away; whoever connects is refused."""
    with ExitStack() as kept:
        for port in (broker.port, broker.backend_port, broker.recipient_port):
            taken = kept.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
        yield


def _settle(
    vehicle: Vehicle, found: Callable[[], bool], received: Callable[[], int] = lambda: 0
) -> None:
    """Wait until something is so, and nothing was sealed, delivered or received for a while."""

    def seen() -> tuple[int, int, int]:
        return vehicle.gauges[SEALED], vehicle.gauges[DELIVERED], received()

    before, since_s = seen(), time.monotonic()

    def is_quiet() -> bool:
        nonlocal before, since_s
        if not found() or seen() != before:
            before, since_s = seen(), time.monotonic()
        return time.monotonic() - since_s > QUIET_S

    vehicle.wait(is_quiet, START_S)


def _catch_up(scene: Scene, broker: Broker, fleet: Peer, figures: Figures) -> None:
    """Let the broker come back; measure until all has gone that may."""
    vehicle = scene.vehicle
    lapsed = scene.waiting()["gr_lapsing"]
    before, most = vehicle.gauges[DELIVERED], 0
    broker.start()
    vehicle.wait(lambda: vehicle.gauges[DELIVERED] > before, START_S)
    begun_s, first = time.monotonic(), vehicle.gauges[DELIVERED]

    def gone() -> bool:
        nonlocal most
        most = max(most, vehicle.use().resident_bytes)
        return vehicle.gauges[SPOOLED] == lapsed[0]

    vehicle.wait(gone, WAIT_S)
    figures.per_s = ((vehicle.gauges[DELIVERED] - first) / (time.monotonic() - begun_s), 0.0)
    figures.resident = (*figures.resident[:2], most)
    assert scene.waiting() == {"gr_lapsing": lapsed}
    scene.renew()
    vehicle.wait(lambda: vehicle.gauges[SPOOLED] == 0, WAIT_S)
    # The broker has all; the recipient may still be getting it.
    _settle(vehicle, lambda: True, lambda: len(fleet.messages))
    figures.most_in_a_second = _busiest([m.timestamp for m in fleet.messages[first:]])


def _judge(
    scene: Scene, opened: Sequence[Header], figures: Figures, on_s: int, waiting: Waiting
) -> None:
    """Hold what came behind the outage against what each grant allows."""
    opened = opened[figures.online :]
    numbers = {name: [h.n for h in opened if h.grant_id == name] for name in waiting}
    times = {name: [h.from_s for h in opened if h.grant_id == name] for name in waiting}
    quarter_s = on_s - figures.hours * HOUR_S / 4
    lapsed_s = scene.start_s + scene.half_s
    assert min(times["gr_short"]) >= quarter_s - 2 * SLACK_S
    assert lapsed_s - 5 * SLACK_S <= max(times["gr_lapsing"]) <= lapsed_s + SLACK_S
    assert max(times["gr_all"]) >= on_s - 2 * SLACK_S
    assert 0 < len(times["gr_place"]) < len(times["gr_all"])
    for name, (count, _) in waiting.items():
        # Behind them comes what a swap of the plan closed.
        figures.order[name] = _order(numbers[name][:count])
        assert figures.order[name] == ORDERS[figures.order_wanted], name
    before, after = figures.resident[1:]
    assert after <= before + RESIDENT_BYTES, f"{before} bytes in RAM, then {after}"


def _account(scene: Scene, fleet: Peer, opened: Sequence[Header], figures: Figures) -> None:
    """Hold every number that was drawn against what became of it."""
    state, device = scene.folder / "state", scene.cloud.device
    figures.drawn = drawn(state)
    every = {(g, n) for g, top in figures.drawn.items() for n in range(1, top + 1)}
    came = [(h.grant_id, h.n) for h in opened]
    gaps = [
        verify_gap(m.payload, devices={device.kid: device.public_half})
        for m in fleet.messages
        if "/gap/" in m.topic
    ]
    told = {(gap.grant_id, n): gap.why for gap in gaps for n in range(gap.first_n, gap.last_n + 1)}
    waits, untold = held(state)
    lost = every - set(came) - told.keys() - waits - untold
    assert not lost, f"lost: {sorted(lost)[:10]} of {len(every)}"
    assert not set(came) & told.keys(), "what came was told as gone"
    figures.opened = {name: sum(g == name for g, _ in came) for name in figures.drawn}
    figures.told = {
        f"{why}: {name}": sum(g == name and w == why for (g, _), w in told.items())
        for name, why in (("gr_short", "expired"), ("gr_place", "evicted"))
    }
    assert sum(figures.told.values()) == len(told)


def _opened(scene: Scene, fleet: Peer, figures: Figures) -> list[Header]:
    """Open what came, and tell what came again; return what stands on the others, as they came."""
    first: dict[tuple[str, int], bytes] = {}
    opened = []
    for place, message in enumerate(fleet.messages):
        if "/data/" not in message.topic:
            continue
        header = scene.cloud.open(message.payload).header
        name = (header.grant_id, header.n)
        if name in first:
            assert first[name] == message.payload, "another envelope came under the same number"
            figures.again += 1
            continue
        first[name] = message.payload
        opened.append(header)
        figures.online += place < figures.at_outage
    return opened


def _order(numbers: Sequence[int]) -> str:
    pairs = list(pairwise(numbers))
    if all(a < b for a, b in pairs):
        return "rising"
    return "falling" if all(a > b for a, b in pairs) else "mixed"


def _busiest(times: Sequence[float]) -> int:
    """Return the most that came within any second."""
    most = first = 0
    for last, t in enumerate(times):
        while t - times[first] > 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=12.0)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between envelopes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args()
    tables = []
    for order, hours, rate in (("oldest", given.hours, 1e5), ("newest", given.hours / 8, 200.0)):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            figures = run(
                Path(folder),
                hours=hours,
                every_s=given.every,
                order=order,
                max_rate_per_s=rate,
                seed=given.seed,
            )
        rows = [("most envelopes a second by agent.toml", f"{rate:,.0f}"), *figures.rows()]
        tables.append("\n".join(["| what | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]))
        sys.stdout.write(f"{tables[-1]}\n\n")
    if given.report is not None:
        given.report.parent.mkdir(exist_ok=True)
        given.report.write_text(
            "# Hours without a broker\n\nWritten by `python -m tests.outage` (`make test-long`):"
            " `consentry run` with a simulated clock collects while mosquitto is down, then"
            " catches up. `tests/outage.py` says what each grant is for. An envelope holds one"
            " sample, so that they are many; the recipient takes part, so the rates are those of"
            " broker, recipient and vehicle on one machine.\n\n" + "\n\n".join(tables) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
