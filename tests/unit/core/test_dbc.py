import random
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.dbc import DbcFile, Message, is_j1939, parse_dbc
from agent.core.dbctext import MAX_BYTES
from agent.errors import DbcError
from tests import dbc_oracle

SPEED = ' SG_ Speed : 0|16@1+ (0.01,0) [0|655.35] "km/h" Dash'
BASE = f"""VERSION ""
NS_ :
	CM_
	VAL_
BS_:
BU_: Engine Dash
BO_ 256 Motion: 8 Engine
{SPEED}
 SG_ Gear : 16|8@1- (1,-2) [0|0] "" Dash,Engine
BO_ 2566844672 Fuel: 8 Vector__XXX
 SG_ Level : 7|12@0+ (1,0) [0|0] "%" Vector__XXX
CM_ SG_ 256 Speed "over ground";
VAL_ 256 Gear 0 "Neutral" 1 "First" -1 "Reverse" ;
"""


def parse(text: str, *, encoding: str = "utf-8") -> DbcFile:
    return parse_dbc(text.encode(encoding), name="car.dbc")


def message(file: DbcFile, name: str) -> Message:
    (found,) = [item for item in file.messages if item.name == name]
    return found


def kinds(file: DbcFile) -> list[tuple[int | None, str]]:
    return [(repair.line, repair.kind) for repair in file.repairs]


def refusal(text: str) -> DbcError:
    with pytest.raises(DbcError) as caught:
        parse(text)
    assert caught.value.file == "car.dbc"
    return caught.value


def attempt(data: bytes) -> DbcFile | DbcError:
    """Return the file, or the only error that may leave the parser."""
    try:
        return parse_dbc(data, name="car.dbc")
    except DbcError as exc:
        return exc


def test_a_clean_file_is_read_as_written_without_repairs() -> None:
    """Layout, conversion, names and senders come out as the file has them."""
    file = parse(BASE)

    motion, fuel = file.messages
    assert (motion.name, motion.frame_id, motion.is_extended_frame) == ("Motion", 0x100, False)
    assert (fuel.frame_id, fuel.is_extended_frame) == (0x18FEF100, True)
    assert (motion.length, motion.senders, fuel.senders) == (8, ("Engine",), ())
    speed, gear = motion.signals
    assert (speed.start, speed.length, speed.byte_order) == (0, 16, "little_endian")
    assert (speed.scale, speed.offset, speed.unit, speed.line) == (0.01, 0, "km/h", 8)
    assert (gear.is_signed, gear.unit, gear.offset) == (True, None, -2)
    assert gear.choices == {0: "Neutral", 1: "First", -1: "Reverse"}
    assert fuel.signal("Level").byte_order == "big_endian"
    assert file.repairs == ()


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ('VAL_ 512 Speed 0 "x" ;', "orphan-val"),
        ('VAL_ 256 Nothing 0 "x" ;', "orphan-val"),
        ('CM_ SG_ 256 Nothing "x";', "orphan-cm"),
        ('CM_ SG_ 512 "without a name";', "orphan-cm"),
        ('CM_ BO_ 512 "x";', "orphan-cm"),
        ('BA_ "GenMsgCycleTime" BO_ 512 100;', "orphan-ba"),
        ('BA_ "SPN" SG_ 256 Nothing 84;', "orphan-ba"),
        ("SIG_VALTYPE_ 256 Nothing : 1;", "orphan-sig-valtype"),
        ("SG_MUL_VAL_ 256 Nothing Speed 0-0;", "orphan-sg-mul-val"),
        ("BO_TX_BU_ 512 : Engine;", "orphan-bo-tx-bu"),
    ],
)
def test_an_orphan_entry_is_named_with_its_line_and_changes_nothing(entry: str, kind: str) -> None:
    """An entry about what is not there costs the file nothing."""
    file = parse(BASE + entry)

    assert kinds(file) == [(14, kind)]
    assert file.messages == parse(BASE).messages


