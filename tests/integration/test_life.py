"""Start, reload and stop: in one process on a virtual bus, and as a process of its own."""

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import watch
from agent.cloud.keys import make_device_key
from agent.control.agent import HEALTH_CHANGED_S
from agent.core.ask import Status
from agent.core.model import NS_PER_S, Sample
from agent.core.status import StatusReport, parse_status
from agent.daemon import STOP_S
from agent.demo.judge import Auditor
from agent.edge.control_client import ask
from agent.edge.ledger import read_entries
from agent.errors import AgentError, ConfigError, DbcError, LedgerError, PolicyRejected
from tests import car
from tests.adapter import Script, plug_in
from tests.cloud import VEHICLE, Cloud
from tests.rig import Rig, data_of, wait_for

pytestmark = pytest.mark.broker

FULL: dict[str, Any] = {"min_interval_s": 0}
T0_MS = 1_800_000_000_000
# As tests/car.py, but the speed is not mapped any more.
WITHOUT_SPEED = car.MAPPING.replace(b"signal: Speed,", b"signal: Gone,")


def opened(auditor: Auditor, cloud: Cloud) -> list[Sample]:
    return [s for e in data_of(auditor) for s in cloud.open(e).samples("fleet")]


def values(auditor: Auditor, cloud: Cloud, path: str) -> list[Any]:
    samples = [s for s in opened(auditor, cloud) if s.path == path]
    return [s.value for s in sorted(samples, key=lambda s: s.t_ns)]


def answers(auditor: Auditor) -> int:
    return sum(item.topic.endswith("/policy/ack") for item in auditor.seen())


def consent(rig: Rig, cloud: Cloud, auditor: Auditor) -> None:
    rig.push(
        cloud.policy(
            cloud.grant({"read_odometer": FULL, "read_speedometer": {"min_interval_s": 0.1}})
        )
    )
    wait_for("the answer", lambda: answers(auditor) > 0)


def drive(rig: Rig, daemon: Any, first: int, count: int) -> None:
    """Play an odometer each 10 ms and a speed each 100 ms, and wait until they are taken."""
    due = daemon.capture.frames + count + count // 10
    numbers = range(first, first + count)
    rig.play(
        car.merged(
            [car.odometer(T0_MS + 10 * n, n) for n in numbers],
            [car.speed(T0_MS + 10 * n, n % 200) for n in numbers[::10]],
        )
    )
    wait_for("the capture lane", lambda: daemon.capture.frames >= due)


