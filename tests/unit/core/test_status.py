"""How the agent is, over JSON and back."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from agent.core.status import (
    CERTIFICATE_WARN_S,
    BusStatus,
    CaptureStatus,
    DiskStatus,
    GrantStatus,
    LaneStatus,
    PolicyStatus,
    RestrictionStatus,
    StatusReport,
    StopStatus,
    parse_status,
    parse_stops,
)
from agent.errors import AgentError

REPORT = StatusReport(
    version="0.1.0",
    vehicle="veh-7Q2K",
    started_s=1_795_468_800,
    now_s=1_795_476_300,
    is_time_known=True,
    policy=PolicyStatus(epoch=1, ver=42, iat_s=1_795_468_800, until_s=1_798_060_800),
    lanes=(
        LaneStatus("capture", is_alive=True, still_since_s=1_795_476_280),
        LaneStatus("network", is_alive=False),
    ),
    buses=(
        BusStatus("powertrain", "active", 1_234_567, 2, 30, {"bus-error": 4}, 1_795_476_297),
        BusStatus("body", "idle", 0, 0),
    ),
    grants=(
        GrantStatus(
            *("gr_fleet", 3, "fleet-x", ("read_odometer", "read_fuel"), "active", ""),
            until_s=1_798_060_800,
            envelopes=120,
            size_bytes=1_234_000,
        ),
        GrantStatus(
            *("gr_city", 1, "city", ("read_location",), "paused", "restricted"),
            until_s=None,
            envelopes=1,
            size_bytes=900,
        ),
    ),
    stops=(
        StopStatus("gr_city", "uid 1000", 1_795_476_000, 4_800),
        StopStatus("*", "switch", 1_795_476_000, None),
    ),
    restrictions=(RestrictionStatus("jti-1", "pause", ("*",), 1_795_470_000),),
    uplink="up",
    in_flight=1,
    counts={"sealed": 130, "dropped_ended": 1},
    capture=CaptureStatus(frames=1_234_570, overrun=30, given_up=1),
    disk=DiskStatus("", ledger_size=1_200, set_aside=("spool.db.corrupt-1",)),
)


def told() -> dict[str, Any]:
    members: dict[str, Any] = json.loads(json.dumps(REPORT.members()))
    return members


def test_a_report_survives_the_socket() -> None:
    assert parse_status(told()) == REPORT


def test_counts_may_be_a_counter() -> None:
    counted = replace(REPORT, counts=Counter(REPORT.counts))

    assert json.loads(json.dumps(counted.members())) == told()


def test_a_report_without_a_policy_does_too() -> None:
    assert parse_status(told() | {"policy": None}).policy is None


@pytest.mark.parametrize(
    "members",
    [
        {},
        told() | {"more": 1},
        {name: value for name, value in told().items() if name != "lanes"},
        told() | {"lanes": None},
        told() | {"grants": [{"grant_id": "g"}]},
        told() | {"stops": [{"grant": "g"}]},
        told() | {"policy": {"epoch": 1}},
        told() | {"capture": {"lost": 1}},
        told() | {"disk": {}},
    ],
)
def test_a_report_of_another_version_is_an_error_with_advice(members: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match="not what this version") as refused:
        parse_status(members)

    assert refused.value.hint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"certificate_ends_s": REPORT.now_s + CERTIFICATE_WARN_S + 1}, ()),
        ({"certificate_ends_s": REPORT.now_s + CERTIFICATE_WARN_S}, ("certificate-ends-soon",)),
        ({"certificate_ends_s": REPORT.now_s + 1}, ("certificate-ends-soon",)),
        ({"certificate_ends_s": REPORT.now_s}, ("certificate-ended",)),
        ({"lanes": REPORT.lanes}, ("lane-still",)),
        ({"disk": DiskStatus(ledger_lost=1)}, ("ledger-refused",)),
        ({"disk": DiskStatus(ledger_fault="EROFS")}, ("ledger-refused",)),
        ({"disk": DiskStatus(spool_fault="no")}, ("spool-unusable",)),
        ({"disk": DiskStatus(set_aside=("ledger.damaged-1",))}, ("state-set-aside",)),
    ],
)
def test_what_somebody_must_look_after_is_a_word(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    well = replace(REPORT, disk=DiskStatus(), lanes=())

    assert replace(well, **changes).warnings == words


def test_stops_of_another_version_are_an_error() -> None:
    with pytest.raises(AgentError, match="not what this version"):
        parse_stops({"stop": []})