def test_a_29_bit_id_without_bit_31_is_taken_as_extended_and_named() -> None:
    """Entries find the message whether they write bit 31 or not."""
    file = parse(
        'BO_ 419362048 Fuel: 8 X\n SG_ Level : 0|8@1+ (1,0) [0|0] "" X\n'
        'VAL_ 2566845696 Level 255 "Absent" ;\nSIG_VALTYPE_ 419362048 Level : 0;\n'
    )

    (fuel,) = file.messages
    assert (fuel.frame_id, fuel.is_extended_frame) == (0x18FEF500, True)
    assert fuel.signal("Level").choices == {255: "Absent"}
    assert kinds(file) == [(1, "extended-id")]


def test_an_id_that_no_frame_can_have_is_kept_apart_and_named() -> None:
    """Neither is CANdb++'s place for unused signals a message that a frame could match."""
    file = parse(
        f"BO_ 1075054137 Odd: 8 X\n{SPEED}\n"
        f"BO_ 3221225472 VECTOR__INDEPENDENT_SIG_MSG: 0 Vector__XXX\n{SPEED}\n"
        f"BO_ 256 Motion: 8 X\n{SPEED}\n"
        f"BO_ 0 VECTOR__INDEPENDENT_SIG_MSG: 0 Vector__XXX\n{SPEED}\n"
        f"BO_ 3221225472 Spare: 8 X\n{SPEED}\n"
    )

    assert [item.name for item in file.messages] == ["Motion"]
    assert [item.frame_id for item in file.unreachable] == [0x40140639, 0xC0000000, 0, 0xC0000000]
    assert kinds(file)[:4] == [
        (1, "impossible-id"), (3, "unsent-signals"), (7, "unsent-signals"), (9, "unsent-signals"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("2017_5", "digit-name"),
        ("Öldruck", "odd-name"),
        ("Oil Temp", "odd-name"),
        ("a.b-c", "odd-name"),
    ],
)
def test_a_name_that_is_no_identifier_is_kept_and_named(name: str, kind: str) -> None:
    """A mapping can say it, and entries about it find it."""
    file = parse(
        f'BO_ 256 {name}: 8 X\n SG_ {name} : 0|8@1+ (1,0) [0|0] "" X\n'
        f'VAL_ 256 {name} 1 "on" ;\nSIG_VALTYPE_ 256 {name} : 0;\n'
    )

    assert message(file, name).signal(name).choices == {1: "on"}
    assert kinds(file) == [(1, kind), (2, kind)]


@pytest.mark.parametrize(
    ("encoding", "repairs"),
    [
        ("utf-8", []),
        ("utf-8-sig", []),
        ("cp1252", [(2, "encoding")]),
        ("utf-16", [(1, "encoding")]),
    ],
)
def test_text_in_other_encodings_is_read_and_named(
    encoding: str, repairs: list[tuple[int, str]]
) -> None:
    """The unit is right, and the repair has the line of the first odd byte."""
    text = 'BO_ 1 A: 8 X\n SG_ T : 0|8@1+ (1,0) [0|0] "°C" X\n'

    file = parse(text, encoding=encoding)

    assert message(file, "A").signal("T").unit == "°C"
    assert kinds(file) == repairs


def test_bytes_that_cp1252_does_not_know_are_read_as_latin_1() -> None:
    """No text file is refused for its comments."""
    file = parse_dbc(BASE.encode() + b'CM_ "\x81\xff";', name="car.dbc")

    assert len(file.messages) == 2
    assert "latin-1" in file.repairs[0].what


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_do_not_matter(end: str) -> None:
    """The messages and the lines of repairs are those of the file with plain ends."""
    text = BASE + 'VAL_ 9 A 0 "x";\n'

    assert parse(text.replace("\n", end)) == parse(text)


def test_sections_may_be_missing_and_keywords_unknown() -> None:
    """A file needs nothing but messages; what nobody knows is named."""
    file = parse(f'BO_ 1 A: 8\n{SPEED}\nFOO_ 1 Speed "bar";\n')

    assert [signal.name for signal in file.messages[0].signals] == ["Speed"]
    assert kinds(file) == [(3, "unknown-entry")]


def test_all_may_stand_in_one_line() -> None:
    """Line ends mean nothing."""
    file = parse(BASE[BASE.index("BO_") :].replace("\n", " "))

    assert [len(item.signals) for item in file.messages] == [2, 1]
    assert file.repairs == ()


