"""Sentences to frames: which belong together, what counts as a fix, what the DBC reads."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cantools
from hypothesis import given
from hypothesis import strategies as st

from agent.core.dbc import parse_dbc
from agent.core.decode import compile_extract, field_of, physical
from agent.core.gnss import GNSS_ID, Rounds, Sentence
from agent.core.model import Frame

DBC = Path(__file__).resolve().parents[3] / "dbc" / "gnss.dbc"
# Without its multiplexers, of which cantools can follow no more than one that says no.
PLAIN = re.sub(r"SG_MUL_VAL_ 1.*|(?<=\w) (M|m1)(?= :)", "", DBC.read_text("ascii"))
ORACLE: Any = cantools.database.load_string(PLAIN)
MESSAGE = parse_dbc(DBC.read_bytes(), name="gnss.dbc").messages[0]
FIELDS = [field_of(MESSAGE, signal.name) for signal in MESSAGE.signals]
EXTRACT = compile_extract(FIELDS)
VALID = {"Latitude": "Position", "Longitude": "Position", "UtcTime": "Time"} | {
    name: name for name in ("Altitude", "Speed", "Course", "Hdop", "Accuracy")
}

POSITION = Sentence(time_ms=1000, fix=1, latitude=1.0, longitude=-2.0, satellites=8)


def read(frame: Frame) -> dict[str, float]:
    """Return what the agent's own decoder finds in a frame."""
    raws = zip(FIELDS, EXTRACT(frame[3]), strict=True)
    return {field.name: physical(field, raw) for field, raw in raws if raw is not None}


def round_of(*sentences: Sentence) -> dict[str, float]:
    rounds = Rounds("gnss")
    assert [rounds.add(5, sentence) for sentence in sentences] == [None] * len(sentences)
    frame = rounds.close()
    assert frame is not None
    assert frame[:3] == (5, "gnss", GNSS_ID)
    return read(frame)


def test_sentences_of_one_moment_make_one_frame() -> None:
    got = round_of(
        POSITION,
        Sentence(time_ms=1000, altitude_m=10.5, hdop=0.9),
        Sentence(speed_kmh=36.0, course_deg=359.99),
        Sentence(time_ms=1000, accuracy_m=1.25, day=20_000),
    )

    assert (got["Latitude"], got["Longitude"]) == (1.0, -2.0)
    assert (got["Altitude"], got["Hdop"], got["Accuracy"]) == (10.5, 0.9, 1.25)
    assert (got["Speed"], got["Course"], got["Satellites"]) == (36.0, 359.99, 8)
    assert got["UtcTime"] == 20_000 * 86_400 + 1


def test_what_was_said_first_counts() -> None:
    """A sentence without a time may be the next moment's already."""
    got = round_of(POSITION, Sentence(speed_kmh=36.0), Sentence(speed_kmh=50.0))

    assert got["Speed"] == 36.0


def test_another_time_begins_the_next_frame_which_has_the_time_of_its_first_sentence() -> None:
    rounds = Rounds("gnss")

    assert rounds.add(10, POSITION) is None
    assert rounds.add(11, Sentence(altitude_m=1.0)) is None
    first = rounds.add(20, Sentence(time_ms=2000, fix=1, latitude=3.0, longitude=4.0))
    second = rounds.close()

    assert first is not None
    assert second is not None
    assert (first[0], read(first)["Latitude"]) == (10, 1.0)
    assert (second[0], read(second)["Latitude"]) == (20, 3.0)


def test_what_comes_late_for_a_closed_round_opens_none() -> None:
    rounds = Rounds("gnss")
    rounds.add(1, POSITION)
    assert rounds.close() is not None

    rounds.add(2, Sentence(time_ms=1000, altitude_m=1.0))
    rounds.add(3, Sentence(speed_kmh=1.0))

    assert not rounds.is_open
    assert rounds.close() is None


def test_one_sentence_without_a_fix_takes_the_position_away() -> None:
    got = round_of(
        POSITION, Sentence(time_ms=1000, fix=0, latitude=1.0, longitude=-2.0, speed_kmh=9)
    )

    assert got["Fix"] == 0
    assert not {"Latitude", "Longitude", "Altitude", "Speed", "Course"} & got.keys()


def test_no_word_of_a_fix_is_none_and_is_counted() -> None:
    rounds = Rounds("gnss")
    rounds.add(1, Sentence(time_ms=1000, latitude=1.0, longitude=2.0))
    frame = rounds.close()

    assert frame is not None
    assert "Latitude" not in read(frame)
    assert rounds.without_fix == 1


def test_what_cannot_be_true_is_absent() -> None:
    for latitude, longitude in ((90.1, 0.0), (0.0, 180.5), (math.nan, 0.0), (math.inf, 0.0)):
        got = round_of(Sentence(time_ms=1000, fix=1, latitude=latitude, longitude=longitude))
        assert "Latitude" not in got
        assert "Longitude" not in got
    got = round_of(POSITION, Sentence(speed_kmh=700.0, course_deg=-1.0, hdop=99_999.0))
    assert not {"Speed", "Course", "Hdop"} & got.keys()


def test_half_a_position_is_none() -> None:
    assert "Latitude" not in round_of(Sentence(time_ms=1000, fix=1, latitude=1.0))


def test_halves_of_two_places_make_none() -> None:
    north = Sentence(time_ms=1, fix=1, latitude=1.0)
    south = Sentence(time_ms=1, fix=1, latitude=-1.0, longitude=2.0)
    east = Sentence(time_ms=1, fix=1, longitude=2.0)

    assert round_of(north, south)["Latitude"] == -1.0
    assert "Latitude" not in round_of(north, east)


def test_numbers_below_zero_are_no_fix_and_no_satellites() -> None:
    assert round_of(replace(POSITION, satellites=-1))["Satellites"] == 0
    assert "Latitude" not in round_of(replace(POSITION, fix=-1))


def test_a_course_of_360_is_north() -> None:
    assert round_of(POSITION, Sentence(course_deg=360.0))["Course"] == 0


@given(
    st.builds(
        Sentence,
        time_ms=st.integers(0, 86_399_999),
        day=st.none() | st.integers(-1, 60_000),
        fix=st.integers(0, 300),
        latitude=st.none() | st.floats(),
        longitude=st.none() | st.floats(),
        altitude_m=st.none() | st.floats(),
        speed_kmh=st.none() | st.floats(),
        course_deg=st.none() | st.floats(),
        hdop=st.none() | st.floats(),
        accuracy_m=st.none() | st.floats(),
        satellites=st.none() | st.integers(0, 10_000),
    )
)
def test_cantools_reads_the_same_from_every_frame_and_what_was_said(sentence: Sentence) -> None:
    rounds = Rounds("gnss")
    rounds.add(0, sentence)
    frame = rounds.close()
    assert frame is not None
    got = read(frame)

    told = ORACLE.decode_message(GNSS_ID, frame[3], decode_choices=False)
    for name, valid in VALID.items():
        if not told[f"{valid}Valid"]:
            assert told.pop(name) == 0
    assert got == told
    for name, value, step in (
        ("Latitude", sentence.latitude, 1e-7),
        ("Speed", sentence.speed_kmh, 0.01),
        ("Altitude", sentence.altitude_m, 0.01),
    ):
        if name in got:
            assert value is not None
            assert abs(got[name] - value) <= step / 2 + 1e-9