def test_a_reload_takes_up_a_mapping_and_loses_no_sample_and_no_connection(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    with rig.running() as daemon:
        consent(rig, cloud, auditor)
        drive(rig, daemon, 0, 100)
        rig.mapping.write_bytes(WITHOUT_SPEED)
        rig.reload(daemon)
        drive(rig, daemon, 100, 100)
        states = [item.payload for item in auditor.seen() if item.topic.endswith("/status")]
    with rig.running():
        path = "Vehicle.TraveledDistance"
        wait_for("every sample", lambda: len(values(auditor, cloud, path)) >= 200)

    assert values(auditor, cloud, path) == list(range(200))
    assert len(values(auditor, cloud, "Vehicle.Speed")) == 10
    assert set(states) == {b'{"state":"online"}'}


def test_a_reload_while_frames_come_loses_none(rig: Rig, cloud: Cloud, auditor: Auditor) -> None:
    with rig.running() as daemon:
        consent(rig, cloud, auditor)
        done = threading.Event()

        def again() -> None:
            while not done.is_set():
                rig.reload(daemon)

        reloading = threading.Thread(target=again)
        reloading.start()
        for first in range(0, 4000, 200):
            drive(rig, daemon, first, 200)
        done.set()
        reloading.join()
    with rig.running():
        path = "Vehicle.TraveledDistance"
        wait_for("every sample", lambda: len(values(auditor, cloud, path)) >= 4000)

    assert values(auditor, cloud, path) == list(range(4000))


def told(rig: Rig, *names: str) -> list[dict[str, Any]]:
    """Return what the ledger says of some kinds of event."""
    entries = [entry for _, entry in read_entries(rig.state / "ledger")]
    return [dict(e.facts) for e in entries if not isinstance(e, LedgerError) and e.name in names]


def exchange_device_key(rig: Rig, cloud: Cloud) -> None:
    (rig.folder / "device.jwk").unlink()
    cloud.device_jwk = make_device_key("device-2", "EdDSA")
    cloud.write_files(rig.folder)


def test_the_ledger_tells_of_reloads_and_of_keys_that_were_exchanged(
    rig: Rig, cloud: Cloud
) -> None:
    """Each change once: by hand while the agent runs, or while it does not."""
    with rig.running():
        pass
    with rig.running() as daemon:
        assert len(told(rig, "key-changed")) == 2
        exchange_device_key(rig, cloud)
        rig.mapping.write_bytes(WITHOUT_SPEED)
        rig.reload(daemon)
    exchange_device_key(rig, cloud)
    with rig.running():
        pass

    assert [(e["role"], e["kid"], e["change"]) for e in told(rig, "key-changed")] == [
        ("device", "device-1", "enrolled"),
        ("policy", "platform-1", "enrolled"),
        ("device", "device-1", "removed"),
        ("device", "device-2", "enrolled"),
        ("device", "device-2", "rotated"),
    ]
    first, second, third = told(rig, "started")
    (reloaded,) = told(rig, "reloaded")
    assert first == second
    assert {name for name in reloaded if reloaded[name] != second[name]} == {"sources"}
    assert reloaded["sources"] == third["sources"]
    assert told(rig, "certificate-changed") == [{"ends": daemon.uplink.certificate_ends_s}]


def test_the_ledger_tells_an_end_that_was_asked_for_from_a_failure(rig: Rig) -> None:
    with rig.running():
        pass
    with pytest.raises(AgentError, match="capture died"), rig.running() as daemon:  # noqa: PT012
        daemon.capture.close()
        daemon.wake()
        time.sleep(0.5)

    assert [facts["reason"] for facts in told(rig, "stopped")] == ["asked", "failed"]


def test_policies_that_arrive_during_reloads_are_all_answered(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    with rig.running() as daemon:
        consent(rig, cloud, auditor)
        for number in range(10):
            pushing = threading.Thread(
                target=rig.push,
                args=(cloud.policy(cloud.grant({"read_odometer": FULL}, rev=number + 2)),),
            )
            pushing.start()
            for _ in range(5):
                rig.reload(daemon)
            pushing.join()
        wait_for("the answers", lambda: answers(auditor) >= 11)
        status = daemon.status

    assert status == "policy 1.11, 1 grants live, 1 buses"


def test_envelopes_go_on_after_a_reload(rig: Rig, cloud: Cloud, auditor: Auditor) -> None:
    rig.max_age_s = 0.5
    with rig.running() as daemon:
        consent(rig, cloud, auditor)
        drive(rig, daemon, 0, 100)
        rig.reload(daemon)
        drive(rig, daemon, 100, 100)

        path = "Vehicle.TraveledDistance"
        wait_for("samples of after", lambda: 100 in values(auditor, cloud, path))


def test_a_wrong_file_is_refused_and_the_agent_goes_on_as_it_was(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    with rig.running() as daemon:
        consent(rig, cloud, auditor)
        rig.mapping.write_bytes(WITHOUT_SPEED)
        rig.dbcs[0].write_bytes(b"no DBC at all")

        with pytest.raises(DbcError):
            rig.reload(daemon)

        drive(rig, daemon, 0, 100)
    rig.mapping.write_bytes(car.MAPPING)
    rig.dbcs[0].write_bytes(car.DBC)
    with rig.running():
        wait_for("samples", lambda: len(values(auditor, cloud, "Vehicle.Speed")) == 10)


def test_a_trust_file_without_the_key_of_the_policy_in_force_is_refused(
    rig: Rig, cloud: Cloud, auditor: Auditor
) -> None:
    with rig.running() as daemon:
        consent(rig, cloud, auditor)
        before = daemon.plan
        other = rig.folder / "other"
        other.mkdir()
        Cloud().write_files(other)
        (other / "trust.json").rename(rig.folder / "trust.json")

        with pytest.raises(PolicyRejected):
            rig.reload(daemon)

        assert daemon.plan is before


def test_what_only_a_restart_takes_up_is_named(rig: Rig, cloud: Cloud, auditor: Auditor) -> None:
    with rig.running() as daemon:
        consent(rig, cloud, auditor)
        uplink = rig.config().uplink.model_copy(update={"keepalive_s": 31})

        with pytest.raises(ConfigError, match="uplink changed") as told:
            rig.reload(daemon, uplink=uplink)

        assert "systemctl restart" in (told.value.hint or "")


def test_a_bus_that_changes_is_opened_anew(rig: Rig, cloud: Cloud, auditor: Auditor) -> None:
    with rig.running() as daemon:
        consent(rig, cloud, auditor)
        rig.channel += "-other"
        rig.reload(daemon)
        drive(rig, daemon, 0, 10)

        assert [lane.name for lane in daemon.lanes()] == [
            "capture",
            "network",
            "control",
            "bus can0",
        ]
        assert all(lane.is_alive for lane in daemon.lanes())


def test_a_lane_that_hangs_is_named_by_status_health_and_log(
    rig: Rig,
    cloud: Cloud,
    auditor: Auditor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An adapter that does not come back from a call."""
    caplog.set_level("INFO")
    monkeypatch.setattr(
        watch, "STILL_S", 2.2
    )  # Twice what a turn takes; idle lanes may be named, too.
    plug_in(monkeypatch, "pcan")
    rig.rights = {"may_look": [pwd.getpwuid(os.geteuid()).pw_name]}
    rig.more_buses = [
        {
            "name": "body",
            "interface": "pcan",
            "channel": rig.channel,
            "dbc": [str(rig.dbcs[0])],
            "mapping": str(rig.mapping),
        }
    ]
    hangs = threading.Event()
    script = Script(rig.channel, [hangs])
    with rig.running():
        consent(rig, cloud, auditor)
        wait_for("the call", lambda: script.opened_s)
        caplog.clear()
        wait_for("the log", lambda: ("lane stands still", "bus body") in named(caplog))
        (body,) = [x for x in asked(rig).lanes if x.name == "bus body"]
        rig.clock.now_ns += HEALTH_CHANGED_S * NS_PER_S
        wait_for("health", lambda: any("bus body" in h["still"] for h in healths(auditor)[-1:]))
        told = healths(auditor)[-1]
        caplog.clear()
        hangs.set()
        wait_for("it to move", lambda: ("lane moves again", "bus body") in named(caplog))
        rig.clock.now_ns += HEALTH_CHANGED_S * NS_PER_S
        wait_for("health", lambda: "bus body" not in healths(auditor)[-1]["still"])

    assert body.is_alive
    assert body.still_since_s is not None
    assert 1 <= rig.clock.now_ns // NS_PER_S - body.still_since_s <= 30
    assert "lane-still" in told["warnings"]


def test_an_agent_lane_that_hangs_is_named_by_the_control_lane(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that does not come back from a call. Nobody else would say so before the watchdog."""
    monkeypatch.setattr(watch, "STILL_S", 0.5)
    back = threading.Event()
    with rig.running() as daemon:
        hung = threading.Thread(target=rig.inside, args=(daemon, back.wait))
        hung.start()

        def told() -> bool:
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(rig.socket))  # Which wakes the control lane.
            return ("lane stands still", "agent") in named(caplog)

        try:
            wait_for("the log", told)
        finally:
            back.set()
            hung.join()


def named(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.message, r.__dict__["lane"]) for r in caplog.records if "lane" in r.__dict__]


def asked(rig: Rig) -> StatusReport:
    return parse_status(ask(rig.socket, Status()))


def healths(auditor: Auditor) -> list[Any]:
    return [json.loads(i.payload) for i in auditor.seen() if i.topic.endswith("/health")]


TOML = """
[vehicle]
id = "{vehicle}"
trust = "trust.json"
[state]
directory = "state"
[control]
socket = "{socket}"
[keys]
device = "device.jwk"
[[bus]]
name = "can0"
interface = "virtual"
channel = "life"
dbc = ["car.dbc"]
mapping = "car.vspec"
[uplink]
host = "localhost"
port = {port}
ca = "ca.pem"
certificate = "client.pem"
private_key = "client.key"
"""


class Process:
    """`consentry run` as systemd would start it."""

    def __init__(self, folder: Path, *options: str, watchdog_s: float = 8.0) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(folder / "notify"))
        self._listener.settimeout(20)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from agent.cli.main import main; main()"),
                    *("run", "--config", str(folder / "agent.toml"), *options),
                ],
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": str(folder / "notify"),
                    "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
                },
                stderr=log,
            )

    def heard(self) -> list[str]:
        """Return the next message."""
        return self._listener.recv(4096).decode().split("\n")

    def await_word(self, word: str) -> list[str]:
        """Return the next message that begins with a word."""
        while True:
            message = self.heard()
            if message[0] == word:
                return message

    def is_silent(self, for_s: float) -> bool:
        """Whether nothing comes for so long; what lay there already is taken."""
        end = time.monotonic() + for_s + 20
        self._listener.settimeout(for_s)
        try:
            while time.monotonic() < end:
                self.heard()
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        self._listener.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def started(rig: Rig, *options: str) -> Iterator[Process]:
    (rig.folder / "agent.toml").write_text(
        TOML.format(socket=rig.socket, vehicle=VEHICLE, port=rig.broker.port)
    )
    process = Process(rig.folder, *options)
    try:
        yield process
    finally:
        process.close()
        (rig.folder / "notify").unlink()


