r"""DBC bytes to statements: the text level of `agent.core.dbc`.

Rules:
 * Every byte of the file belongs to a statement, a `//` comment or white space. What cannot be read
   as a statement is handed on as one that is not `read`; nothing is skipped unseen.
 * A statement that is not read ends at a `;` that ends a line, or before a line that starts with a
   keyword: a broken comment costs itself, not what follows.
 * Time is linear in the size of the file: no repetition can match one text in two ways.
 * Names are kept as written. DBC asks for C identifiers; files hold `2017_5`, `0_COUNTER` and
   `Engine Speed`, and a mapping must be able to say so.

There is no norm for DBC; the statements are those that Vector's CANdb++ writes:

    BO_ id name: length sender
     SG_ name [M|m0|m0M] : start|length@order sign (scale,offset) [min|max] "unit" receivers
    VAL_ id signal  number "text" ... ;         SIG_VALTYPE_ id signal : 1 ;
    SG_MUL_VAL_ id signal multiplexer 0-3, 7-7; BA_ "attribute" BO_ id value;
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from agent.errors import DbcError

MAX_BYTES = 1 << 25  # Twenty times the largest file known to us.

_KEYWORDS = re.findall(
    r"\S+",
    """
    BA_ BA_DEF_ BA_DEF_DEF_ BA_DEF_DEF_REL_ BA_DEF_REL_ BA_DEF_SGTYPE_ BA_REL_ BA_SGTYPE_ BO_
    BO_TX_BU_ BS_ BU_ BU_BO_REL_ BU_EV_REL_ BU_SG_REL_ CAT_ CAT_DEF_ CM_ ENVVAR_DATA_ EV_ EV_DATA_
    FILTER NS_ NS_DESC_ SG_ SGTYPE_ SGTYPE_VAL_ SG_MUL_VAL_ SIGTYPE_VALTYPE_ SIG_GROUP_
    SIG_TYPE_REF_ SIG_VALTYPE_ VAL_ VAL_TABLE_ VERSION
    """,
)
_KEYWORD = rf"(?:{'|'.join(_KEYWORDS)})\b"
# Only single characters are repeated possessively: the regular expressions of Python before 3.11.5,
# which Debian 12 has, go wrong after possessive groups (CPython issue 106052).
_INSIDE = r'[^"\\]*+(?:\\"?+[^"\\]*+)*'  # A backslash escapes a quote and nothing else.
_TEXT = rf'"{_INSIDE}"'
_STRING = rf'"({_INSIDE})"'
_NUMBER = r"[-+]?(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?"
_ID = r"(\d{1,19})"
_NAME = r'((?![\s:";])[^\s:";]++(?:[ \t]++[^\s:";]++)*?)'
_WORD = r'([^\s:";]++)'
_GAP = r"\s*+(?://[^\n]*+\s*+)*"
# A semicolon may be forgotten where a statement can only be over.
_END = rf"{_GAP}(?:;|(?={_KEYWORD})|\Z)"
_PAIRS = rf"((?:{_GAP}{_NUMBER}{_GAP}{_TEXT})*){_END}"
# For what is not looked into; a forgotten semicolon must not swallow what follows.
_UNTIL_SEMICOLON = rf'[^";\n]*+(?:(?:{_TEXT}|\n(?![ \t]*+{_KEYWORD}))[^";\n]*+)*;'

_PATTERNS = {
    "VERSION": [rf"(?:\s*+{_TEXT})?"],
    "NS_": [r"[ \t]*+:?(?:[ \t]++\w++(?![ \t]*+:))*[ \t]*+(?:\n[ \t]*+\w*+[ \t]*+(?=\n|\Z))*"],
    "BS_": [r"\s*+:?[\d \t:,;.]*+"],
    "BU_": [rf'\s*+:?(?:\s*+(?!{_KEYWORD})[^\s:;,"]++,?)*'],
    "BO_": [rf'\s++{_ID}\s++{_NAME}\s*+:\s*+(\d{{1,9}})\b(?:[ \t]*+(?!{_KEYWORD})([^\s:;,"]++))?'],
    "SG_": [
        (
            rf"\s++{_NAME}(?:\s++(M|m\d{{0,18}}M?))?\s*+:\s*+(\d{{1,9}})\s*+\|\s*+(\d{{1,9}})"
            rf"\s*+@\s*+([01])\s*+([-+])\s*+\(\s*+({_NUMBER})\s*+,\s*+({_NUMBER})\s*+\)"
            rf"\s*+\[[^\]\n]*+\]\s*+{_STRING}"
            rf'(?:[ \t]*+(?!{_KEYWORD})[^\s:;,"]++(?:[ \t]*+,\s*+)?)*'
        )
    ],
    "VAL_": [
        rf"\s++{_ID}\s++{_NAME}{_PAIRS}",
        rf"(?:\s++)()(?!\d){_NAME}{_PAIRS}",  # An environment variable's.
    ],
    "SIG_VALTYPE_": [rf"\s++{_ID}\s++{_NAME}\s*+:?\s*+(\d)\b{_END}"],
    "SG_MUL_VAL_": [
        rf"\s++{_ID}\s++{_WORD}\s++{_WORD}\s++((?:\d{{1,19}}\s*+-\s*+\d{{1,19}}[\s,]*+)+){_END}"
    ],
    "BO_TX_BU_": [rf'\s++{_ID}\s*+:([^:;"]*+);'],
    "BA_DEF_": [
        rf"\s++(?:(?:BO_|SG_|BU_|EV_)\s++)?{_STRING}\s*+(\w++)((?:[\s,]*+{_TEXT})*)[^;\"]*+;"
    ],
    "BA_DEF_DEF_": [rf"\s++{_STRING}\s*+({_TEXT}|[^\s;\"]++){_END}"],
    "BA_": [
        rf"\s*+{_STRING}\s++(BO_|SG_)\s++{_ID}(?:\s++{_NAME})??\s*+({_TEXT}|(?<=\s){_NUMBER}){_END}",
        rf"\s*+{_STRING}\s*+()()()({_TEXT}|{_NUMBER}){_END}",
        rf"\s*+{_TEXT}{_UNTIL_SEMICOLON}",  # A node's or environment variable's.
    ],
    "CM_": [
        rf"\s*+(?:(BO_|SG_)\s++{_ID}(?:\s++{_NAME})??\s*+)?{_TEXT}{_END}",
        rf"\s*+(?:BU_|EV_)\s++[^\s\"]++\s*+{_TEXT}{_END}",
    ],
}
_STATEMENTS = {
    keyword: [re.compile(text) for text in _PATTERNS.get(keyword, [_UNTIL_SEMICOLON])]
    for keyword in _KEYWORDS
}
_TALK = ("CM_", "VAL_", "VAL_TABLE_", "BA_")  # They have texts.
_HEAD = re.compile(r"[\s;]*+(?://[^\n]*+[\s;]*+)*(\w++)?")
_UNREAD = re.compile(rf"(?s:.*?)(?:;[ \t]*+(?=\n|\Z)|(?=\n[ \t]*+{_KEYWORD})|\Z)")
# Bounded: many keywords before one colon must not each look for it.
_DECLARATION = re.compile(
    r'(?<![\w"])(?:BO_\s++\d++\s++[^:"\n]{1,200}+:\s*+\d|SG_\s++[^:"\n]{1,200}+:\s*+\d++\s*+\|)'
)
PAIR = re.compile(rf"({_NUMBER}){_GAP}{_STRING}")


@dataclass(frozen=True, slots=True)
class Repair:
    """Something in a file that is not as it should be, and what was made of it.

    Attributes:
        line: 1-based, or None where it concerns the whole file.
        kind: A short word for programs.
        what: A sentence for a person, without the file's name and line.
    """

    line: int | None
    kind: str
    what: str


class Statement(NamedTuple):
    """One statement of a DBC text. A tuple, since a file has tens of thousands.

    Attributes:
        keyword: `BO_`, `SG_` … or "" where the statement does not start with one.
        line: 1-based line of its keyword.
        start: Offset of its keyword in the text.
        end: Offset behind it.
        parts: What the keyword's pattern captured; None where the statement cannot be read.
    """

    keyword: str
    line: int
    start: int
    end: int
    parts: tuple[str | None, ...] | None


def decode_text(data: bytes, *, name: str) -> tuple[str, list[Repair]]:
    """Return the text of a DBC file with plain line ends, and what had to be assumed for it.

    Raises:
        DbcError: The file is empty, larger than MAX_BYTES, or no text.
    """
    if len(data) > MAX_BYTES:
        raise DbcError(f"the file has {len(data)} bytes, at most {MAX_BYTES} are read", file=name)
    repairs = []
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
        repairs.append(Repair(1, "encoding", "the file is UTF-16, UTF-8 was expected"))
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            line = data.count(b"\n", 0, exc.start) + 1
            text, encoding = _decode_single_byte(data)
            repairs.append(
                Repair(line, "encoding", f"not UTF-8 here, the file is read as {encoding}")
            )
    nul = text.find("\0")
    if nul >= 0:
        raise DbcError(
            "a NUL character: this is no DBC text",
            file=name,
            line=text.count("\n", 0, nul) + 1,
            hint="give the DBC file itself, not an archive or another tool's project",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n"), repairs


def read_statements(text: str, *, name: str) -> list[Statement]:
    """Return all statements of a DBC text in its order.

    Raises:
        DbcError: A message or signal stands inside of a statement that cannot be read, so that it
            would be lost.
    """
    statements = []
    position, line, counted = 0, 1, 0
    while True:
        head = _HEAD.match(text, position)
        assert head is not None  # It matches nothing, too.
        start = head.end() if head[1] is None else head.start(1)
        if start == len(text):
            break
        line += text.count("\n", counted, start)
        counted = start
        keyword = head[1] if head[1] in _STATEMENTS else ""
        found = None
        for pattern in _STATEMENTS.get(keyword, ()):
            found = pattern.match(text, head.end())
            if found is not None:
                break
        parts = None if found is None else found.groups()
        if found is None:
            found = _UNREAD.match(text, start)
            assert found is not None  # It ends at the end of the text at the latest.
        position = found.end()
        statements.append(Statement(keyword, line, start, position, parts))
    _check_complete(text, statements, name)
    return statements


def unescape(text: str) -> str:
    """Return the content of a quoted text, given with its quotes or without."""
    return text.removeprefix('"').removesuffix('"').replace('\\"', '"')


def _decode_single_byte(data: bytes) -> tuple[str, str]:
    try:
        return data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:  # Five bytes have no character in cp1252.
        return data.decode("latin-1"), "latin-1"


def _check_complete(text: str, statements: list[Statement], name: str) -> None:
    """Hold what looks like a message or signal, anywhere in the text, against what was read."""
    read = {item.start for item in statements if item.keyword in ("BO_", "SG_")}
    starts = [item.start for item in statements]
    for found in _DECLARATION.finditer(text):
        if found.start() in read:
            continue
        index = bisect_right(starts, found.start()) - 1
        # Between statements it stands in a `//` comment; in a closed text it is talked about.
        if index >= 0 and found.start() < statements[index].end:
            around = statements[index]
            closed = around.keyword in _TALK and text[around.end - 1] == ";"
            if around.parts is None or not closed:
                raise DbcError(
                    f"{found[0].split()[0]} inside of a statement that cannot be read and began "
                    f"at line {around.line}",
                    file=name,
                    line=text.count("\n", 0, found.start()) + 1,
                    hint="look for a quote or semicolon that is missing at that line",
                )
