"""The picture that `consentry status` draws of a report."""

from dataclasses import replace

import click
import pytest

from agent.cli.status import drawn
from agent.core.status import DiskStatus, StatusReport
from tests.unit.core.test_status import REPORT

DAY_S = 86_400


def lines(report: StatusReport) -> dict[str, str]:
    """Return what stands behind each row's name."""
    shown = [click.unstyle(line) for line in drawn(report)]
    return {line[:11].rstrip(): line[11:] for line in shown if line}


def test_what_was_lost_on_the_way_in_and_lies_aside_is_shown() -> None:
    shown = lines(REPORT)

    assert shown["capture"] == (
        "1,234,570 frames, 30 lost to a full queue, 1 transport message given up"
    )
    assert shown["set aside"] == "spool.db.corrupt-1"
    assert shown["ledger"] == "1,200 entries"
    assert shown["spool"] == "121 envelopes waiting, 1.2 MB"


def test_what_the_disk_refuses_is_shown_with_its_word() -> None:
    disk = DiskStatus("nothing was written: (SQLITE_FULL)", 7, 3, "ENOSPC")
    shown = lines(replace(REPORT, disk=disk))

    assert shown["spool"].endswith(", unusable: nothing was written: (SQLITE_FULL)")
    assert shown["ledger"] == "7 entries, 3 refused by the disk, ENOSPC"
    assert "set aside" not in shown


@pytest.mark.parametrize(
    ("left_s", "behind"),
    [(90 * DAY_S, ""), (10 * DAY_S, ", ends soon"), (-1, ", ended")],
)
def test_the_end_of_the_certificate_is_shown_and_warned_of(left_s: int, behind: str) -> None:
    shown = lines(replace(REPORT, certificate_ends_s=REPORT.now_s + left_s))["identity"]

    assert shown.startswith("certificate until 20")
    assert shown.removesuffix(behind).endswith(" UTC")
    assert "identity" not in lines(REPORT)


def test_what_a_controller_complained_of_is_shown_by_kind() -> None:
    """Bus errors without end and no frame: the bit rate is wrong."""
    assert " 4 (bus-error 4) " in lines(REPORT)["powertrain"]


def test_a_lane_that_stands_still_is_shown_with_for_how_long() -> None:
    assert lines(REPORT)["lanes"] == "capture still for 20 s, network dead"