def test_comments_behind_slashes_are_no_entries() -> None:
    """They may stand between all entries and in lists of values."""
    file = parse(
        f"// BO_ 2 B: 8 X\nBO_ 1 A: 8 X // {SPEED}\n//{SPEED}\n{SPEED}\n"
        'VAL_ 1 Speed 0 "a" // first\n 1 "b // text" ;\n'
    )

    assert [item.name for item in file.messages] == ["A"]
    assert file.messages[0].signal("Speed").choices == {0: "a", 1: "b // text"}
    assert file.repairs == ()


def test_a_forgotten_semicolon_is_named_and_swallows_nothing() -> None:
    """The next entry counts."""
    file = parse(BASE + 'VAL_ 256 Speed 0 "stop"\nVAL_ 2566844672 Level 0 "dry" ;\n')

    assert message(file, "Motion").signal("Speed").choices == {0: "stop"}
    assert message(file, "Fuel").signal("Level").choices == {0: "dry"}
    assert kinds(file) == [(14, "no-semicolon")]


@pytest.mark.parametrize("comment", ['"say "hi" there";', '"a 5" disk";', "nothing quoted;"])
def test_a_comment_with_loose_quotes_costs_only_itself(comment: str) -> None:
    """What follows it is read."""
    text = BASE.replace("BO_ 2566844672", f"CM_ SG_ 256 Speed {comment}\nBO_ 2566844672")

    file = parse(text + 'CM_ BO_ 256 "fine";\n')

    assert [item.name for item in file.messages] == ["Motion", "Fuel"]
    assert kinds(file) == [(10, "broken-entry")]


def test_escaped_quotes_belong_to_the_text() -> None:
    """A backslash before a quote is the only escape."""
    file = parse(BASE + r'VAL_ 256 Speed 1 "say \"hi\"" 2 "C:\dir" ;')

    assert message(file, "Motion").signal("Speed").choices == {1: 'say "hi"', 2: r"C:\dir"}


def test_a_message_inside_of_a_closed_comment_is_talk() -> None:
    """Only what stands outside of texts declares."""
    file = parse(f'BO_ 1 A: 8 X\nCM_ BO_ 1 "formerly\nBO_ 2 B: 8 X\n{SPEED[:40]}";\n')

    assert [item.name for item in file.messages] == ["A"]


def test_a_message_that_an_open_quote_swallows_refuses_the_file() -> None:
    """No message is lost in silence."""
    error = refusal('BO_ 1 A: 8 X\nCM_ "open\nBO_ 2 B: 8 X\nCM_ "\nBO_ 3 C: 8 X\n')

    assert error.line == 3
    assert "began at line 2" in error.reason
    assert refusal('BO_ 1 A: 8 X\nCM_ "a" or BO_ 2 B: 8 X ;\n').line == 2


@pytest.mark.parametrize(
    "entry",
    [
        "BO_ 512 Motion",
        "BO_ x Motion: 8 X",
        "BO_ 512 Motion: eight X",
        SPEED.replace("@1+", "@2+"),
        SPEED.replace("(0.01,0)", "(0.01)"),
        SPEED.replace("(0.01,0)", "(1e999,0)"),
        SPEED.replace("(0.01,0)", f"({'9' * 5000},0)"),
        SPEED.replace("Speed :", "Speed x1 x2"),
        SPEED[:30],
        'VAL_ 256 Speed 0 "a" 1 b ;',
        'VAL_ 256 Speed 0 "a "quoted" word" ;',
        "SG_MUL_VAL_ 256 Speed Gear 1 2;",
        "SIG_VALTYPE_ 256 Speed : float;",
    ],
)
def test_an_entry_that_decoding_needs_must_be_readable(entry: str) -> None:
    """Otherwise the file is refused, with the line."""
    error = refusal(f"BO_ 256 Motion: 8 X\n{SPEED}\n{entry}\n")

    assert error.line == 3


