"""The doctor: what is sound is told so, what is not with what to do."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import doctor
from agent.core.permission import Permissions
from agent.core.status import LaneStatus, StatusReport
from agent.doctor import Check, Verdict, examine, judge_folder
from agent.edge import machine
from agent.edge.control_socket import ControlSocket
from tests import car
from tests.cloud import VEHICLE, Cloud
from tests.unit.core.test_status import REPORT
from tests.unit.edge.test_control_socket import ME

HEALTHY = replace(REPORT, lanes=(LaneStatus("capture", is_alive=True),), stops=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "car.dbc").write_bytes(car.DBC)
    (tmp_path / "car.vspec").write_bytes(car.MAPPING)
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "synchronised").touch()
    Cloud().write_files(tmp_path)
    return tmp_path


@contextmanager
def examined(
    folder: Path, status: StatusReport | None = HEALTHY, **lines: str
) -> Iterator[dict[str, Check]]:
    """Give the checks by name, of a vehicle whose agent says `status`; None: no agent runs."""
    with socket.create_server(("127.0.0.1", 0)) as broker:
        values = {"interface": "virtual", "mapping": "car.vspec", "port": broker.getsockname()[1]}
        values |= lines
        (folder / "agent.toml").write_text(
            f"""
            [vehicle]
            id = "{VEHICLE}"
            trust = "trust.json"
            [state]
            directory = "state"
            [keys]
            device = "device.jwk"
            [time]
            synchronised = "{folder / "synchronised"}"
            [control]
            socket = "s"
            [[bus]]
            name = "body"
            interface = "{values["interface"]}"
            channel = "no-such-can"
            dbc = ["car.dbc"]
            mapping = "{values["mapping"]}"
            [uplink]
            host = "127.0.0.1"
            port = {values["port"]}
            plaintext_loopback = true
            """
        )
        lane: ControlSocket | None = None
        if status is not None:
            told = status
            lane = ControlSocket(
                folder / "s",
                permissions=Permissions(ME, ME, ME),
                on_ask=lambda ask: ask.answer(told.members()),
            )
            lane.start()
        try:
            found = examine(folder / "agent.toml", root=folder / "root")
            yield {check.name: check for check in found}
        finally:
            if lane is not None:
                lane.close()


def test_a_sound_installation_is_told_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_FORGETS", ())  # Whatever the tests' folder lies on.
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 1)
    monkeypatch.setattr(doctor, "NO_FREE_BYTES", 0)

    with examined(folder) as checks:
        assert {name: check.verdict for name, check in checks.items()} == dict.fromkeys(
            ("config", "files", "state", "clock", "bus", "broker", "agent", "policy"), Verdict.OK
        )
        assert all(check.text for check in checks.values())


def ill(checks: dict[str, Check], name: str, verdict: Verdict, text: str) -> None:
    assert checks[name].verdict is verdict
    assert text in checks[name].text
    assert checks[name].hint


def test_a_file_that_is_missing_is_told_and_the_rest_is_looked_at(folder: Path) -> None:
    (folder / "trust.json").unlink()

    with examined(folder) as checks:
        ill(checks, "files", Verdict.FAIL, "trust.json")
        assert "broker" not in checks
        assert checks["agent"].verdict is Verdict.OK


def test_a_configuration_that_is_wrong_is_all_that_is_told(folder: Path) -> None:
    with examined(folder, interface='x"\nnonsense = "') as checks:
        ill(checks, "config", Verdict.FAIL, "there is no such key")
        assert len(checks) == 1


def test_a_mapping_that_gives_nothing_keeps_the_agent_from_its_work(folder: Path) -> None:
    (folder / "none.vspec").write_text("Vehicle.Speed: {type: sensor, dbc: {signal: Sped}}")

    with examined(folder, mapping="none.vspec") as checks:
        ill(checks, "files", Verdict.FAIL, "no path can be given")


def test_findings_are_warned_of(folder: Path) -> None:
    text = car.MAPPING + b"\nVehicle.TripMeterReading: {type: sensor, dbc: {signal: Trip}}"
    (folder / "car.vspec").write_bytes(text)

    with examined(folder) as checks:
        ill(checks, "files", Verdict.WARN, "1 findings")


@pytest.mark.parametrize(
    ("change", "verdict", "text"),
    [
        ({"mode": 0o750}, Verdict.FAIL, "mode 0750"),
        ({"file_system": "vfat"}, Verdict.FAIL, "cannot be relied on"),
        ({"free_bytes": 1}, Verdict.FAIL, "full"),
        ({"file_system": "tmpfs"}, Verdict.WARN, "forgets"),
        ({"free_bytes": 50_000_000}, Verdict.WARN, "little"),
    ],
)
def test_a_folder_that_is_no_good_for_the_state_is_judged_so(
    change: dict[str, Any], verdict: Verdict, text: str
) -> None:
    good = machine.Folder(0, 0o700, "ext4", 10**9)

    judged = judge_folder(replace(good, **change))

    assert judged[0] is verdict
    assert text in judged[1]
    assert judged[2]
    assert judge_folder(good) == (Verdict.OK, "", None)


def test_a_state_directory_that_others_may_look_into_is_told(folder: Path) -> None:
    (folder / "state").chmod(0o750)

    with examined(folder) as checks:
        ill(checks, "state", Verdict.FAIL, "mode 0750")


def test_no_state_directory_yet_is_no_failure(folder: Path) -> None:
    (folder / "state").rmdir()

    with examined(folder) as checks:
        ill(checks, "state", Verdict.WARN, "is not there")


def test_a_clock_that_nobody_has_set_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "synchronised").unlink()
    with examined(folder) as checks:
        ill(checks, "clock", Verdict.WARN, "nobody has set it")
    monkeypatch.setattr(doctor, "BUILT_S", 10**11)
    with examined(folder) as checks:
        ill(checks, "clock", Verdict.FAIL, "before this version")


@pytest.mark.parametrize(
    ("flags", "verdict", "text"),
    [
        (None, Verdict.FAIL, "there is no CAN interface no-such-can"),
        ("0x40080", Verdict.FAIL, "no-such-can is down"),
        ("0x400c1", Verdict.OK, "no-such-can is up"),
    ],
)
def test_the_interface_of_a_bus_is_looked_at(
    folder: Path, flags: str | None, verdict: Verdict, text: str
) -> None:
    if flags is not None:
        device = folder / "root/sys/class/net/no-such-can"
        device.mkdir(parents=True)
        (device / "type").write_text("280\n")
        (device / "flags").write_text(f"{flags}\n")

    with examined(folder, interface="socketcan") as checks:
        assert checks["bus"].verdict is verdict
        assert text in checks["bus"].text
        assert bool(checks["bus"].hint) is (verdict is Verdict.FAIL)


@pytest.mark.parametrize(("is_there", "verdict"), [(False, Verdict.FAIL), (True, Verdict.OK)])
def test_the_device_of_a_receiver_is_looked_for(
    folder: Path,
    is_there: bool,  # noqa: FBT001
    verdict: Verdict,
) -> None:
    if is_there:
        (folder / "root").mkdir()
        (folder / "root/no-such-can").touch()

    with examined(folder, interface="gnss") as checks:
        assert checks["bus"].verdict is verdict
        assert "a GNSS receiver at no-such-can" in checks["bus"].text
        assert bool(checks["bus"].hint) is not is_there


def test_a_broker_that_is_not_there_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]

    with examined(folder, port=str(port)) as checks:
        assert checks["broker"].verdict is Verdict.FAIL
        assert "cannot be reached" in checks["broker"].text


@pytest.mark.parametrize(
    ("status", "name", "verdict", "text"),
    [
        (None, "agent", Verdict.WARN, "no agent listens"),
        (
            replace(HEALTHY, lanes=(LaneStatus("network", is_alive=False),)),
            "agent",
            Verdict.FAIL,
            "lane network is dead",
        ),
        (
            replace(HEALTHY, lanes=(LaneStatus("bus can0", True, still_since_s=0),)),
            "agent",
            Verdict.FAIL,
            "lane bus can0 stands still",
        ),
        (replace(HEALTHY, uplink="down"), "agent", Verdict.WARN, "no connection"),
        (replace(HEALTHY, policy=None), "policy", Verdict.WARN, "no policy has come yet"),
        (replace(HEALTHY, now_s=1_798_060_800), "policy", Verdict.WARN, "it expired 2026-12-23"),
        (replace(HEALTHY, grants=HEALTHY.grants[1:]), "policy", Verdict.WARN, "no grant is active"),
    ],
)
def test_what_the_running_agent_says_of_itself_is_judged(
    folder: Path, status: StatusReport | None, name: str, verdict: Verdict, text: str
) -> None:
    with examined(folder, status) as checks:
        ill(checks, name, verdict, text)


def test_swap_is_warned_of(folder: Path) -> None:
    (folder / "root/proc").mkdir(parents=True)
    (folder / "root/proc/swaps").write_text("Filename Type\n/dev/sda2 partition\n")

    with examined(folder) as checks:
        ill(checks, "memory", Verdict.WARN, "swap")
