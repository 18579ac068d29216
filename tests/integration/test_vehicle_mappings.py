"""The agent's own pipeline takes exactly what cantools says is there, on every vehicle."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from vehicle_oracle import EXPECTATIONS, ROOT, VEHICLES, find

from agent.core.binding import Binding, bind
from agent.core.catalogue import Catalogue, parse_catalogue
from agent.core.dbc import parse_dbc
from agent.core.mapping import parse_mapping
from agent.core.model import CAN_EFF_FLAG, Frame
from agent.core.policy import Policy, parse_unsigned_policy
from agent.core.replay import Replay
from tests.car import combined

pytestmark = pytest.mark.captures

CATALOGUE = ROOT / "config" / "catalogue.json"


def _catalogue() -> Catalogue:
    return parse_catalogue(CATALOGUE.read_bytes())


def _policy(kind: str) -> Policy:
    """Grant every grantable scope, as `vehicle_oracle` assumes it."""
    raw = json.loads(CATALOGUE.read_text("utf-8"))
    details: list[dict[str, Any]] = []
    for name, scope in raw["scopes"].items():
        scope_class = raw["classes"][scope["class"]]
        ceilings = scope_class["ceilings"]
        if not scope_class["grantable"]:
            continue
        detail: dict[str, Any] = {"scope": name}
        if kind == "loosest" and "once" not in ceilings:
            detail["constraints"] = {"min_interval_s": ceilings.get("min_interval_s", 0)}
            if "precise" in ceilings:
                detail["constraints"]["precise"] = True
        details.append(detail)
    grant = {"grant_id": "g", "recipient": "r", "nbf": 0, "exp": 4_000_000_000}
    payload = {
        "recipients": {"r": {"name": "R"}},
        "grants": [
            grant
            | {
                "purposes": ["dpv:ServiceProvision"],
                "details": details,
                **combined(d["scope"] for d in details),
            }
        ],
    }
    return parse_unsigned_policy(json.dumps(payload).encode(), _catalogue())


def _binding(vehicle: str, captures: Path) -> Binding:
    files = VEHICLES[vehicle]
    # cantools needs the DBC whose ids somebody repaired by hand; the agent repairs them itself.
    dbcs = [name.replace("fca_giorgio_fixed", "fca_giorgio") for name in files["dbc"]]
    return bind(
        parse_mapping(find(files["mapping"], captures).read_bytes(), name=files["mapping"]),
        [parse_dbc(find(name, captures).read_bytes(), name=name) for name in dbcs],
        _catalogue(),
        bus=None,
        any_bus=True,
    )


def _frames(log: Path) -> Iterator[Frame]:
    opener = gzip.open if log.suffix == ".gz" else open
    with opener(log, "rt", encoding="ascii") as lines:
        for line in lines:
            stamp, bus, frame = line.split()[:3]
            name, data = frame.split("#")
            if data.startswith("R"):
                continue
            seconds, micros = stamp[1:-1].split(".")
            can_id = int(name, 16) | (CAN_EFF_FLAG if len(name) == 8 else 0)
            t_ns = int(seconds) * 1_000_000_000 + int(micros) * 1000
            yield t_ns, bus, can_id, bytes.fromhex(data)


@pytest.mark.parametrize("kind", ["default", "loosest"])
@pytest.mark.parametrize("vehicle", VEHICLES)
def test_the_pipeline_takes_what_the_oracle_counts(captures: Path, vehicle: str, kind: str) -> None:
    stated = json.loads(EXPECTATIONS.read_text("utf-8"))[vehicle]["paths"]
    replay = Replay(_policy(kind), _catalogue(), _binding(vehicle, captures))

    frames = _frames(find(VEHICLES[vehicle]["log"], captures))
    while chunk := list(islice(frames, 4096)):
        replay.feed(chunk)
    replay.finish()

    taken = Counter(sample.path for sample in replay.samples())
    assert taken == Counter({path: counts[kind] for path, counts in stated.items()})


@pytest.mark.parametrize("vehicle", [name for name in VEHICLES if name != "tesla_model3"])
def test_our_mappings_bind_without_a_word(captures: Path, vehicle: str) -> None:
    binding = _binding(vehicle, captures)

    assert not binding.warnings
    assert not binding.disabled
    assert not binding.outside


def test_kuksas_tesla_file_binds_but_for_the_name_that_two_messages_share(captures: Path) -> None:
    binding = _binding("tesla_model3", captures)

    assert set(binding.disabled) == {"Vehicle.Powertrain.TractionBattery.Charging.IsCharging"}
    assert len(binding.bound) == 7