@pytest.mark.parametrize("before", ["B0_ 257 Other: 8 X", "", "???"])
def test_a_signal_behind_something_unknown_does_not_go_to_the_message_before(before: str) -> None:
    """A mistyped BO_ must not give its signals to another message."""
    start = f"BO_ 256 Motion: 8 X\n{SPEED}\n" if before else ""

    error = refusal(f"{start}{before}\n{SPEED}\n")

    assert error.line == (4 if before else 2)
    assert "belongs to no message" in error.reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n// nothing\n", "empty"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "NUL"),
        (bytes(range(1, 256)) * 9, "no DBC entry"),
        (b"<html>BO_ </html>", "no DBC entry"),
        (b'VERSION ""\n<html>', "no message"),
        (b" " * (MAX_BYTES + 1), "at most"),
    ],
)
def test_what_is_no_dbc_is_refused(data: bytes, reason: str) -> None:
    """With a sentence that says what was found."""
    with pytest.raises(DbcError, match=reason):
        parse_dbc(data, name="car.dbc")


def test_a_message_that_is_repeated_alike_counts_once() -> None:
    """And is named."""
    text = f"BO_ 256 Motion: 8 X\n{SPEED}\n"

    file = parse(text * 2)

    assert len(file.messages) == 1
    assert kinds(file) == [(3, "repeated-message")]


def test_messages_that_share_an_id_or_a_name_are_all_kept_and_named() -> None:
    """The user may name the one that is meant."""
    other = SPEED.replace("0|16", "8|16")

    file = parse(
        f"BO_ 256 A: 8 X\n{SPEED}\nBO_ 256 B: 8 X\n{SPEED}\nBO_ 257 A: 8 X\n{SPEED}\n"
        f"BO_ 256 A: 8 X\n{other}\n"
    )

    assert [(item.name, item.frame_id) for item in file.messages] == [
        ("A", 256), ("B", 256), ("A", 257), ("A", 256),
    ]  # fmt: skip
    assert kinds(file) == [(3, "double-id"), (5, "double-name"), (7, "double-name")]


def test_one_name_for_two_layouts_in_a_message_is_set_aside() -> None:
    """Never a guess; declared twice alike it is one signal."""
    other = SPEED.replace("0|16", "8|16")
    gear = ' SG_ Gear : 32|8@1+ (1,0) [0|0] "" X'

    file = parse(f"BO_ 256 A: 8 X\n{SPEED}\n{gear}\n{other}\n{gear}\n")

    assert [signal.name for signal in file.messages[0].signals] == ["Gear"]
    assert kinds(file) == [(4, "double-signal"), (5, "double-signal")]


@pytest.mark.parametrize(
    ("layout", "value_type"),
    [("0|0@1+", 0), ("7|40000@0+", 0), ("32753|8@1+", 0), ("32759|9@0+", 0), ("0|24@1+", 1)],
)
def test_a_layout_that_no_payload_holds_is_set_aside(layout: str, value_type: int) -> None:
    """So is a floating-point number of 24 bits; other signals of the message stay."""
    gear = ' SG_ Gear : 32752|8@1+ (1,0) [0|0] "" X'

    file = parse(
        f"BO_ 256 A: 8 X\n{SPEED.replace('0|16@1+', layout)}\n{gear}\n"
        f"SIG_VALTYPE_ 256 Speed : {value_type};\n"
    )

    assert [signal.name for signal in file.messages[0].signals] == ["Gear"]
    assert kinds(file) == [(2, "odd-layout")]


def multiplexed(*signals: str, entries: str = "") -> DbcFile:
    """Return a file with one message of eight-bit signals, given as name and marker."""
    lines = [
        f' SG_ {signal} : {8 * index}|8@1+ (1,0) [0|0] "" X' for index, signal in enumerate(signals)
    ]
    return parse("\n".join(["BO_ 1 A: 8 X", *lines, entries]))


def test_with_one_multiplexer_all_marked_signals_hang_on_it() -> None:
    """Ids of SG_MUL_VAL_ are added to the mark's own."""
    file = multiplexed("S M", "A m1", "B m2", "C", entries="SG_MUL_VAL_ 1 B S 7-9, 3-4, 4-5;")

    (a,) = file.messages
    assert [(s.multiplexer, s.multiplexer_ids) for s in a.signals] == [
        (None, ()), ("S", ((1, 1),)), ("S", ((2, 5), (7, 9))), (None, ()),
    ]  # fmt: skip
    assert file.repairs == ()


