"""Random drives under random constraints give the rows of the naive replay, whatever the portions.

The drives hold gaps, jumps back and forth, frames that nobody may have and payloads that are too
short; the policies mix every constraint, and grants and hours that begin and end on the way.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.cli.output import row_of
from agent.core.binding import bind
from agent.core.mapping import parse_mapping
from agent.core.policy import parse_unsigned_policy
from agent.core.replay import Replay
from agent.edge.logfile import read_logs
from tests import car
from tests.replay_oracle import replay

T0_S = 1_800_000_000  # 08:00 UTC.
IDS = (car.SPEED_ID, car.ODOMETER_ID, car.POSITION_ID, car.DOOR_ID, car.FOREIGN_ID)
FUNCTIONS = ["min", "max", "mean", "count", "last"]

Document = dict[str, Any]


def _hours() -> st.SearchStrategy[Document]:
    """A window within the minutes of the drives, on the days around, in zones of whole hours."""
    minute = st.integers(-2, 1)

    def made(begin: int, length: int, zone: str, offset_h: int) -> Document:
        first, last = ((8 + offset_h) * 60 + begin, (8 + offset_h) * 60 + begin + length)
        text = [f"{at // 60 % 24:02}:{at % 60:02}" for at in (first, last)]
        return {"days": "1-7", "from": text[0], "to": text[1], "tz": zone}

    zone = st.sampled_from([("UTC", 0), ("Asia/Tokyo", 9), ("America/Phoenix", -7)])
    return st.builds(
        lambda begin, length, where: made(begin, length, *where), minute, st.integers(1, 4), zone
    )


def _when(*, floor_s: float) -> st.SearchStrategy[Document]:
    """One rule of when something is taken: an interval, a window, once, or the default."""
    seconds = st.sampled_from([s for s in (0, 0.1, 0.75, 1, 2.5, 10, 60, 100) if s >= floor_s])
    functions = st.lists(st.sampled_from(FUNCTIONS), min_size=1, unique=True)
    window = st.fixed_dictionaries({"window_s": seconds.filter(bool), "fn": functions})
    return st.one_of(
        st.just({}),
        seconds.map(lambda s: {"min_interval_s": s}),
        window.map(lambda raw: {"aggregate": raw}),
        st.just({"once": True}),
    )


def _constraints(floor_s: float, *, grid: bool = False) -> st.SearchStrategy[Document]:
    more: Document = {"windows": st.lists(_hours(), min_size=2, max_size=3)}
    if grid:
        blur = st.sampled_from([{}, {"precise": True}, {"grid_deg": 0.5}, {"grid_deg": 3}])
    else:
        more["quantum"] = st.sampled_from([0.5, 7, 1000])
        blur = st.just({})
    return st.builds(
        lambda when, rest, blurred: when | rest | blurred,
        _when(floor_s=floor_s),
        st.fixed_dictionaries({}, optional=more),
        blur,
    )


_SCOPES: dict[str, st.SearchStrategy[Document]] = {
    "read_speedometer": _constraints(0.1),
    "read_odometer": _constraints(0),
    "read_location": _constraints(1, grid=True),
    "read_security": _constraints(1),
    "read_vin": st.just({}),
}
_SPAN = st.just({}) | st.fixed_dictionaries(
    {"nbf": st.integers(T0_S - 5, T0_S + 20), "exp": st.integers(T0_S + 10, T0_S + 90)}
)
_TIMINGS = (
    *("interval_ms: 0", "interval_ms: 700", "on_change: true"),
    "interval_ms: 1500, on_change: true",
)


@st.composite
def _policies(draw: st.DrawFn) -> Document:
    grants = []
    for name in draw(st.sampled_from([("g1",), ("g1", "g2")])):
        scopes = draw(st.lists(st.sampled_from(sorted(_SCOPES)), min_size=3, unique=True))
        details = [{"scope": s, "constraints": draw(_SCOPES[s])} for s in scopes]
        grant = {"grant_id": name, "recipient": "r", "details": details, **draw(_SPAN)}
        grants.append(grant | car.combined(scopes))
    return {"recipients": {"r": {"name": "R"}}, "grants": grants, **draw(_SPAN)}


def _drive(rng: random.Random) -> str:
    """Make a candump log; now and then it stands still, jumps ahead or runs backwards."""
    t_us = T0_S * 1_000_000
    lines = [f"({T0_S}.000000) can0 7FF#"]
    for _ in range(rng.randrange(20, 150)):
        t_us += rng.choice((0, rng.randrange(1_500_000), rng.randrange(200_000)))
        if rng.random() < 0.05:
            t_us += rng.randrange(-9_000_000, 60_000_000)
        data = rng.randbytes(8) if rng.random() < 0.6 else bytes(rng.choices(range(4), k=8))
        if rng.random() < 0.1:
            data = data[: rng.randrange(8)]
        second, micros = divmod(t_us, 1_000_000)
        lines.append(f"({second}.{micros:06}) can0 {rng.choice(IDS):03X}#{data.hex().upper()}")
    return "\n".join(lines) + "\n"


@st.composite
def _mappings(draw: st.DrawFn) -> bytes:
    text = car.MAPPING.decode()
    for signal in ("Speed", "ODO.Odometer", "Lat", "Lon", "DriverDoor"):
        more = draw(st.sampled_from(_TIMINGS))
        head = f"signal: {signal}, "
        begin = text.index(head) + len(head)
        text = text[:begin] + more + text[text.index("}", begin) :]
    return text.encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("streams")
    (made / "car.dbc").write_bytes(car.DBC)
    return made


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32), policy=_policies(), mapping=_mappings(), portion=st.integers(1, 70)
)
def test_random_drives_give_the_rows_of_the_oracle(
    folder: Path, seed: int, policy: Document, mapping: bytes, portion: int
) -> None:
    (folder / "drive.log").write_text(_drive(random.Random(seed)), encoding="ascii")
    (folder / "car.vspec").write_bytes(mapping)
    [expected] = replay(
        [folder / "drive.log"],
        [folder / "car.dbc"],
        folder / "car.vspec",
        car.ROOT / "config/catalogue.json",
        [policy],
    )

    binding = bind(
        parse_mapping(mapping, name="m"), [car.dbc()], car.catalogue(), bus=None, any_bus=True
    )
    parsed = parse_unsigned_policy(json.dumps(policy).encode(), car.catalogue())
    found = Replay(parsed, car.catalogue(), binding)
    with read_logs([folder / "drive.log"]) as recording:
        frames = list(recording)
    for first in range(0, len(frames), portion):
        found.feed(frames[first : first + portion])
    found.finish()

    ours = [row_of(sample) for sample in found.samples()]
    assert [_rounded(row) for row in ours] == [_rounded(row) for row in expected]


def _rounded(row: Document) -> Document:
    """Compare numbers as numbers, means up to how they were added up."""
    value = row["value"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return row | {"value": f"{value:.9g}"} if is_number else row
