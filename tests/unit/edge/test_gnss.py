"""Bytes of a serial line to sentences: garbage, checksums, fixes."""

import termios

import pytest
import serial
from hypothesis import given
from hypothesis import strategies as st

from agent import adapter
from agent.core.bushealth import BusState
from agent.core.canfilter import exact_filter
from agent.core.gnss import Sentence
from agent.edge.gnss import MAX_LINE, GnssReader, Lines
from tests.nmea import gga, rmc, sentence
from tests.rig import wait_for


def heard(*parts: bytes) -> tuple[list[Sentence], dict[str, int]]:
    lines = Lines()
    got = [found for part in parts for found in lines.feed(part)]
    return got, dict(lines.refused)


def test_a_sentence_says_what_is_in_it() -> None:
    got, refused = heard(rmc(), gga(quality=4))

    assert got == [
        Sentence(
            time_ms=43_200_000,
            day=20_455,
            fix=1,
            latitude=1.0,
            longitude=2.0,
            speed_kmh=pytest.approx(18.52),
            course_deg=90.0,
        ),
        Sentence(
            time_ms=43_200_000,
            fix=4,
            latitude=1.0,
            longitude=2.0,
            altitude_m=100.0,
            hdop=0.9,
            satellites=8,
        ),
    ]
    assert refused == {}


def test_speed_course_accuracy_and_date_come_from_their_own_sentences_too() -> None:
    got, _ = heard(
        sentence("GNVTG,90.5,T,,M,10.0,N,18.5,K,A"),
        sentence("GNGST,120000.50,1.0,,,,3.0,4.0,1.2"),
        sentence("GPZDA,120000.00,02,01,2026,00,00"),
    )

    assert got == [
        Sentence(speed_kmh=18.5, course_deg=90.5),
        Sentence(time_ms=43_200_500, accuracy_m=5.0),
        Sentence(time_ms=43_200_000, day=20_455),
    ]


@pytest.mark.parametrize(
    "line",
    [
        rmc(status="V"),
        rmc(mode="N"),
        rmc(mode="S"),
        gga(quality=0),
        gga(quality=7),
        gga(quality=8),
        sentence("GPGGA,120000,,,,,,,,,,,,,"),
        sentence("GPRMC,,V,,,,,,,,,,N"),
    ],
)
def test_what_is_no_fix_or_a_made_up_one_says_so(line: bytes) -> None:
    (got,), _ = heard(line)

    assert got.fix == 0


def test_a_date_that_no_calendar_has_is_none() -> None:
    for day in ("31,02,2026", "99999999999,01,2026", "01,01,99999999999"):
        (said,) = Lines().feed(sentence(f"GPZDA,120000.00,{day},00,00"))
        assert said.day is None


def test_a_wrong_checksum_is_counted_and_says_nothing() -> None:
    wrong = rmc()[:-4] + b"00\r\n"

    assert heard(wrong, gga())[1] == {"checksum": 1}
    assert len(heard(wrong, gga())[0]) == 1


@pytest.mark.parametrize(
    "noise",
    [
        b"\xb5\x62\x01\x07\x5c\x00 binary $ and \xff\n",
        rmc()[:20] + b"\r\n",
        b"$GPRMC\r\n",
        rmc().replace(b"*", b","),
        b"x" * (MAX_LINE + 1),
    ],
)
def test_garbage_is_counted_and_the_next_sentence_counts(noise: bytes) -> None:
    got, refused = heard(noise, b"\r\n", gga())

    assert len(got) == 1
    assert refused == {"garbage": 1}


def test_sentences_of_other_devices_and_of_no_use_are_let_go_without_a_word() -> None:
    got, refused = heard(
        sentence("SDDPT,1.0,0.5"),
        sentence("IIRMC,120000.00,A,0100.0000,N,00200.0000,E,10.0,90.0,020126,,,A"),
        sentence("GPGSV,1,1,01,21,00,000,"),
        sentence("PUBX,00,x"),
        b"!AIVDM,1,1,,A,13u?etPv2;0n:dDPwUM1U1Cb069D,0*24\r\n",
    )

    assert (got, refused) == ([], {})


@given(st.lists(st.sampled_from([rmc(), gga(), b"\xb5\x62\x00\n", b"\r\n"]), max_size=8), st.data())
def test_it_does_not_matter_in_what_portions_the_bytes_come(
    parts: list[bytes], data: st.DataObject
) -> None:
    text = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    portions = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert heard(*portions) == heard(text) == heard(*(bytes((byte,)) for byte in text))


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_any_bytes_are_borne(parts: list[bytes]) -> None:
    heard(*parts, b"\n")


@given(
    st.sampled_from(["RMC", "GGA", "VTG", "GST", "ZDA"]),
    st.lists(
        st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=9)
    ),
)
def test_any_fields_with_a_right_checksum_are_borne(kind: str, said: list[str]) -> None:
    body = ",".join([f"GP{kind}", *said]).replace("*", "").replace("$", "")

    heard(sentence(body))


def test_a_receiver_that_is_unplugged_while_it_is_opened_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pyserial lets termios.error out then, which is no OSError."""

    def vanish(*_: object, **__: object) -> None:
        raise termios.error(5, "Input/output error")

    monkeypatch.setattr(serial, "Serial", vanish)
    monkeypatch.setattr(adapter, "MIN_PAUSE_S", 0.01)
    reader = GnssReader("gnss", channel="/dev/ttyACM0", options={}, sink=lambda _: None)
    reader.set_filters([exact_filter(1)])
    reader.start()
    try:
        wait_for("two tries", lambda: reader.failure or reader.health().reconnects >= 2)

        assert reader.failure is None
        assert reader.health().state is BusState.MISSING
    finally:
        reader.close()
