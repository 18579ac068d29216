"""`consentry status` as a person reads it, drawn from a report."""

import click

from agent.cli.status import drawn
from tests.unit.core.test_status import REPORT


def test_what_a_controller_complained_of_is_told_by_kind() -> None:
    """Bus errors without end and no frame: the bit rate is wrong."""
    shown = click.unstyle("\n".join(drawn(REPORT)))

    (line,) = (line for line in shown.splitlines() if line.startswith("powertrain"))
    assert " 4 (bus-error 4) " in line
