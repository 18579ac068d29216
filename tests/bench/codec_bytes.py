"""What the codec makes of a dense real log: every signal of every message, in 60 s batches.

Columns are decoded by cantools, so nothing of ours but the codec and the envelope is measured.
Prints bytes per sample on the wire (envelope included), the share of each form, and CPU time per
sample of encoding and decoding; then the same for floats whose unit was converted, for which
there is no hint.
"""

import argparse
import gzip
import json
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import cantools
from cantools.database.can import Database

from agent.cloud.keys import make_device_key, make_recipient_key, recipient_private
from agent.core import cbor
from agent.core.codec import CODEC_ID, _unpacked, decode, encode
from agent.core.cose import device_key
from agent.core.model import Batch, Column
from agent.core.seal import Header, RecipientKey, header_times, seal

ROOT = Path(__file__).resolve().parent.parent.parent
BATCH_MS = 60_000
EPOCH_MS = 1_700_000_000_000  # The log counts from its vehicle's start.


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captures", type=Path, default=ROOT.parent / "shared" / "data")
    folder = parser.parse_args().captures / "mustang"
    batches = decoded(folder / "mustang_s550.log.gz", folder / "ford_lincoln_base_pt.dbc")
    report("as decoded", batches)
    converted = [
        replace(batch, columns=tuple(map(in_other_unit, batch.columns))) for batch in batches
    ]
    report("floats in another unit, without a hint", converted)


def decoded(log: Path, dbc: Path) -> list[Batch]:
    """Decode everything that cantools can, one column per signal."""
    database = cantools.database.load_file(str(dbc), strict=False)
    assert isinstance(database, Database)
    messages = {m.frame_id: m for m in database.messages if not m.is_extended_frame}
    batches: dict[int, dict[tuple[str, str], tuple[list[int], list[Any]]]] = defaultdict(dict)
    first_ms = None
    with gzip.open(log, "rt") as lines:
        for line in lines:
            stamp, _, frame = line.split()
            name, _, data = frame.partition("#")
            message = messages.get(int(name, 16)) if len(name) == 3 else None
            if message is None:
                continue
            seconds, micros = stamp.strip("()").split(".")
            t_ms = int(seconds) * 1000 + int(micros) // 1000
            first_ms = t_ms if first_ms is None else first_ms
            values = message.decode(bytes.fromhex(data), decode_choices=False, allow_truncated=True)
            assert isinstance(values, dict)
            columns = batches[(t_ms - first_ms) // BATCH_MS]
            for signal, value in values.items():
                times, series = columns.setdefault((message.name, signal), ([], []))
                times.append(t_ms + EPOCH_MS)
                series.append(value)
    signals = {(m.name, s.name): s for m in messages.values() for s in m.signals}
    return [
        Batch(
            grant_id="bench",
            rev=1,
            recipient="bench",
            columns=tuple(
                Column(
                    scope="read_everything",
                    path=f"Vehicle.{message}.{signal}",
                    datatype="float" if isinstance(series[0], float) else "int32",
                    unit=signals[message, signal].unit,
                    scale=signals[message, signal].scale,
                    offset=signals[message, signal].offset,
                    times_ms=tuple(times),
                    values=tuple(series),
                )
                for (message, signal), (times, series) in columns.items()
            ),
        )
        for columns in batches.values()
    ]


def in_other_unit(column: Column) -> Column:
    """Return a column of floats as miles were made of its kilometres."""
    if not isinstance(column.values[0], float):
        return column
    values = tuple(value / 1.609344 for value in column.values)
    return replace(column, values=values, scale=1, offset=0)


def report(title: str, batches: list[Batch]) -> None:
    """Print what the batches weigh and cost."""
    samples = sum(batch.count for batch in batches)
    as_json = sum(
        len(json.dumps({"t": s.t_ns, "path": s.path, "value": s.value, "unit": s.unit})) + 1
        for batch in batches
        for s in batch.samples()
    )
    start = time.process_time()
    plain = [encode(batch) for batch in batches]
    encoding = time.process_time() - start
    envelopes = [sealed(batch, plaintext) for batch, plaintext in zip(batches, plain, strict=True)]
    start = time.process_time()
    opened = [decode(plaintext) for plaintext in plain]
    decoding = time.process_time() - start
    for batch, columns in zip(batches, opened, strict=True):
        assert [c.values for c in columns] == [c.values for c in batch.columns]
    wire = sum(map(len, envelopes))
    print(
        f"{title}: {samples} samples in {len(batches)} batches, {len(batches[0].columns)} columns"
    )
    print(f"  wire {wire / samples:.3f} B/sample, envelope included; {as_json / wire:.0f} x JSON")
    print(
        f"  encode {encoding / samples * 1e9:.0f} ns/sample, decode {decoding / samples * 1e9:.0f}"
    )
    columns, counts = Counter[str](), Counter[str]()
    for plaintext, batch in zip(plain, batches, strict=True):
        packed = cbor.decode(_unpacked(plaintext, CODEC_ID, 1 << 30))
        for entry, column in zip(packed["c"], batch.columns, strict=True):
            form = "".join(sorted(entry.keys() - {"p", "s", "d", "u", "i"}))
            columns[form] += 1
            counts[form] += len(column.values)
    for form, number in columns.most_common():
        print(f"  form {form:3} {number:4} columns {counts[form]:7} samples")


def sealed(batch: Batch, plaintext: bytes) -> bytes:
    """Return the envelope of a batch."""
    from_s, to_s = header_times(batch)
    header = Header(
        vehicle="veh-bench",
        device_kid=DEVICE.kid,
        grant_id=batch.grant_id,
        rev=batch.rev,
        n=1,
        epoch=1,
        ver=1,
        from_s=from_s,
        to_s=to_s,
        codec=CODEC_ID,
        ledger_size=0,
        ledger_root=bytes(32),
    )
    return seal(plaintext, header, recipient=RECIPIENT, device=DEVICE)


if __name__ == "__main__":
    DEVICE = device_key(make_device_key("bench-device"))
    RECIPIENT = RecipientKey("bench-key", recipient_private(make_recipient_key("x")).public_key())
    main()
