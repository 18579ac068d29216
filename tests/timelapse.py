"""A vehicle whose hours pass in seconds, from outside: its files, its process, what it uses.

the drive ─► consentry run (tests/timelapse_child.py) ─► mosquitto, TLS ─► who receives
"""

import getpass
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from agent.core.ask import Verb
from agent.edge.control_client import ask
from agent.edge.store import Store
from tests.cloud import VEHICLE
from tests.peer import wait_until
from tests.pki import Files
from tests.timelapse_child import NOW, PACE, SLOTS, TURNS, Gauges

START_S = 30.0
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Use:
    """What a process has of the machine.

    Attributes:
        resident_bytes: In RAM or swapped out, files that it has mapped included.
        files: Open descriptors.
        threads: Of the process.
    """

    resident_bytes: int
    files: int
    threads: int


class Vehicle:
    """The process. A context manager: leaving it ends the process in order."""

    def __init__(self, config: Path, *, socket: str, drive: str, start_ns: int) -> None:
        self.folder = config.parent
        self._socket = Path(socket)
        self.log = self.folder / "vehicle.log"
        gauges = self.folder / "gauges"
        gauges.write_bytes(bytes(SLOTS * 8))
        self.gauges = Gauges(gauges)
        self._command = [
            *(sys.executable, "-W", "ignore", "-m", "tests.timelapse_child"),
            *(str(gauges), drive, str(start_ns), "run", "--config", str(config)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=_ROOT
            )
        self.wait(lambda: self.gauges[TURNS], START_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process in order; what is open is sealed and stored."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(30) == 0, f"exit status {process.returncode}"
            finally:
                process.kill()

    @property
    def now_s(self) -> int:
        """What time it is in the vehicle, s since the epoch."""
        return self.gauges[NOW] // 10**9

    def wait(self, found: Any, timeout_s: float) -> None:
        """Wait until something is so, and the process lives."""

        def looked() -> Any:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text(encoding="utf-8")[-2000:]
            return found()

        wait_until(looked, timeout_s)

    def drive(self, pace: int) -> None:
        """Go at most so much faster than it went; 0: park."""
        self.gauges[PACE] = pace

    def drive_until(self, now_s: float, timeout_s: float) -> None:
        """Wait until it is so late in the vehicle."""
        self.wait(lambda: self.gauges[NOW] >= now_s * 1e9, timeout_s)

    def ask(self, verb: Verb) -> dict[str, Any]:
        """Ask as somebody who stands at the vehicle."""
        return ask(self._socket, verb)

    def reload(self) -> None:
        """Let it read its files anew."""
        assert self._process is not None
        told = self.log.read_bytes().count(b"reloaded")
        self._process.send_signal(signal.SIGHUP)
        self.wait(lambda: self.log.read_bytes().count(b"reloaded") > told, START_S)

    def use(self) -> Use:
        """Return what the process has now."""
        assert self._process is not None
        return use_of(self._process.pid)


def use_of(pid: int) -> Use:
    """Return what a process has of the machine (proc(5))."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = {name: value.split() for name, _, value in (x.partition(":") for x in text.split("\n"))}
    resident = sum(int(found[name][0]) * 1024 for name in ("VmRSS", "VmSwap"))
    return Use(resident, len(list(Path(f"/proc/{pid}/fd").iterdir())), int(found["Threads"][0]))


def write_config(
    folder: Path,
    port: int,
    files: Files,
    *,
    socket: str,
    bus: Mapping[str, Any],
    **sections: Mapping[str, Any],
) -> Path:
    """Write agent.toml for a vehicle whose bus is the drive; sections add to what stands here.

    The socket's path must be short: 107 bytes at most.
    """
    made: dict[str, dict[str, Any]] = {
        "vehicle": {"id": VEHICLE, "trust": "trust.json"},
        "state": {"directory": "state"},
        "keys": {"device": "device.jwk"},
        "control": {"socket": socket, "may_pause": [getpass.getuser()]},
        "time": {"synchronised": "always"},
        "uplink": {
            "host": "127.0.0.1",
            "port": port,
            "ca": str(files.ca),
            "certificate": str(files.certificate),
            "private_key": str(files.private_key),
            "min_backoff_s": 0.05,
            "max_backoff_s": 0.3,
        },
    }
    made["control"]["may_resume"] = made["control"]["may_look"] = made["control"]["may_pause"]
    for name, section in sections.items():
        made[name] = made.get(name, {}) | dict(section)
    drive = {
        "name": "can0",
        "interface": "virtual",
        "channel": "drive",
        # Its times are those of the vehicle's clock, not of this machine's.
        "options": {"preserve_timestamps": True},
    }
    lines = ["[[bus]]", *_keys(drive | dict(bus))]
    for name, section in made.items():
        lines += [f"[{name}]", *_keys(section)]
    path = folder / "agent.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _keys(section: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in section.items()]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(v)}" for name, v in value.items()) + " }"
    return json.dumps(value)  # Of text, numbers, truth and lists both have one spelling.


def drawn(state: Path) -> dict[str, int]:
    """Return the highest number that a stopped vehicle has drawn, per grant."""
    db = sqlite3.connect(state / "spool.db")
    try:
        return dict(db.execute("SELECT grant_id, n FROM sequence WHERE grant_id != ''"))
    finally:
        db.close()


def held(state: Path) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """Return the numbers that wait in a stopped vehicle's spool, and those of untold gaps."""
    with Store.open(state) as store:
        gaps = {
            (gap.grant_id, n)
            for gap in store.gaps(10_000)
            for n in range(gap.first_n, gap.last_n + 1)
        }
        return {(row.grant_id, row.n) for row in store.each()}, gaps


def size_of(*paths: Path) -> int:
    """Return the bytes of files, and of all files in folders."""
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # A write-ahead log or a segment has just gone.
            continue
    return total
