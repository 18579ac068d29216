"""What a recipient has got, and what it misses and why."""

import dataclasses
import random
from pathlib import Path

import pytest

from agent.cloud import inbox as inbox_module
from agent.cloud.inbox import Inbox, Missing, verify_gap
from agent.core import cbor
from agent.core.cose import sign1
from agent.core.gap import Gap, sign_gap
from agent.errors import EnvelopeRejected, UplinkError
from tests import sealing
from tests.cloud import Cloud

GAP = Gap("veh-1", sealing.device().kid, "gr_a", 3, 5, "evicted", 1_795_468_800)


def came(inbox: Inbox, *numbers: int) -> None:
    for n in numbers:
        inbox.keep("veh-1", "gr_a", n, b"%d" % n)


def runs(inbox: Inbox) -> list[tuple[int, int, str]]:
    return [(run.first_n, run.last_n, run.why) for run in inbox.missing()]


def told(inbox: Inbox, first: int, last: int, why: str) -> None:
    inbox.keep_gap(dataclasses.replace(GAP, first_n=first, last_n=last, why=why))


def test_a_hole_is_lost_until_its_device_says_why() -> None:
    """And a number that comes late is not missing any more."""
    inbox = Inbox()
    assert inbox.missing() == ()
    came(inbox, 1, 2, 6, 9)
    assert inbox.missing() == (
        Missing("veh-1", "gr_a", 3, 5, "lost"),
        Missing("veh-1", "gr_a", 7, 8, "lost"),
    )
    told(inbox, 4, 7, "evicted")
    assert runs(inbox) == [(3, 3, "lost"), (4, 5, "evicted"), (7, 7, "evicted"), (8, 8, "lost")]
    came(inbox, 3, 8)

    assert runs(inbox) == [(4, 5, "evicted"), (7, 7, "evicted")]


def test_what_was_told_behind_all_that_came_is_missing_too() -> None:
    """A grant that was revoked brings nothing any more."""
    inbox = Inbox()
    told(inbox, 1, 2, "expired")
    told(inbox, 3, 9, "erased")

    assert runs(inbox) == [(1, 2, "expired"), (3, 9, "erased")]


def test_the_narrower_word_counts() -> None:
    """`damaged` is said of all numbers that there ever were."""
    inbox = Inbox()
    came(inbox, 1, 8)
    told(inbox, 1, 6, "damaged")
    told(inbox, 3, 4, "evicted")

    assert runs(inbox) == [(2, 2, "damaged"), (3, 4, "evicted"), (5, 6, "damaged"), (7, 7, "lost")]


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_those_that_a_plain_count_gives(seed: int) -> None:
    """Number by number."""
    chance = random.Random(seed)
    inbox = Inbox()
    got = set(chance.sample(range(1, 30), 12))
    said: dict[int, str] = {}
    came(inbox, *got)
    for why in ("evicted", "expired"):
        first = chance.randrange(1, 25)
        last = first + chance.randrange(5)
        if any(n in said for n in range(first, last + 1)):
            continue
        told(inbox, first, last, why)
        said |= dict.fromkeys(range(first, last + 1), why)

    top = max(got | said.keys())
    assert {n: why for first, last, why in runs(inbox) for n in range(first, last + 1)} == {
        n: said.get(n, "lost") for n in range(1, top + 1) if n not in got
    }


def test_a_file_remembers_over_restarts_and_memory_forgets_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was forgotten is not missing."""
    monkeypatch.setattr(inbox_module, "REMEMBERED", 3)
    kept, plain = Inbox(tmp_path / "inbox"), Inbox()
    for inbox in (kept, plain):
        came(inbox, 1, 2, 3, 4, 6)
    kept.close()
    kept = Inbox(tmp_path / "inbox")

    assert kept.digest("veh-1", "gr_a", 1) == b"1"
    assert plain.digest("veh-1", "gr_a", 1) is None
    assert plain.digest("veh-1", "gr_a", 6) == b"6"
    assert runs(kept) == runs(plain) == [(5, 5, "lost")]
    kept.close()
    (tmp_path / "other").write_bytes(b"no database" * 100)
    with pytest.raises(UplinkError, match="cannot be used"):
        Inbox(tmp_path / "other")


def test_a_record_is_its_devices_word_and_nobody_elses() -> None:
    """Another enrolled device cannot excuse what it has taken away."""
    record = sign_gap(GAP, sealing.device())
    assert verify_gap(record, devices=sealing.devices()) == GAP

    other = Cloud().device
    known = {**sealing.devices(), other.kid: other.public_half}
    forged = sign_gap(dataclasses.replace(GAP, device_kid=other.kid), other)
    resigned = sign1(cbor.encode(_members(GAP)), other)
    assert verify_gap(forged, devices=known).device_kid == other.kid
    for data, devices, reason in (
        (record, {}, "unknown-device"),
        (forged, sealing.devices(), "unknown-device"),
        (resigned, known, "wrong-device"),
        (record[:-1] + bytes([record[-1] ^ 1]), sealing.devices(), "signature"),
        (b"", sealing.devices(), "malformed"),
    ):
        with pytest.raises(EnvelopeRejected) as caught:
            verify_gap(data, devices=devices)
        assert caught.value.reason == reason


def _members(gap: Gap) -> dict[str, object]:
    return {
        "typ": "consent-gap",
        "v": gap.vehicle,
        "dk": gap.device_kid,
        "g": gap.grant_id,
        "n": [gap.first_n, gap.last_n],
        "w": gap.why,
        "t": gap.time_s,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"typ": "consent-ack"},
        {"v": 1},
        {"g": b"gr"},
        {"n": [1]},
        {"n": [0, 1]},
        {"n": [5, 4]},
        {"n": [1, True]},
        {"n": "1-2"},
        {"w": "bored"},
        {"t": -1},
        {"more": 1},
    ],
)
def test_what_is_no_record_is_refused(wrong: dict[str, object]) -> None:
    """Exactly these members, of these types."""
    data = sign1(cbor.encode(_members(GAP) | wrong), sealing.device())

    with pytest.raises(EnvelopeRejected) as caught:
        verify_gap(data, devices=sealing.devices())

    assert caught.value.reason == "malformed"
