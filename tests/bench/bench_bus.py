"""`make bench-vm`: processor time for each frame on a full bus, against candump and python-can.

    tests/vm/run qemu bench

Ids are the same for all, a bus of 200 of them; what differs is how many are granted. Time is that
of the whole process with all its threads (user and system; neither has children), from the first
frame on, divided by the frames that were sent, read or not. All are measured from outside, by the
same clock. What the kernel does for a frame before it lies in a socket, its filters included, is
the sender's time and in no figure. candump writes what it reads into a file in memory, so that it
is seen whether it has read all. Only the ratios inside one run mean something: the guest is
emulated, and its host is shared.
"""

import json
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import can

from agent.core.binding import bind
from agent.core.canfilter import compile_filters
from agent.core.catalogue import parse_catalogue
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import Batch, Place
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan, empty_plan
from agent.core.policy import parse_unsigned_policy
from agent.edge.capture import Capture
from agent.edge.socketcan import RING_FRAMES, SocketCanReader

BUS = "vcan0"
IDS = 200
FIRST_ID = 0x100
RUN_S = 6.0
SETTLE_S = 1.0
# Frames of 8 bytes and 11-bit identifiers take 111 bits and stuff bits on the wire (ISO 11898-1).
RATES = {"500 kbit/s": 4_200, "1 Mbit/s": 8_400}
GRANTED = (0, 5, 100)
PATHS = [f"Vehicle.Signal{n}" for n in range(IDS)]


def main() -> None:
    """Measure and print a table."""
    Path("/proc/sys/net/core/rmem_max").write_text("16777216")
    print(f"frames of 8 bytes, {IDS} identifiers; µs of processor time for each frame on the bus")
    print("| bus | frames/s | candump | python-can recv |", end="")
    print("".join(f" {granted} granted |" for granted in GRANTED))
    print("|---|---|---|---|" + "---|" * len(GRANTED))
    for name, rate in RATES.items():
        kinds = ["candump", "python-can", *(f"ours {granted}" for granted in GRANTED)]
        measured = {kind: measure(kind, rate) for kind in kinds}
        base = measured["candump"][1]
        row = f"| {name} | {rate:,} |"
        for kind in kinds:
            read, cpu_us = measured[kind]
            told = "" if kind == "candump" else f" ({cpu_us / base:.2f} times)"
            row += f" {cpu_us:.2f}{told}, {read:.0%} got |"
        print(row, flush=True)


def measure(kind: str, per_s: int) -> tuple[float, float]:
    """Return (share of the frames that it got, µs of its time for each frame on the bus)."""
    if kind == "candump":
        with tempfile.TemporaryFile(dir="/dev/shm") as log:
            words = ["candump", "-L", "-r", "16777216", BUS]
            with subprocess.Popen(words, stdout=log) as process:
                sent, cpu_s = load(process.pid, per_s)
                process.terminate()
            log.seek(0)
            read = sum(line.startswith(b"(") for line in log)
        return read / sent, cpu_s * 1e6 / sent
    words = [sys.executable, __file__, *kind.split()]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        sent, cpu_s = load(process.pid, per_s)
        read = int(process.communicate(b"end\n")[0])
    return read / sent, cpu_s * 1e6 / sent


def load(pid: int, per_s: int) -> tuple[int, float]:
    """Send while a process reads; return (frames sent, seconds of its time that this took)."""
    time.sleep(SETTLE_S)
    clock = (~pid << 3) | 2  # CPUCLOCK_SCHED of a process: all its threads, user and system.
    before_s = time.clock_gettime(clock)
    sent = send(per_s)
    time.sleep(SETTLE_S)
    return sent, time.clock_gettime(clock) - before_s


def send(per_s: int) -> int:
    """Send at a rate for a while; return how many frames."""
    with socket.socket(socket.AF_CAN, socket.SOCK_RAW, socket.CAN_RAW) as sock:
        sock.setsockopt(socket.SOL_CAN_RAW, socket.CAN_RAW_FILTER, b"")
        sock.bind((BUS,))
        frames = [struct.pack("=IB3xHxxxxxx", FIRST_ID + n, 8, n) for n in range(IDS)]
        begun, sent = time.monotonic(), 0
        while (now := time.monotonic() - begun) < RUN_S:
            while sent < now * per_s:
                sock.send(frames[sent % IDS])
                sent += 1
            time.sleep(0.002)
    return sent


def consume(kind: str, granted: int) -> None:
    """Be the process that is measured: read until stdin ends, then print how many frames."""
    count = [0]
    stop = threading.Event()
    end = (run_python_can if kind == "python-can" else run_ours)(granted, count, stop)
    print("ready", flush=True)
    sys.stdin.readline()
    stop.set()
    end()
    print(count[0])


def run_python_can(_: int, count: list[int], stop: threading.Event) -> Callable[[], None]:
    bus = can.Bus(BUS, interface="socketcan", fd=True)

    def read() -> None:
        while not stop.is_set():
            if bus.recv(timeout=0.5) is not None:
                count[0] += 1

    thread = threading.Thread(target=read)
    thread.start()

    def end() -> None:
        thread.join()
        bus.shutdown()

    return end


def run_ours(granted: int, count: list[int], _: threading.Event) -> Callable[[], None]:
    """Run reader and capture lane, down to closed batches."""
    plan = made_plan(granted)

    def settle(_: list[Batch], places: tuple[Place, ...]) -> None:
        for place in places:
            reader.settle(place)

    capture = Capture(
        Pipeline(plan),
        on_batches=settle,
        clock=time.time_ns,
        max_open_frames=RING_FRAMES * 3 // 4,
    )
    reader = SocketCanReader("b", channel=BUS, sink=capture.put)
    reader.set_filters(compile_filters(plan, "b").filters)
    capture.start()
    reader.start()

    def end() -> None:
        count[0] = reader.health().frames
        assert reader.health().kernel_drops == 0
        reader.close()
        capture.close()

    return end


def made_plan(granted: int) -> Plan:
    """Return the plan that takes each value of the first so many identifiers."""
    if not granted:
        return empty_plan()
    document = json.loads(Path("/src/config/catalogue.json").read_text())
    signals = [{"path": path, "datatype": "uint16", "unit": None} for path in PATHS[:granted]]
    document["scopes"] = {"read_odometer": {"class": "usage", "signals": signals}}
    catalogue = parse_catalogue(json.dumps(document).encode())
    dbc = 'VERSION ""\nBU_: ECU\n' + "".join(
        f'BO_ {FIRST_ID + n} M{n}: 8 ECU\n SG_ S{n} : 0|16@1+ (1,0) [0|0] "" ECU\n'
        for n in range(IDS)
    )
    mapping = {
        path: {
            "type": "sensor",
            "datatype": "uint16",
            "dbc2vss": {"signal": f"S{n}", "interval_ms": 0},
        }
        for n, path in enumerate(PATHS)
    }
    policy = {
        "recipients": {"r": {"name": "r"}},
        "grants": [
            {
                "grant_id": "g",
                "recipient": "r",
                "details": [{"scope": "read_odometer", "constraints": {"min_interval_s": 0}}],
            }
        ],
    }
    binding = bind(
        parse_mapping(json.dumps(mapping).encode(), name="m"),
        [parse_dbc(dbc.encode(), name="d")],
        catalogue,
        bus=None,
        any_bus=True,
    )
    return compile_plan(
        parse_unsigned_policy(json.dumps(policy).encode(), catalogue), catalogue, binding, now_ns=0
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        consume(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    else:
        main()
