"""What each vehicle mapping yields on its capture, worked out with cantools and nothing of ours.

    python tests/integration/vehicle_oracle.py        writes vehicle_expectations.json anew

`default` counts the samples under a grant that names no constraint (so the class defaults apply),
`loosest` those under the loosest grant that the class's ceilings allow (`precise` for locations).
Both assume one grant from before the log's first frame until after its last.
"""

import gzip
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cantools
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXPECTATIONS = Path(__file__).with_name("vehicle_expectations.json")
CAPTURES = "captures/"  # Stands before what is not in the repository.

VEHICLES: dict[str, dict[str, Any]] = {
    "demo": {
        "log": "demo/drive_SIMULATED.log",
        "dbc": ["dbc/demo_vehicle.dbc"],
        "mapping": "config/vehicles/demo_vehicle.vspec",
    },
    "obd2_gnss_drive": {
        "log": "captures/obd2_gnss_drive/drive_all.log.gz",
        "dbc": ["dbc/obd2.dbc", "dbc/obd2_answers.dbc", "captures/obd2_gnss_drive/canmod-gps.dbc"],
        "mapping": "config/vehicles/obd2_gnss.vspec",
    },
    "obd2_request_response": {
        "log": "captures/obd2_request_response/7512BE4D.log.gz",
        "dbc": [
            "dbc/obd2.dbc",
            "dbc/obd2_answers.dbc",
            "captures/obd2_request_response/canedge-internal-can9.dbc",
        ],
        "mapping": "config/vehicles/obd2_gnss.vspec",
    },
    "mustang": {
        "log": "captures/mustang/mustang_s550.log.gz",
        "dbc": ["captures/mustang/ford_lincoln_base_pt.dbc"],
        "mapping": "config/vehicles/ford_mustang_s550.vspec",
    },
    "tesla_model3": {
        "log": "captures/tesla_model3/it-candump0.log",
        "dbc": ["captures/tesla_model3/Model3CAN.kuksa.dbc"],
        "mapping": "captures/tesla_model3/dbc_overlay.4.2.vspec",
    },
    "giulia": {
        "log": "captures/giulia/exp3.log.gz",
        "dbc": ["captures/giulia/fca_giorgio_fixed.dbc"],
        "mapping": "config/vehicles/alfa_giulia.vspec",
    },
    "j1939": {
        "log": "captures/j1939/11111111_idle_diesel.log.gz",
        "dbc": ["dbc/j1939.dbc"],
        "mapping": "config/vehicles/j1939_truck.vspec",
    },
    "j1939_ecm_bench": {
        "log": "captures/j1939_ecm_bench/normal_operations_demo2.log.gz",
        "dbc": ["dbc/j1939.dbc"],
        "mapping": "config/vehicles/j1939_truck.vspec",
    },
}

_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_MATH = {"__builtins__": {}, "floor": math.floor, "abs": abs, "min": min, "max": max}


def find(name: str, captures: Path | None) -> Path:
    """Return where a file of `VEHICLES` lies."""
    if not name.startswith(CAPTURES):
        return ROOT / name
    assert captures is not None, f"{name} needs the captures"
    return captures / name.removeprefix(CAPTURES)


def count(vehicle: str, captures: Path | None) -> dict[str, dict[str, int]]:
    """Return path -> {"default": samples, "loosest": samples} for every mapped catalogue path."""
    files = VEHICLES[vehicle]
    catalogue = json.loads((ROOT / "config/catalogue.json").read_text("utf-8"))
    leaves = {
        leaf["path"]: (leaf, catalogue["classes"][scope["class"]])
        for scope in catalogue["scopes"].values()
        for leaf in scope["signals"]
    }
    databases = [
        cantools.database.load_file(find(name, captures), strict=False) for name in files["dbc"]
    ]
    mapping = yaml.safe_load(find(files["mapping"], captures).read_text("utf-8"))
    takes = [
        _Take(path, node["dbc2vss"], *leaves[path], databases)
        for path, node in mapping.items()
        if path in leaves and "dbc2vss" in node
    ]
    takes = [take for take in takes if take.is_usable]
    _run(takes, find(files["log"], captures))
    return {take.path: {name: rule.sent for name, rule in take.rules.items()} for take in takes}


