"""`make bench`: cantools against our pipeline, on the same capture, in one run.

Prints frames/s of cantools decoding every frame that it knows, of our pipeline from frames to
closed batches, and on to sealed envelopes; and bytes per sample on the wire, envelope included,
against JSON. Machines are shared and noisy: what counts are the ratios inside one run.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cantools
from cantools.database.can import Database

from agent.cloud.keys import make_device_key, make_recipient_key, recipient_private
from agent.core.binding import Binding, bind
from agent.core.catalogue import Catalogue
from agent.core.codec import CODEC_ID, encode
from agent.core.constraint import Constraints
from agent.core.cose import device_key
from agent.core.model import CAN_EFF_FLAG, NS_PER_S, Batch, Frame
from agent.core.pipeline import Pipeline
from agent.core.plan import Plan, compile_plan
from agent.core.policy import Policy, parse_unsigned_policy
from agent.core.seal import Header, RecipientKey, header_times, seal
from agent.edge.files import load_catalogue, load_dbc, load_mapping
from agent.edge.logfile import read_logs
from tests.car import combined

ROOT = Path(__file__).resolve().parent.parent.parent
RUNS = 5


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captures", type=Path, default=ROOT.parent / "shared" / "data")
    folder = parser.parse_args().captures
    log = folder / "mustang" / "mustang_s550.log.gz"
    dbc_file = folder / "dbc_corpus" / "ford_lincoln_base_pt.dbc"
    with read_logs([log]) as recording:
        frames = list(recording)
    catalogue = load_catalogue(ROOT / "config" / "catalogue.json")
    mapping = load_mapping(ROOT / "config" / "vehicles" / "ford_mustang_s550.vspec")
    binding = bind(mapping, [load_dbc(dbc_file)], catalogue, bus=None, any_bus=True)
    loosest = loosest_policy(catalogue, {bound.scope.name for bound in binding.bound})
    database = cantools.database.load_file(str(dbc_file), strict=False)
    assert isinstance(database, Database)

    print(f"{log.name}: {len(frames)} frames")
    reference = rate("cantools decodes", len(frames), lambda: decode_all(database, frames))
    for title, policy, vehicle in (
        (
            "every frame of every mapped signal (ceilings lifted)",
            full_rate(loosest),
            eager(binding),
        ),
        ("as fast as the catalogue's ceilings let a policy ask for", loosest, binding),
    ):
        plan = compile_plan(policy, catalogue, vehicle, now_ns=frames[0][0])
        measure(title, plan, frames, reference)


def measure(title: str, plan: Plan, frames: list[Frame], reference: float) -> None:
    """Print speed and size of one plan over the frames."""

    def batches() -> list[Batch]:
        pipeline = Pipeline(plan, max_age_ns=60 * NS_PER_S)
        pipeline.feed(frames)
        pipeline.stop()
        return pipeline.drain()

    closed = batches()
    samples = sum(batch.count for batch in closed)
    envelopes = sealed(closed)
    wire = sum(map(len, envelopes))
    as_json = sum(len(json_line(batch)) for batch in closed)
    print(f"{title}: {len(plan.takes)} signals, {samples} samples")
    rate("  frames to closed batches", len(frames), batches, reference)
    rate("  frames to sealed envelopes", len(frames), lambda: sealed(batches()), reference)
    print(f"  on the wire {wire / samples:.3f} B/sample in {len(envelopes)} envelopes, ", end="")
    print(f"JSON {as_json / samples:.1f} B/sample ({as_json / wire:.0f} times as much)")


def full_rate(policy: Policy) -> Policy:
    """Lift every interval and grid: what a policy may not ask for, but a bus can give."""
    free = Constraints(min_interval_ns=0, quantum=None, grid_deg=None, precise=True, once=False)
    return replace(
        policy,
        grants=tuple(
            replace(grant, details=tuple(replace(item, constraints=free) for item in grant.details))
            for grant in policy.grants
        ),
    )


def eager(binding: Binding) -> Binding:
    """Lift the mapping's intervals."""
    return replace(
        binding,
        bound=tuple(
            replace(item, entry=replace(item.entry, interval_ns=0, on_change=False))
            for item in binding.bound
        ),
    )


def rate(name: str, count: int, work: Callable[[], Any], reference: float | None = None) -> float:
    """Print the median rate of several runs, and its ratio to a reference; return it."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    found = count / statistics.median(seconds)
    ratio = "" if reference is None else f"  {found / reference:5.1f} x cantools"
    print(f"{name:28} {found / 1e3:8.0f} k frames/s{ratio}")
    return found


def decode_all(database: Database, frames: list[Frame]) -> None:
    """Decode every frame that the DBC knows, as a program without a plan would."""
    known = {
        message.frame_id | (CAN_EFF_FLAG if message.is_extended_frame else 0): message
        for message in database.messages
    }
    for _, _, can_id, data in frames:
        message = known.get(can_id)
        if message is not None:
            message.decode(data, decode_choices=False, allow_truncated=True)


def sealed(batches: list[Batch]) -> list[bytes]:
    """Encode and seal every batch."""
    return [
        seal(
            encode(batch),
            Header(
                vehicle="bench-vehicle",
                device_kid=DEVICE.kid,
                grant_id=batch.grant_id,
                rev=batch.rev,
                n=index,
                epoch=1,
                ver=1,
                from_s=header_times(batch)[0],
                to_s=header_times(batch)[1],
                codec=CODEC_ID,
                ledger_size=0,
                ledger_root=bytes(32),
            ),
            recipient=RECIPIENT,
            device=DEVICE,
        )
        for index, batch in enumerate(batches)
    ]


def json_line(batch: Batch) -> bytes:
    """Return what the samples would be as JSON lines."""
    return b"".join(
        json.dumps({"t": s.t_ns, "path": s.path, "value": s.value, "unit": s.unit}).encode() + b"\n"
        for s in batch.samples()
    )


def loosest_policy(catalogue: Catalogue, scopes: set[str]) -> Policy:
    """Grant scopes to one recipient as loosely as their ceilings allow: the full rate."""
    details: list[dict[str, Any]] = []
    for name in sorted(scopes):
        kind = catalogue.classes[catalogue.scopes[name].scope_class]
        if not kind.grantable:
            continue
        limits: dict[str, Any] = {}
        if "once" not in kind.ceilings:
            limits["min_interval_s"] = kind.ceilings.get("min_interval_s", 0)
        if "precise" in kind.ceilings:
            limits["precise"] = True
        details.append({"scope": name, "constraints": limits})
    document = {
        "recipients": {"bench": {"name": "bench"}},
        "grants": [
            {"grant_id": "bench", "recipient": "bench", "details": details} | combined(scopes)
        ],
    }
    return parse_unsigned_policy(json.dumps(document).encode(), catalogue)


DEVICE = device_key(make_device_key("bench-device"))
RECIPIENT = RecipientKey(
    "bench-recipient", recipient_private(make_recipient_key("bench-recipient")).public_key()
)

if __name__ == "__main__":
    main()