def test_what_sg_mul_val_says_of_another_signal_or_backwards_does_not_count() -> None:
    """As in cantools."""
    file = multiplexed("S M", "A m1", "B", entries="SG_MUL_VAL_ 1 A B 5-5;")
    assert file.messages[0].signal("A").multiplexer_ids == ((1, 1),)

    file = multiplexed("S M", "A m1", entries="SG_MUL_VAL_ 1 A S 9-7, 4-4;")
    assert file.messages[0].signal("A").multiplexer_ids == ((1, 1), (4, 4))


def test_with_several_multiplexers_sg_mul_val_says_what_hangs_on_what() -> None:
    """A marked signal that it does not mention is always there, and named."""
    file = multiplexed(
        "S M", "T m1M", "A m1", "B m2",
        entries="SG_MUL_VAL_ 1 T S 1-1;\nSG_MUL_VAL_ 1 A T 4-4;",
    )  # fmt: skip

    (a,) = file.messages
    assert [(s.name, s.multiplexer, s.multiplexer_ids) for s in a.signals] == [
        ("S", None, ()), ("T", "S", ((1, 1),)), ("A", "T", ((4, 4),)), ("B", None, ()),
    ]  # fmt: skip
    assert kinds(file) == [(5, "no-multiplexer")]


def test_a_mark_without_a_multiplexer_is_named_and_ignored() -> None:
    """As in cantools: the signal is always there."""
    file = multiplexed("A m3", "B m")

    assert [signal.multiplexer for signal in file.messages[0].signals] == [None, None]
    assert kinds(file) == [(2, "no-multiplexer"), (3, "no-multiplexer")]


def test_a_multiplexer_that_only_sg_mul_val_names_is_one() -> None:
    """Its mark is a slip of the pen."""
    file = multiplexed("S m", "A m1", entries="SG_MUL_VAL_ 1 A S 1-1;")

    assert file.messages[0].signal("A").multiplexer == "S"
    assert kinds(file) == [(2, "odd-multiplexer")]


def test_values_that_the_multiplexer_cannot_have_are_named() -> None:
    """Eight bits do not reach 256; an empty mark is no value."""
    file = multiplexed("S M", "A m256", "B m", "C m255")
    assert kinds(file) == [(3, "unreached-id"), (4, "unreached-id")]

    file = parse(
        'BO_ 1 A: 8 X\n SG_ S M : 0|8@1- (1,0) [0|0] "" X\n'
        ' SG_ A m127 : 8|8@1+ (1,0) [0|0] "" X\n SG_ B m128 : 8|8@1+ (1,0) [0|0] "" X\n'
    )
    assert kinds(file) == [(4, "unreached-id")]


def test_multiplexers_in_a_circle_or_not_there_cost_what_hangs_on_them() -> None:
    """And nothing else of the message."""
    file = multiplexed(
        "S M", "T m1M", "U m1M", "A m1", "B m1",
        entries="SG_MUL_VAL_ 1 T U 1-1;\nSG_MUL_VAL_ 1 U T 1-1;\nSG_MUL_VAL_ 1 A U 1-1;\n"
        "SG_MUL_VAL_ 1 B Lost 1-1;",
    )  # fmt: skip

    assert [signal.name for signal in file.messages[0].signals] == ["S"]
    assert kinds(file) == [(line, "lost-multiplexer") for line in (3, 4, 5, 6)]


def test_multiplexers_nested_without_end_are_set_aside() -> None:
    """A chain is followed no deeper than real files go."""
    count = 40
    chain = [f"S{index} m1M" for index in range(count)]
    entries = "\n".join(f"SG_MUL_VAL_ 1 S{i + 1} S{i} 1-1;" for i in range(count - 1))

    file = multiplexed(*chain, entries=entries)

    assert len(file.messages[0].signals) == 16
    assert all(kind == "lost-multiplexer" for _, kind in kinds(file)[1:])


LONG_NAMES = (
    'BA_DEF_ SG_ "SystemSignalLongSymbol" STRING ;\n'
    'BA_ "SystemMessageLongSymbol" BO_ 1 "The_whole_long_name_of_the_message";\n'
)