def test_systemd_hears_of_start_reload_and_end(rig: Rig) -> None:
    with started(rig) as running:
        first = running.heard()
        running.process.send_signal(signal.SIGHUP)
        reloading = running.await_word("RELOADING=1")
        again = running.await_word("READY=1")
        (rig.folder / "agent.toml").write_text("[vehicle")
        running.process.send_signal(signal.SIGHUP)
        running.await_word("RELOADING=1")
        refused = running.await_word("READY=1")
        running.process.send_signal(signal.SIGTERM)
        ending = running.await_word("STOPPING=1")
        status = running.process.wait(10)
        log = running.log.read_text()

    assert first == ["READY=1", "STATUS=no policy, 0 grants live, 1 buses"]
    assert reloading[1].startswith("MONOTONIC_USEC=")
    assert again[0] == refused[0] == "READY=1"
    assert ending
    assert status == 0
    assert "info: reloaded" in log
    assert "error: reload refused" in log
    assert "agent.toml" in log.partition("reload refused")[2]


def test_the_watchdog_is_fed_while_all_lanes_move_and_not_when_the_process_stands(rig: Rig) -> None:
    with started(rig) as running:
        running.await_word("READY=1")
        for _ in range(2):
            running.await_word("WATCHDOG=1")
        running.process.send_signal(signal.SIGSTOP)
        silent = running.is_silent(6)
        running.process.send_signal(signal.SIGABRT)
        running.process.send_signal(signal.SIGCONT)
        status = running.process.wait(10)
        log = running.log.read_text()

    assert silent
    # The dump of the other threads' stacks (faulthandler) may itself run into what they just do.
    assert status in (-signal.SIGABRT, -signal.SIGSEGV)
    assert "Fatal Python error: Aborted" in log  # Where each thread was.