def _run(takes: list["_Take"], log: Path) -> None:
    wanted: dict[Any, tuple[Any, list[_Take]]] = {}
    for take in takes:
        wanted.setdefault(take.key, (take.message, []))[1].append(take)
    for t_us, key, data in _frames(log):
        found = wanted.get(key)
        if found is None:
            continue
        message, listeners = found
        if any(take.is_text for take in listeners):
            for take in listeners:
                take.offer_text(t_us, data)
            continue
        try:
            raw = message.decode(data, scaling=False, decode_choices=False, allow_truncated=True)
            scaled = message.decode(data, decode_choices=False, allow_truncated=True)
        except (cantools.database.DecodeError, ValueError):
            continue  # A multiplexer value that the DBC does not know.
        for take in listeners:
            take.offer(t_us, raw, scaled)


def _frames(log: Path) -> Iterator[tuple[int, Any, bytes]]:
    """Yield frames and the messages that are sent in several, as if nothing were ever lost."""
    open_messages: dict[Any, list[Any]] = {}
    for t_us, (can_id, extended), data in _lines(log):
        yield t_us, (can_id, extended), data
        pgn = _pgn(can_id)
        if extended:  # The same frame under its PGN, for those who listen to that.
            yield t_us, pgn, data
        ends = can_id & 0xFFFF
        if extended and pgn == 0xEC00 and len(data) == 8 and data[0] in (16, 32):
            group = int.from_bytes(data[5:], "little")
            open_messages[ends] = [group, data[1] | data[2] << 8, b""]
        elif extended and pgn == 0xEB00 and ends in open_messages:
            yield from _more(t_us, open_messages, ends, data[1:])
        elif len(data) == 8 and data[0] >> 4 == 1:
            size = (data[0] & 15) << 8 | data[1]
            open_messages[can_id, extended] = [("isotp", can_id), size, data[2:]]
        elif data and data[0] >> 4 == 2 and (can_id, extended) in open_messages:
            yield from _more(t_us, open_messages, (can_id, extended), data[1:])


def _more(
    t_us: int, open_messages: dict[Any, list[Any]], key: Any, data: bytes
) -> Iterator[tuple[int, Any, bytes]]:
    name, size, so_far = open_messages[key]
    open_messages[key][2] = so_far + data
    if len(so_far + data) >= size:
        del open_messages[key]
        yield t_us, name, (so_far + data)[:size]


def _pgn(can_id: int) -> int:
    pgn = (can_id >> 8) & 0x3FFFF
    return pgn if pgn & 0xFF00 >= 0xF000 else pgn & 0x3FF00


def _lines(log: Path) -> Iterator[tuple[int, tuple[int, bool], bytes]]:
    opener = gzip.open if log.suffix == ".gz" else open
    with opener(log, "rt", encoding="ascii") as lines:
        for line in lines:
            stamp, _, frame = line.split()[:3]
            name, text = frame.split("#")
            if text.startswith("R"):
                continue
            seconds, micros = stamp[1:-1].split(".")
            can_id = int(name, 16)
            extended = len(name) == 8
            t_us = int(seconds) * 1_000_000 + int(micros)
            yield t_us, (can_id, extended), bytes.fromhex(text)


class _Rule:
    """The time rule of design §4."""

    def __init__(self, interval_us: int, *, on_change: bool) -> None:
        self.sent = 0
        self._interval = interval_us
        self._on_change = on_change
        self._last_us = -(10**18)
        self._last: Any = None
        self._held: list[Any] = []

    def offer(self, t_us: int, value: Any) -> None:
        if self._held and t_us >= self._last_us + self._interval:
            self._send(self._last_us + self._interval, self._held[0])
        if self._on_change and self.sent and value == self._last:
            self._held = []
        elif t_us - self._last_us >= self._interval:
            self._send(t_us, value)
        elif self._on_change:
            self._held = [value]

    def _send(self, t_us: int, value: Any) -> None:
        self.sent += 1
        self._last_us, self._last, self._held = t_us, value, []


