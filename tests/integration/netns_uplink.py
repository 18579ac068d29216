"""Vehicle and broker in two network namespaces; run by test_uplink_netns.py inside the first."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.driven import Spooled, spool, tls_config
from tests.peer import Peer, wait_until
from tests.pki import Pki, context
from tests.wire import THERE, Link

COUNT = 600


@pytest.fixture
def link() -> Iterator[Link]:
    with Link() as made:
        yield made


def test_a_link_that_comes_and_goes_delivers_all_in_order(link: Link, tmp_path: Path) -> None:
    """Taken away in the middle of publishing, for shorter and longer than it takes to notice."""
    pki = Pki(tmp_path / "pki")
    certificate = pki.broker(THERE)
    with ExitStack() as stack:
        broker = stack.enter_context(
            Broker(
                tmp_path / "broker", pki, certificate=certificate, host=THERE, prefix=link.inside
            )
        )
        tls = context(pki.client("fleet-x", pki.recipients))
        peer = stack.enter_context(
            Peer(broker.recipient_port, tls, client_id="r", session_s=600, host=THERE)
        )
        peer.subscribe("consentry/v1/+/data/fleet-x/#")
        store = stack.enter_context(spool(tmp_path, COUNT, "gr_a", "gr_b"))
        config = tls_config(
            broker.port,
            "veh-1",
            pki.vehicle("veh-1"),
            THERE,
            keepalive_s=1,
            max_rate_per_s=300.0,
        )
        driven = stack.enter_context(Spooled(config, store))
        for share, kind, away_s in (
            (80, "down", 0.5),
            (200, "silent", 3.0),
            (320, "down", 3.0),
            (440, "silent", 0.5),
        ):
            driven.pump(lambda share=share: driven.delivered >= share)  # type: ignore[misc]
            lost = driven.disconnects
            link.lose(kind)
            until_s = time.monotonic() + away_s
            driven.pump(lambda: time.monotonic() > until_s)  # noqa: B023 - called at once
            link.find(kind)
            if away_s > 2.5:
                assert driven.disconnects > lost, "a dead link was not noticed"
        driven.pump(lambda: not store.counts())
        wait_until(lambda: len(set(peer.payloads())) == COUNT, 60)

        for grant_id in ("gr_a", "gr_b"):
            topic = f"consentry/v1/veh-1/data/fleet-x/{grant_id}"
            numbers = [int(payload) for payload in dict.fromkeys(peer.payloads(topic))]
            assert numbers == sorted(numbers)
            assert len(numbers) == COUNT // 2
