"""What the ledger costs: an entry, a checkpoint, and opening one of a million entries.

    python -m tests.bench.bench_ledger [--entries 1000000] [--folder DIR]

A million is 180 days of a vehicle that never stops: two grants, sealed and delivered, each minute.
Numbers depend on the disk; name a folder on the board's own.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from agent.core.ledger import Replay, encode_line
from agent.core.ledgerevent import Event, event
from agent.core.merkle import Frontier, leaf_hash
from agent.edge.ledger import Ledger, Limits, replay_all
from tests.sealing import device

S = 10**9
NOW_NS = 1_795_468_800 * S
BOOT = "0f3b6a52-1c1e-4a57-9d3e-7a2b5d1c9e00"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(Path(folder) / "ledger", args.entries)


def measure(place: Path, entries: int) -> None:
    keys = {alg: device(alg) for alg in ("EdDSA", "ES256")}
    pure()
    with opened(place) as ledger:
        spent = -time.perf_counter()
        for number in range(20_000):
            ledger.append(sealed(number), durable=False)
        spent += time.perf_counter()
        show("append, not durable", spent / 20_000)
        spent = -time.perf_counter()
        for number in range(300):
            ledger.append(sealed(number), durable=True)
        spent += time.perf_counter()
        show("append, durable (fdatasync)", spent / 300)
        for alg, key in keys.items():
            spent = -time.perf_counter()
            for _ in range(100):
                ledger.checkpoint(NOW_NS, key)
            spent += time.perf_counter()
            show(f"checkpoint {alg}, on disk", spent / 100)
    with opened(place) as ledger:
        for number in range(entries - ledger.head[0]):
            ledger.append(sealed(number), durable=False)
            if number % 1_024 == 1_023:
                ledger.checkpoint(NOW_NS, keys["EdDSA"])
        for number in range(3_900):  # The last segment is about full.
            ledger.append(sealed(number), durable=False)
    files = sorted(place.glob("segment-*"))
    size_bytes = sum(path.stat().st_size for path in files)
    print(f"{entries:,} entries: {size_bytes / 1e6:.0f} MB in {len(files)} segments")
    spent = -time.perf_counter()
    ledger = opened(place)
    spent += time.perf_counter()
    show("open", spent)
    spent = -time.perf_counter()
    ledger.checkpoint(NOW_NS, keys["EdDSA"])
    spent += time.perf_counter()
    show("checkpoint, with a look at an old segment", spent)
    ledger.close()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory of all this: {peak_kib / 1024:.0f} MiB")
    spent = -time.perf_counter()
    count = sum(1 for _ in replay_all(place, Replay()))
    spent += time.perf_counter()
    show(f"verify all {count:,}", spent)


def pure() -> None:
    made = [sealed(number) for number in range(20_000)]
    spent = -time.perf_counter()
    lines = [encode_line(number, item) for number, item in enumerate(made)]
    spent += time.perf_counter()
    show("line", spent / 20_000)
    tree = Frontier()
    spent = -time.perf_counter()
    for line in lines:
        tree = tree.extended((leaf_hash(line),))
    spent += time.perf_counter()
    show("leaf and tree", spent / 20_000)
    spent = -time.perf_counter()
    for _ in range(1_000):
        tree.root()
    spent += time.perf_counter()
    show("root", spent / 1_000)


def sealed(number: int) -> Event:
    return event(
        NOW_NS + number * 30 * S,
        "sealed",
        grant="gr_fleet",
        rev=3,
        envelopes=1,
        samples=600,
        bytes=812,
        first=number,
        last=number,
    )


def opened(place: Path) -> Ledger:
    # A clock that stands still and no limit of bytes: a segment ends by its entries alone.
    limits = Limits(total_bytes=1 << 40, segment_bytes=1 << 30)
    return Ledger.open(place, vehicle="veh-0001", boot_id=BOOT, now_ns=NOW_NS, limits=limits)


def show(what: str, seconds: float) -> None:
    amount = f"{seconds * 1e6:9.1f} µs" if seconds < 0.01 else f"{seconds * 1e3:9.0f} ms"
    print(f"{what:<44}{amount}")


if __name__ == "__main__":
    main()
