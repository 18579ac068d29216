"""Pure parts of the uplink: the interface in use, held grants, servers, TLS files."""

import random
import ssl
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes

from agent.core.model import NS_PER_S
from agent.edge.uplink import TlsSource, UplinkConfig
from agent.edge.uplink.client import PublishProperties, properties_of
from agent.edge.uplink.dial import ConnectionEnded, Proxy
from agent.edge.uplink.lane import backoff_s
from agent.edge.uplink.message import COSE_TYPE, Message, Messages
from agent.edge.uplink.outbox import MAX_HELD_S, Outbox
from agent.edge.uplink.route import blocked_classes, default_interface
from agent.edge.uplink.server import MAX_HOPS, Server
from agent.errors import ConfigError, KeyFileError

ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
{rows}"""


def ipv4(iface: str, metric: int, *, flags: str = "0003", to: str = "00000000") -> str:
    return f"{iface}\t{to}\t010200C0\t{flags}\t0\t0\t{metric}\t{to}\t0\t0\t0\n"


def ipv6(iface: str, metric: int, *, flags: int = 3, to: str = "0" * 32, bits: str = "00") -> str:
    gateway, none = "fd" + "0" * 29 + "1", "0" * 32
    return f"{to} {bits} {none} 00 {gateway} {metric:08x} 00000001 00000000 {flags:08x} {iface}\n"


@pytest.mark.parametrize(
    ("four", "six", "expected"),
    [
        ("", "", None),
        (ipv4("wwan0", 700) + ipv4("wlan0", 600), "", "wlan0"),
        (ipv4("eth0", 100, to="0000A8C0") + ipv4("wlan0", 600), "", "wlan0"),
        (ipv4("dead0", 1, flags="0002") + ipv4("wlan0", 600), "", "wlan0"),
        (ipv4("no0", 1, flags="0201") + ipv4("wlan0", 600), "", "wlan0"),
        (ipv4("wwan0", 700), ipv6("wlan0", 1), "wwan0"),
        ("", ipv6("wlan0", 1024) + ipv6("eth0", 256), "eth0"),
        ("", ipv6("lo", 1) + ipv6("x0", 1, to="fd" + "0" * 30, bits="40"), None),
        ("nonsense\n", "nonsense\n", None),
    ],
)
def test_the_interface_is_that_of_the_best_default_route(
    tmp_path: Path, four: str, six: str, expected: str | None
) -> None:
    """As the kernel tells it; routes that are down or reject do not count."""
    (tmp_path / "route").write_text(ROUTE.format(rows=four))
    (tmp_path / "ipv6_route").write_text(six)

    assert default_interface(tmp_path) == expected


def test_without_the_kernels_tables_there_is_no_interface(tmp_path: Path) -> None:
    """And on this machine reading them raises nothing."""
    assert default_interface(tmp_path) is None
    default_interface()


def test_a_class_waits_for_its_interfaces_and_the_others_do_not() -> None:
    """Without a default route what has a condition waits."""
    when = {"location": ("wlan*", "eth0"), "identity": ()}

    assert blocked_classes(when, "wlan3") == {"identity"}
    assert blocked_classes(when, "eth0") == {"identity"}
    assert blocked_classes(when, "eth01") == {"location", "identity"}
    assert blocked_classes(when, "WLAN0") == {"location", "identity"}
    assert blocked_classes(when, None) == {"location", "identity"}
    assert blocked_classes({}, None) == frozenset()


def envelope(row_id: int, grant_id: str = "gr_a") -> Message:
    return Messages("veh-1").envelope(row_id, "fleet-x", grant_id, row_id, b"sealed", 60)


def refuse(outbox: Outbox, message: Message, now_s: float, code: int = 0x87) -> None:
    outbox._settle(message, code, int(now_s * NS_PER_S))


def test_a_refused_grant_waits_twice_as_long_each_time_up_to_an_hour() -> None:
    """And a success forgets it."""
    outbox = Outbox(window=5, max_rate_per_s=50.0)
    now_s, waits = 0.0, []
    for _ in range(8):
        refuse(outbox, envelope(1), now_s)
        refuse(outbox, envelope(2), now_s)  # On its way together with the first: counts once.
        begun_s = now_s
        while outbox.is_held(envelope(3), int(now_s * NS_PER_S)):
            now_s += 10
        waits.append(now_s - begun_s)
    outbox._settle(envelope(1), 0, 0)
    refuse(outbox, envelope(1), now_s)

    assert waits == [60, 120, 240, 480, 960, 1920, MAX_HELD_S, MAX_HELD_S]
    assert not outbox.is_held(envelope(1), int((now_s + 61) * NS_PER_S))
    assert not outbox.is_held(envelope(1, "gr_b"), int(now_s * NS_PER_S))


def test_what_was_answered_is_not_on_its_way_but_not_offered_again_either() -> None:
    outbox = Outbox(window=5, max_rate_per_s=50.0)
    for message in (envelope(1), envelope(2), Messages("v").gap(-1, "r", "g", b"signed")):
        outbox.add_row(message)
    outbox._settle(envelope(1), 0, 0)

    assert outbox.unanswered() == 1, "records of gaps are no envelopes"
    assert outbox.busy_rows() == {1, 2, -1}


def test_a_refused_record_of_a_gap_holds_no_envelope() -> None:
    """A broker whose list does not know the topic yet must not stop the data."""
    outbox = Outbox(window=5, max_rate_per_s=50.0)
    refuse(outbox, Messages("veh-1").gap(-1, "fleet-x", "gr_a", b"signed"), 0)

    assert outbox.held_grants(0) == frozenset()
    assert not outbox.is_held(envelope(1), 0)
    assert outbox.is_held(Messages("veh-1").gap(-2, "fleet-x", "gr_a", b"signed"), 0)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, {}),
        ({"expiry_s": 1}, {"MessageExpiryInterval": 1}),
        (
            {"expiry_s": 2**32 - 1, "n": 2**53},
            {"MessageExpiryInterval": 2**32 - 1, "UserProperty": [("n", str(2**53))]},
        ),
    ],
)
def test_properties_are_packed_as_paho_reads_them(
    about: dict[str, Any], expected: dict[str, Any]
) -> None:
    """The oracle is the reader of paho."""
    packed = PublishProperties(COSE_TYPE, **about).pack()
    read = properties_of(PacketTypes.PUBLISH)
    _, size = read.unpack(packed)  # type: ignore[no-untyped-call]

    assert size == len(packed)
    assert read.json() == {"ContentType": COSE_TYPE} | expected  # type: ignore[no-untyped-call]


def config(**other: Any) -> UplinkConfig:
    about = {"host": "127.0.0.1", "port": 8883, "plaintext_loopback": True, "tls": None} | other
    return UplinkConfig(vehicle="veh-1", client_id="veh-1", **about)


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("b.example", ("b.example", 8883)),
        ("b.example:443", None),
        ("c.example:443", ("c.example", 443)),
        ("c.example", None),
        ("x.example b.example", ("b.example", 8883)),
        ("[::1]:99", ("::1", 99)),
        ("[::1]", None),
        ("", None),
        (":", None),
        ("b.example:port", None),
        ("127.0.0.1:8883", ("127.0.0.1", 8883)),
    ],
)
def test_only_a_named_server_is_gone_to(reference: str, target: tuple[str, int] | None) -> None:
    """The configured one among them."""
    server = Server(config(redirects=("b.example", "c.example:443", "[::1]:99")))

    server.learn(ConnectionEnded("moved", server=reference), came_up=False)

    assert server.target == (target or ("127.0.0.1", 8883))


def test_a_server_is_used_until_it_fails_and_hops_are_counted() -> None:
    """A connection that came up counts anew."""
    server = Server(config(redirects=("b.example",)))
    moved = ConnectionEnded("moved", server="b.example")
    assert all(server.learn(moved, came_up=False) for _ in range(MAX_HOPS))
    assert not server.learn(moved, came_up=False)
    assert server.learn(moved, came_up=True)
    assert server.target == ("b.example", 8883)
    assert not server.learn(ConnectionEnded("lost"), came_up=True)
    assert server.target == ("b.example", 8883)
    assert not server.learn(ConnectionEnded("lost"), came_up=False)
    assert server.target == ("127.0.0.1", 8883)


def test_files_that_do_not_fit_leave_the_context_and_the_fault_is_told(tmp_path: Path) -> None:
    """Once they fit again all is well."""
    made: list[ssl.SSLContext] = []
    path = tmp_path / "file"
    path.write_text("1")

    def make() -> tuple[ssl.SSLContext, int]:
        if path.read_text() == "bad":
            raise KeyFileError("half of a pair")
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        made.append(context)
        return context, len(made)

    source = TlsSource(make, files=[path, tmp_path / "missing"])
    assert source.context() is made[0]
    path.write_text("bad")
    assert source.has_changed()
    assert source.context() is made[0]
    assert source.fault == "half of a pair"
    path.write_text("good")
    assert source.context() is made[1]
    assert (source.fault, source.ends_s, len(made)) == (None, 2, 2)


def test_a_source_that_would_take_any_broker_is_refused() -> None:
    """Whoever made it, and when."""

    def make() -> tuple[ssl.SSLContext, int]:
        blind = ssl.create_default_context()
        blind.check_hostname = False
        return blind, 0

    with pytest.raises(ConfigError, match="accepts any broker"):
        TlsSource(make, files=[])


def test_plaintext_never_goes_through_a_proxy() -> None:
    """The address on loopback would be the proxy's."""
    with pytest.raises(ConfigError, match="plaintext through a proxy"):
        config(proxy=Proxy("127.0.0.1", 3128))


@pytest.mark.parametrize(
    ("attempt", "bound_s"), [(0, 1.0), (1, 2.0), (5, 32.0), (9, 300.0), (10**6, 300.0)]
)
def test_the_wait_is_drawn_evenly_up_to_a_bound_that_doubles(attempt: int, bound_s: float) -> None:
    chance = random.Random(7)
    waits = [backoff_s(attempt, 1.0, 300.0, chance) / bound_s for _ in range(2000)]

    assert 0 <= min(waits) < 0.01
    assert 0.99 < max(waits) <= 1
    for tenth in range(10):
        share = sum(tenth / 10 <= wait < (tenth + 1) / 10 for wait in waits)
        assert 130 < share < 270, "two hundred in each tenth"