def test_it_stops_in_time_while_the_broker_hangs(rig: Rig, tmp_path: Path) -> None:
    broker = next(
        int(pid.name)
        for pid in Path("/proc").iterdir()
        if pid.name.isdecimal() and str(tmp_path / "broker").encode() in _arguments(pid)
    )
    with started(rig) as running:
        running.await_word("READY=1")
        wait_for("the link", lambda: "uplink up" in running.log.read_text())
        os.kill(broker, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            running.process.send_signal(signal.SIGTERM)
            status = running.process.wait(20)
            took_s = time.monotonic() - begun
        finally:
            os.kill(broker, signal.SIGCONT)

    assert status == 0
    assert took_s < STOP_S


def _arguments(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_an_older_policy_file_is_no_failure_and_changes_nothing(rig: Rig, cloud: Cloud) -> None:
    old = rig.folder / "old.jws"
    old.write_text(cloud.policy(cloud.grant({"read_odometer": FULL})))
    new = rig.folder / "new.jws"
    new.write_text(cloud.policy(cloud.grant({"read_odometer": FULL}, rev=2)))

    statuses = []
    for file in (new, old):
        with started(rig, "--policy", str(file)) as running:
            statuses.append(running.await_word("READY=1")[1])
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(10) == 0
            log = running.log.read_text()

    assert statuses == ["STATUS=policy 1.2, 1 grants live, 1 buses"] * 2
    assert "warning: policy file is older" in log


def test_a_policy_file_that_is_wrong_still_ends_it(rig: Rig) -> None:
    (rig.folder / "p.jws").write_text("garbage")

    with started(rig, "--policy", str(rig.folder / "p.jws")) as running:
        assert running.process.wait(20) == 3


def test_without_a_spool_it_is_never_ready(rig: Rig) -> None:
    (rig.folder / "state").write_text("a file, not a folder")

    with started(rig) as running:
        status = running.process.wait(20)

        assert status == 1
        assert running.is_silent(0.1)
