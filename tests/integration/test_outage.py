"""Hours without a broker, then the catch-up; `make test-long` has more of them."""

import sys
from pathlib import Path

import pytest

from tests.outage import WINDOW, run

pytestmark = pytest.mark.broker

RATE = 150.0


def test_after_hours_without_a_broker_all_comes_in_order_and_memory_is_flat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Retention, room and `offline_s` are kept by the clock; what they cost is told, no more."""
    figures = run(tmp_path, hours=4, every_s=30, order="oldest", max_rate_per_s=1e5, seed=1)

    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(f"{a}: {b}" for a, b in figures.rows()) + "\n")
    assert set(figures.order.values()) == {"rising"}
    assert figures.waiting > 400
    assert all(figures.told.values())
    assert figures.opened["gr_all"] == figures.drawn["gr_all"]
    assert figures.opened["gr_lapsing"] == figures.drawn["gr_lapsing"]


def test_a_backlog_leaves_newest_first_and_no_faster_than_it_may(tmp_path: Path) -> None:
    figures = run(tmp_path, hours=2, every_s=20, order="newest", max_rate_per_s=RATE, seed=1)

    assert set(figures.order.values()) == {"falling"}
    assert figures.waiting > 300
    # The first window goes at once.
    assert figures.per_s[0] < RATE * (1 + 2 * WINDOW / figures.waiting)