def test_long_names_are_used_where_a_file_has_them() -> None:
    """CANdb++ cuts names to 32 characters and keeps the whole ones in attributes."""
    file = multiplexed(
        "S M", "A m1", entries=f'{LONG_NAMES}BA_ "SystemSignalLongSymbol" SG_ 1 S "Selector";'
    )

    (a,) = file.messages
    assert a.name == "The_whole_long_name_of_the_message"
    assert [signal.name for signal in a.signals] == ["Selector", "A"]
    assert a.signal("A").multiplexer == "Selector"


def test_a_long_name_that_two_signals_claim_is_not_used() -> None:
    """Both keep their short names."""
    claims = "".join(f'BA_ "SystemSignalLongSymbol" SG_ 1 {name} "Same";\n' for name in "AB")

    file = multiplexed("A", "B", "C", entries=claims + 'BA_ "SystemSignalLongSymbol" SG_ 1 C "A";')

    assert [signal.name for signal in file.messages[0].signals] == ["A", "B", "C"]
    assert [kind for _, kind in kinds(file)] == ["double-long-name"] * 3


FORMATS = 'BA_DEF_ BO_ "VFrameFormat" ENUM "StandardCAN","ExtendedCAN","J1939PG";\n'


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("", [False, False]),
        (FORMATS + 'BA_ "VFrameFormat" BO_ 2566844672 2;', [False, True]),
        (FORMATS + 'BA_ "VFrameFormat" BO_ 2566844672 1;', [False, False]),
        (FORMATS + 'BA_ "VFrameFormat" BO_ 2566844672 9;', [False, False]),
        ('BA_ "VFrameFormat" BO_ 2566844672 3;', [False, True]),
        ('BA_ "VFrameFormat" BO_ 2566844672 "J1939PG";', [False, True]),
        (FORMATS + 'BA_DEF_DEF_ "VFrameFormat" "J1939PG";', [False, True]),
        ('BA_DEF_DEF_ "VFrameFormat" 3;', [False, True]),
        ('BA_ "ProtocolType" "J1939";', [False, True]),
        ('BA_DEF_DEF_ "ProtocolType" "J1939";', [False, True]),
        ('BA_DEF_DEF_ "ProtocolType" "J1939";\nBA_ "ProtocolType" "CAN";', [False, False]),
        ('BA_ "VFrameFormat" BO_ 256 3;', [False, False]),
    ],
)
def test_j1939_is_told_by_frame_format_or_protocol_and_needs_an_extended_id(
    attributes: str, expected: list[bool]
) -> None:
    """Stated by number or name, or by default."""
    file = parse(BASE + attributes)

    assert [is_j1939(item) for item in file.messages] == expected
    assert [file.is_j1939(item) for item in file.messages] == expected


def test_entries_that_contradict_each_other_are_named_and_the_last_counts() -> None:
    """As in cantools."""
    file = parse(BASE + 'VAL_ 256 Gear 0 "N" 0 "P" 1.5 "half" 2.0 "D" ;')

    assert message(file, "Motion").signal("Gear").choices == {0: "P", 2: "D"}
    assert [kind for _, kind in kinds(file)] == ["double-choice", "odd-choice", "double-entry"]


def test_more_senders_are_added() -> None:
    """BO_TX_BU_ may repeat the first one."""
    file = parse(BASE + "BO_TX_BU_ 256 : Engine,Dash;")

    assert message(file, "Motion").senders == ("Engine", "Dash")


def test_many_repairs_of_a_kind_are_told_in_one_sentence() -> None:
    """Few are told one by one, each with its line."""
    orphan = 'VAL_ 9 A 0 "x" ;\n'

    few, many = list(parse(BASE + orphan * 3).told()), list(parse(BASE + orphan * 40).told())

    assert [line.split(":")[0] for line in few] == ["line 14", "line 15", "line 16"]
    assert len(many) == 1
    assert many[0].startswith("orphan-val: 40, lines 14, 15,")