class _Take:
    def __init__(self, path: str, wanted: Any, leaf: Any, scope_class: Any, dbs: list[Any]) -> None:
        self.path = path
        self._wanted = wanted
        self._datatype = leaf["datatype"]
        message_name, _, self._signal_name = wanted["signal"].rpartition(".")
        found = {
            message.name: message
            for db in dbs
            for message in db.messages
            if (not message_name or message.name == message_name)
            and any(signal.name == self._signal_name for signal in message.signals)
        }
        self.is_usable = len(found) == 1  # An ambiguous or missing name is never guessed.
        if not self.is_usable:
            return
        (self.message,) = found.values()
        self._signal = self.message.get_signal_by_name(self._signal_name)
        self._j1939 = self.message.protocol == "j1939"
        self.key: Any = (self.message.frame_id, self.message.is_extended_frame)
        if self._j1939:
            self.key = (self.message.frame_id >> 8) & 0x3FFFF
        self.is_text = "text" in wanted
        if "transport" in wanted:
            self.key = ("isotp", self.message.frame_id)
        on_change = bool(wanted.get("on_change"))
        mapping_us = int(wanted.get("interval_ms", 0 if on_change else 1000)) * 1000
        default_s = scope_class["defaults"].get("min_interval_s", 0)
        loosest_s = scope_class["ceilings"].get("min_interval_s", 0)
        self.rules = {
            "default": _Rule(max(mapping_us, round(default_s * 1e6)), on_change=on_change),
            "loosest": _Rule(max(mapping_us, round(loosest_s * 1e6)), on_change=on_change),
        }
        if "once" in scope_class["defaults"]:
            self.rules = {"default": _Once(), "loosest": _Once()}
        if not scope_class["grantable"]:
            self.rules = {"default": _Never(), "loosest": _Never()}
        elif path.endswith(".Altitude") and "grid_deg" in scope_class["defaults"]:
            self.rules["default"] = _Never()

    def offer(self, t_us: int, raw: Any, scaled: Any) -> None:
        if self._signal_name not in scaled:
            return
        for condition in self._wanted.get("multiplexer", ()):
            if scaled.get(condition["signal"].rpartition(".")[2]) != condition["value"]:
                return
        value = self._value(raw[self._signal_name], scaled[self._signal_name])
        if value is not None:
            for rule in self.rules.values():
                rule.offer(t_us, value)

    def offer_text(self, t_us: int, data: bytes) -> None:
        """A VIN; of an answer to OBD-II its 17 characters stand behind 49 02 01."""
        if not self._j1939:
            if data[:3] != b"\x49\x02\x01":
                return
            data = data[3:]
        text = data.split(b"*")[0].decode("latin-1")
        if re.fullmatch("[0-9A-HJ-NPR-Z]{17}", text):
            for rule in self.rules.values():
                rule.offer(t_us, text)

    def _value(self, raw: Any, value: Any) -> Any:
        length = self._signal.length
        if self._j1939 and length >= 8 and raw >> (length - 8) >= 0xFB:
            return None
        label = (self._signal.choices or {}).get(raw)
        transform = self._wanted.get("transform", {})
        if "mapping" in transform:
            names = [value] if label is None else [str(label), value]
            targets = [line["to"] for line in transform["mapping"] if line["from"] in names]
            return targets[0] if targets else None
        if label is not None and self._datatype not in ("string", "boolean"):
            return None
        if self._datatype == "string":
            return None if label is None else str(label)
        if self._datatype == "boolean":
            return bool(value) if value in (0, 1) else None
        return self._number(value, transform)

    def _number(self, value: Any, transform: Any) -> Any:
        if "math" in transform:
            try:
                # Our own mapping files and KUKSA's, in a test.
                value = eval(transform["math"], _MATH, {"x": value})
            except ZeroDivisionError:
                return None
        low, high = self._wanted.get("valid", (-math.inf, math.inf))
        if not low <= value <= high:
            return None
        if self._datatype in _INTEGERS:
            bits = int(self._datatype.partition("int")[2])
            unsigned = self._datatype.startswith("u")
            least, most = (
                (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            )
            value = round(value)
            return value if least <= value <= most else None
        return value


class _Once(_Rule):
    def __init__(self) -> None:
        super().__init__(0, on_change=False)

    def _send(self, t_us: int, value: Any) -> None:
        if not self.sent:
            super()._send(t_us, value)


class _Never(_Rule):
    def __init__(self) -> None:
        super().__init__(0, on_change=False)

    def offer(self, t_us: int, value: Any) -> None:
        pass


def _main() -> None:
    captures = Path(os.environ.get("CONSENTRY_CAPTURES", ROOT.parent / "shared" / "data"))
    written = {name: {**files, "paths": count(name, captures)} for name, files in VEHICLES.items()}
    EXPECTATIONS.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
