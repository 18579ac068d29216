"""Bytes of a GNSS receiver's serial line. All positions are made up."""

import struct
from random import Random

from agent.core.gnss import GNSS_ID, Rounds
from agent.edge.gnss import Lines
from tests.fuzz.mutate import nudged_text, spoiled, times
from tests.fuzz.target import ACCEPTED, Target, Verdict, insist

_BODIES = (
    "GPRMC,120000.00,A,0100.0000,N,00200.0000,E,10.0,90.0,020126,,,A",
    "GNRMC,120000.00,A,0100.0000,S,00200.0000,W,10.0,90.0,020126,1.0,E,D,V",
    "GPGGA,120000.00,0100.0000,N,00200.0000,E,1,08,0.9,100.0,M,46.0,M,,",
    "GPVTG,90.0,T,89.0,M,10.0,N,18.5,K,A",
    "GPGST,120000.00,1.5,1.0,0.5,45.0,2.0,3.0,4.0",
    "GPZDA,120000.00,02,01,2026,00,00",
    "GPGSV,1,1,01,01,40,083,46",
)
_FIELDS = (
    *(
        "",
        "A",
        "V",
        "N",
        "S",
        "E",
        "W",
        "M",
        "K",
        "T",
        "0",
        "1",
        "8",
        "99",
        "-1",
        "1e9",
        "nan",
        "inf",
    ),
    *(
        "120000.00",
        "120001.00",
        "235959.99",
        "246060",
        "9999.9999",
        "9000.0000",
        "18000.0000",
        "18100.0",
    ),
    *(
        "0100.0000",
        "00200.0000",
        "310226",
        "000000",
        "999999",
        "300226",
        "1e400",
        "0x10",
        "6553.6",
        "\u0661",
    ),
)


def _line(rng: Random) -> bytes:
    parts = rng.choice(_BODIES[:-1] if rng.random() < 0.95 else _BODIES).split(",")
    for _ in range(rng.choice((0, 1, 1, times(rng)))):
        at = rng.randrange(1, len(parts))
        change = rng.randrange(8)
        if change < 4:
            parts[at] = rng.choice(_FIELDS)
        elif change < 6:
            parts[at] = nudged_text(rng, parts[at])
        elif change == 6:
            parts.insert(at, rng.choice(_FIELDS))
        elif len(parts) > 2:
            del parts[at]
    body = ",".join(parts).encode("utf-8")
    total = 0
    for byte in body:
        total ^= byte
    end = b"\n" if rng.random() < 0.1 else b"\r\n"
    line = b"$%b*%02X%b" % (body, total, end)
    return spoiled(rng, line) if rng.random() < 0.1 else line


def _make(rng: Random) -> bytes:
    """Return a byte that says how the line is cut, and the line."""
    return bytes([rng.randrange(1, 64)]) + b"".join(_line(rng) for _ in range(rng.randint(1, 4)))


def _judge(data: bytes) -> Verdict:
    lines, rounds = Lines(), Rounds("gnss0")
    step, text = max(1, data[0]), data[1:]
    said, frames = [], []
    for number, at in enumerate(range(0, len(text), step)):
        for sentence in lines.feed(text[at : at + step]):
            said.append(sentence)
            frames.append(rounds.add(number, sentence))
    frames.append(rounds.close())
    places = {(s.latitude, s.longitude) for s in said}
    has_fix = any(s.fix for s in said)
    valid = 0
    for frame in frames:
        if frame is None:
            continue
        _, bus, can_id, payload = frame
        insist((bus, can_id, len(payload)) == ("gnss0", GNSS_ID, 32), "another frame")
        fix, bits, _, _, latitude, longitude = struct.unpack("<BBBBii", payload[:12])
        utc_ms = int.from_bytes(payload[24:30], "little")
        insist(abs(latitude) <= 90 * 10**7 and abs(longitude) <= 180 * 10**7, "off the earth")
        insist(fix or not bits, "something is valid without a fix")
        insist(has_fix or not fix, "a fix that nobody told")
        insist(bits & 1 or not (latitude or longitude), "a place that is not valid")
        insist(utc_ms < 253_402_300_800_000, "a year that is none")
        if bits & 1:
            valid += 1
            insist(
                any(
                    lat is not None
                    and lon is not None
                    and abs(lat * 1e7 - latitude) <= 1
                    and abs(lon * 1e7 - longitude) <= 1
                    for lat, lon in places
                ),
                "a place that no sentence told",
            )
    return Verdict(bool(said), ACCEPTED if valid else "no position")


TARGETS = (Target("NMEA", _make, _judge, "checksum and sentence", weight=1.25, least_past=0.7),)