FRAGMENTS = [
    *('"', ";", ":", "\n", "\\", "//", "M", "m1M", "\0", "\xff", "9" * 30, "e999", "-"),
    *("BO_ 5 A: 8 X\n", SPEED + "\n", 'CM_ "', "VAL_ ", "SG_MUL_VAL_ 5 A B 0-4294967295;\n"),
    "SIG_VALTYPE_ 256 Speed : 1;",
]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 12), st.sampled_from(FRAGMENTS))),
    st.integers(0, 2000),
)
def test_a_damaged_file_loads_or_is_refused(
    damage: list[tuple[int, int, str]], length: int
) -> None:
    """No other exception leaves the parser, and no message is lost in a file that loads."""
    text = BASE + LONG_NAMES + FORMATS
    for position, removed, inserted in damage:
        text = text[:position] + inserted + text[position + removed :]
    data = text[:length].encode("latin-1")

    file = attempt(data)

    if isinstance(file, DbcError):
        assert "\n" not in file.message
        return
    repeated = sum(kind == "repeated-message" for _, kind in kinds(file))
    without_texts = re.sub(r'"(\\"|[^"])*"|//.*', "", text[:length])
    declared = len(re.findall(r"^BO_ \d+ \w+:", without_texts, re.MULTILINE))
    assert len(file.messages) + len(file.unreachable) + repeated >= declared


@given(st.binary(max_size=400))
def test_any_bytes_load_or_are_refused(data: bytes) -> None:
    """No other exception leaves the parser."""
    attempt(data)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        '"' * 600_000,
        'CM_ "' + '\\"' * 300_000,
        "//\n" * 200_000,
        "SG_ a " * 100_000,
        "BO_ 5 " + "a " * 300_000,
        "BO_ 5 A: 8 X\n" * 40_000,
        "BO_ 5 A: 8 X\nSG_MUL_VAL_ 5 " + "a " * 300_000,
        "BO_ 5 A: 8 X\nVAL_ 5 A " + '1 "x" ' * 100_000 + "!",
        "BO_ 5 A: 8 X\n SG_ A : 0|8@1+ (1,0) [" + "0" * 600_000,
        "SIG_GROUP_ 5 " + '"a"\n' * 150_000,
    ],
)
def test_hostile_sizes_take_no_longer_than_others(text: str) -> None:
    """Work grows with the size; what grew with its square took minutes here."""
    with pytest.raises(DbcError) if not text.startswith("BO_ 5 A: 8 X\nBO_") else nullcontext():
        parse(text)


def test_a_range_of_all_values_costs_no_memory() -> None:
    """For cantools it would be a list of four thousand million."""
    file = multiplexed("S M", "A m1", entries="SG_MUL_VAL_ 1 A S 0-4294967295;")

    assert file.messages[0].signal("A").multiplexer_ids == ((0, 4294967295),)


@pytest.mark.captures
def test_every_file_of_the_corpus_loads_with_all_its_messages(captures: Path) -> None:
    """67 files of many makers; BO_ lines are counted here by themselves."""
    paths = sorted((captures / "dbc_corpus").glob("*.dbc"))

    for path in paths:
        data = path.read_bytes()
        file = parse_dbc(data, name=path.name)
        declared = len(re.findall(rb"^BO_ \d+", data, re.MULTILINE))
        assert len(file.messages) + len(file.unreachable) == declared, path.name

    assert len(paths) == 67


@pytest.mark.captures
def test_every_truncated_file_loads_or_is_refused(captures: Path) -> None:
    """A file that was cut off anywhere is no reason to crash."""
    rng = random.Random(7)
    for path in sorted((captures / "dbc_corpus").glob("c*.dbc")):
        data = path.read_bytes()[:60_000]
        for _ in range(5):
            attempt(data[: rng.randrange(len(data))])


@pytest.mark.captures
def test_j1939_is_where_cantools_sees_it_or_the_whole_file_is(captures: Path) -> None:
    """On all files that cantools takes or can be mended for it."""
    for path in sorted((captures / "dbc_corpus").glob("*j1939*.dbc")):
        data = path.read_bytes()
        whole = re.search(rb'^BA_ +"ProtocolType" +"J1939"', data, re.MULTILINE) is not None
        expected = {
            item.frame_id: item.is_extended_frame and (whole or item.protocol == "j1939")
            for item in dbc_oracle.load(data).messages
        }
        found = {item.frame_id: is_j1939(item) for item in parse_dbc(data, name="x").messages}
        assert found == expected
        assert any(found.values())
