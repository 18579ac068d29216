"""NMEA 0183 for tests: made-up sentences, and a naive reading of logs."""

import gzip
from collections.abc import Iterator
from pathlib import Path


def sentence(body: str) -> bytes:
    """Return a sentence with its checksum."""
    total = 0
    for byte in body.encode("ascii"):
        total ^= byte
    return f"${body}*{total:02X}\r\n".encode("ascii")


def rmc(
    time: str = "120000.00", *, status: str = "A", lat: str = "0100.0000,N", mode: str = "A"
) -> bytes:
    """Return a made-up RMC: 1° N 2° E, 10 knots, course 90°, 2026-01-02."""
    return sentence(f"GPRMC,{time},{status},{lat},00200.0000,E,10.0,90.0,020126,,,{mode}")


def gga(time: str = "120000.00", *, quality: int = 1, alt: str = "100.0,M") -> bytes:
    return sentence(f"GPGGA,{time},0100.0000,N,00200.0000,E,{quality},08,0.9,{alt},46.0,M,,")


def gst(time: str = "120000.00", *, north: str = "3.0", east: str = "4.0") -> bytes:
    """Return a made-up GST; both are standard deviations in metres."""
    return sentence(f"GPGST,{time},1.5,5.0,2.0,45.0,{north},{east},6.0")


def read_drive(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def naive_positions(data: bytes) -> Iterator[tuple[str, float, float]]:
    """Yield (time of day, latitude, longitude) of each RMC and GGA with a fix."""
    for raw in data.splitlines():
        text = raw.decode("latin-1").strip()
        body, star, told = text[1:].partition("*")
        kind = text[3:6]
        if not text.startswith("$G") or kind not in {"RMC", "GGA"} or not star:
            continue
        total = 0
        for letter in body:
            total ^= ord(letter)
        parts = body.split(",")
        fix, place = (parts[2] == "A", 3) if kind == "RMC" else (parts[6] != "0", 2)
        if f"{total:02X}" != told[:2].upper() or not fix or not parts[place]:
            continue
        north = int(parts[place][:2]) + float(parts[place][2:]) / 60
        east = int(parts[place + 2][:3]) + float(parts[place + 2][3:]) / 60
        north, east = (
            -north if parts[place + 1] == "S" else north,
            -east if parts[place + 3] == "W" else east,
        )
        yield parts[1], north, east
