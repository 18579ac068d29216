"""`make bench`: what the agent's process takes: its start, its memory, and what it does when idle.

    python -m tests.bench.bench_process
    tests/vm/run uml bench                  # after the bus, with a real vcan0

The process is `consentry run` as systemd starts it: a policy in force, connected to mosquitto over
TLS, its bus open (in the guest; elsewhere there may be no SocketCAN, and the interface is missing),
and no frame on it.

Start: from the call until it says READY, and its processor time, medians. Memory: what is resident,
and of this what is the process's own, the rest being pages of files that the kernel shares and can
let go. Wake-ups: how often a thread that had slept ran again, all threads together.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.demo.broker import Broker
from tests import car
from tests.cloud import VEHICLE, Cloud

# asammdf, which python-can imports where it finds it, is there for tests alone.
PROGRAM = "import sys; sys.modules['asammdf'] = None; from agent.cli.main import main; main()"
STARTS = 5
SETTLE_S = 5.0
IDLE_S = 20.0
WORD_S = 120.0  # The guest may be emulated.

TOML = """
[vehicle]
id = "{vehicle}"
trust = "trust.json"
[keys]
device = "device.jwk"
[state]
directory = "state"
[control]
socket = "control"
[[bus]]
name = "body"
interface = "{interface}"
channel = "vcan0"
dbc = ["{dbc}"]
mapping = "{mapping}"
[uplink]
host = "localhost"
port = {port}
ca = "ca.pem"
certificate = "client.pem"
private_key = "client.key"
[time]
synchronised = "always"
"""


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captures", type=Path, default=car.ROOT.parent / "shared" / "data")
    tesla = parser.parse_args().captures / "tesla_model3"
    model3 = (tesla / "Model3CAN.kuksa.dbc", tesla / "dbc_overlay.4.2.vspec")
    columns = ("start, s", "of it CPU, s", "resident, MiB", "own, MiB", "wake-ups/s", "CPU, ms/s")
    print(f"| bus | signals | {' | '.join(columns)} |")
    print("|---|---|" + "---|" * len(columns))
    for interface in ("socketcan", "virtual"):
        for files in (None, model3):
            measure(interface, files)


def measure(interface: str, files: tuple[Path, Path] | None) -> None:
    """Print the row of a bus with DBC and mapping (None: the small car's)."""
    with tempfile.TemporaryDirectory() as name, Broker(Path(name) / "broker") as broker:
        folder = Path(name) / "vehicle"
        signals = prepare(folder, broker, interface, files)
        with started(folder, "--policy", str(folder / "policy.jws")):
            pass
        starts = []
        for _ in range(STARTS):
            with started(folder) as (pid, start_s):
                starts.append((start_s, cpu(pid)))
        with started(folder) as (pid, _):
            time.sleep(SETTLE_S)
            wakes, cpu_s = wakeups(pid), cpu(pid)
            time.sleep(IDLE_S)
            wakes, cpu_s = wakeups(pid) - wakes, cpu(pid) - cpu_s
            resident, shared = (memory(pid, name) / 1024 for name in ("VmRSS", "RssFile"))
    start_s, start_cpu_s = (statistics.median(values) for values in zip(*starts, strict=True))
    print(
        f"| {interface} | {signals:,} | {start_s:.2f} | {start_cpu_s:.2f} | {resident:.0f} "
        f"| {resident - shared:.0f} | {wakes / IDLE_S:.1f} | {cpu_s * 1000 / IDLE_S:.1f} |",
        flush=True,
    )


def prepare(folder: Path, broker: Broker, interface: str, files: tuple[Path, Path] | None) -> int:
    """Write a vehicle's files; return how many signals its DBC has."""
    folder.mkdir()
    dbc, mapping = files or (folder / "car.dbc", folder / "car.vspec")
    if files is None:
        dbc.write_bytes(car.DBC)
        mapping.write_bytes(car.MAPPING)
    cloud = Cloud()
    cloud.now_s = int(time.time())
    cloud.write_files(folder)
    broker.write_client(VEHICLE, folder)
    (folder / "policy.jws").write_text(cloud.policy(cloud.grant({"read_speedometer": {}})))
    (folder / "agent.toml").write_text(
        TOML.format(
            vehicle=VEHICLE, interface=interface, dbc=dbc, mapping=mapping, port=broker.port
        )
    )
    return sum(line.lstrip().startswith(b"SG_ ") for line in dbc.read_bytes().splitlines())


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[int, float]]:
    """Start the agent, give its process id and the seconds until it was ready, and end it."""
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(WORD_S)
        # As installed: compiled, which the first start does, and without what only tests have.
        environment = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        begun_s = time.monotonic()
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "run", "--config", folder / "agent.toml", *options],
                env=environment | {"NOTIFY_SOCKET": str(address)},
                stderr=log,
            ) as process,
        ):
            while b"READY=1" not in listener.recv(4096).split(b"\n"):
                pass
            yield process.pid, time.monotonic() - begun_s
            process.terminate()
    address.unlink()


def wakeups(pid: int) -> int:
    """Return how often its threads have run again after they had slept."""
    status = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in status)


def cpu(pid: int) -> float:
    """Return the seconds of processor time of all its threads."""
    return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of a process.


def memory(pid: int, name: str) -> int:
    """Return one kind of its memory in KiB, by the name in /proc/PID/status."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0])


if __name__ == "__main__":
    main()
