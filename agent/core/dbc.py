"""DBC bytes to messages and signals, with everything named that had to be repaired.

Rules:
 * A file loads whole or not at all: a message, or a signal, is either in `messages`, or named in a
   repair that says why it cannot be used, or the file is refused with the line.
 * Never a guess. What has two meanings (one name for two layouts) is set aside, and named.
 * What does not concern decoding never costs a file: comments, nodes, attributes, value tables.
   What does (`SG_`, `VAL_`, `SG_MUL_VAL_`, `SIG_VALTYPE_`) refuses it where it cannot be read.
 * Names are those of the file, or the long names that CANdb++ keeps in attributes.

Files are read here and not by cantools, which is the oracle of the tests: it refuses a file for one
orphan entry or one name, lists every value of a multiplexer range, and imports python-can. On a
2-core x86 VM its import costs 0.12 s and 22 MiB (0.5 s and 90 MiB where asammdf is installed), and
a file of 2,752 signals about 0.2 s and 13 MiB more; here it is 0.06 s and 5 MiB, and 0.1 s and
4 MiB.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from agent.core.dbcdetail import Details, message_key, read_details
from agent.core.dbcsignal import Signal, name_of, name_repair, read_signals
from agent.core.dbctext import Repair, Statement, decode_text, read_statements
from agent.core.model import CAN_EFF_FLAG, CAN_EFF_MASK
from agent.errors import DbcError

__all__ = ["DbcFile", "Message", "Repair", "Signal", "is_j1939", "parse_dbc"]

# CANdb++ keeps signals that belong to no message in a message of this name and id.
_UNSENT_NAME = "VECTOR__INDEPENDENT_SIG_MSG"
_UNSENT_ID = 0xC000_0000
_NOBODY = "Vector__XXX"

_FEW = 3  # Repairs of one kind that are told one by one.
_FEW_LINES = 20
# Where these cannot be read, a signal would be lost or decoded as something else.
_MUST_BE_READ = ("BO_", "SG_", "VAL_", "SG_MUL_VAL_", "SIG_VALTYPE_")
_ENDS_IN_SEMICOLON = ("VAL_", "SG_MUL_VAL_", "SIG_VALTYPE_", "BA_", "BA_DEF_DEF_", "CM_")


@dataclass(frozen=True, slots=True)
class Message:
    """One message as the file describes it.

    Attributes:
        name: Not always unique in its file; a file may describe one name under two ids.
        frame_id: 11 or 29 bits, without flags.
        length: Bytes, as the file says; frames may be shorter and longer.
        signals: In the file's order.
        senders: Names of nodes.
        is_j1939: The message is a J1939 parameter group.
        line: 1-based.
    """

    name: str
    frame_id: int
    is_extended_frame: bool
    length: int
    signals: tuple[Signal, ...]
    senders: tuple[str, ...]
    is_j1939: bool
    line: int
    _by_name: Mapping[str, Signal] = field(repr=False, compare=False)

    def signal(self, name: str) -> Signal:
        """Return the signal of that name.

        Raises:
            KeyError: There is none.
        """
        return self._by_name[name]


@dataclass(frozen=True, slots=True)
class DbcFile:
    """What a DBC file describes.

    Attributes:
        name: The file's name as the user gave it.
        messages: All that a frame can carry, in the file's order.
        unreachable: Messages whose id no frame can have, named in `repairs` and never matched.
            Together with `messages` as many as the file has `BO_` entries, repeated ones aside.
        repairs: In the order of their lines.
    """

    name: str
    messages: tuple[Message, ...]
    unreachable: tuple[Message, ...]
    repairs: tuple[Repair, ...]

    def is_j1939(self, message: Message) -> bool:
        """Tell whether a message of this file is a J1939 parameter group."""
        return message.is_j1939

    def told(self) -> Iterator[str]:
        """Yield the repairs as sentences; many of one kind become one sentence."""
        by_kind = sorted(self.repairs, key=lambda repair: repair.kind)
        for kind, group in groupby(by_kind, key=lambda repair: repair.kind):
            repairs = list(group)
            if len(repairs) <= _FEW:
                yield from (
                    item.what if item.line is None else f"line {item.line}: {item.what}"
                    for item in repairs
                )
            else:
                lines = ", ".join(str(item.line) for item in repairs[:_FEW_LINES])
                more = f" and {len(repairs) - _FEW_LINES} more" if len(repairs) > _FEW_LINES else ""
                yield f"{kind}: {len(repairs)}, lines {lines}{more}; the first: {repairs[0].what}"


def is_j1939(message: Message) -> bool:
    """Tell whether a message is a J1939 parameter group.

    It is where its `VFrameFormat` is J1939PG, or the file's `ProtocolType` is J1939, stated or by
    default, and its identifier is extended (SAE J1939-21 uses no other).
    """
    return message.is_j1939


def parse_dbc(data: bytes, *, name: str) -> DbcFile:
    """Return what a DBC file describes.

    Args:
        data: The file's bytes, in any common encoding.
        name: What the user calls the file, for messages.

    Raises:
        DbcError: The file is no DBC, or a message, a signal or what tells how to decode one cannot
            be read; carries the line.
    """
    text, repairs = decode_text(data, name=name)
    statements = read_statements(text, name=name)
    repairs += _check_statements(statements, text, name)
    drafts = _read_declarations(statements, repairs, name)
    declared: dict[int, set[str]] = {}
    for draft in drafts:
        declared.setdefault(draft.key, set()).update(name_of(item) for item in draft.signals)
    details, more = read_details(statements, declared)
    repairs += more
    messages: list[Message] = []
    unreachable: list[Message] = []
    for draft in drafts:
        kind = messages if _is_reachable(draft.key, draft.name) else unreachable
        kind.append(_message(draft, details, repairs, name))
    repairs += _double_repairs(messages)
    return DbcFile(
        name=name,
        messages=tuple(messages),
        unreachable=tuple(unreachable),
        repairs=tuple(sorted(repairs, key=lambda repair: repair.line or 0)),
    )


@dataclass(frozen=True, slots=True)
class _Draft:
    """A message while its signals are collected."""

    name: str
    key: int
    length: int
    sender: str
    line: int
    signals: list[Statement]

    def same_as(self, other: "_Draft") -> bool:
        """Tell whether two declarations say the same."""
        return (
            (self.name, self.key, self.length) == (other.name, other.key, other.length)
            and len(self.signals) == len(other.signals)
            and all(a.parts == b.parts for a, b in zip(self.signals, other.signals, strict=True))
        )


def _check_statements(statements: Sequence[Statement], text: str, name: str) -> list[Repair]:
    """Refuse what must be read and cannot be; return what is told of the rest."""
    repairs = []
    for item in statements:
        if item.parts is None and item.keyword in _MUST_BE_READ:
            raise DbcError(
                f"{item.keyword} entry cannot be read: {_begin(item, text)}",
                file=name,
                line=item.line,
                hint="mend or remove it: how signals are decoded depends on it",
            )
        if item.parts is None:
            kind = "broken-entry" if item.keyword else "unknown-entry"
            repairs.append(
                Repair(item.line, kind, f"left out, cannot be read: {_begin(item, text)}")
            )
        elif item.keyword in _ENDS_IN_SEMICOLON and text[item.end - 1] != ";":
            what = f"{item.keyword} entry without its semicolon"
            repairs.append(Repair(item.line, "no-semicolon", what))
    if not any(item.parts is not None for item in statements):
        raise DbcError(
            "no DBC entry in the file" if statements else "the file is empty",
            file=name,
            hint='a DBC file begins with VERSION "" and has BO_ and SG_ entries',
        )
    unknown = [item for item in statements if not item.keyword]
    if unknown and not any(item.keyword == "BO_" for item in statements):
        raise DbcError(
            "this is no DBC entry, and there is no message", file=name, line=unknown[0].line
        )
    return repairs


def _begin(statement: Statement, text: str) -> str:
    return text[statement.start : statement.end].split("\n", 1)[0][:60]


def _read_declarations(
    statements: Sequence[Statement], repairs: list[Repair], name: str
) -> list[_Draft]:
    """Return the messages with their `SG_` statements; one that is repeated alike counts once."""
    drafts: list[_Draft] = []
    current: _Draft | None = None
    for item in statements:
        match item.keyword, item.parts:
            case "BO_", (str(dbc_id), str(message), str(length), sender):
                key = message_key(int(dbc_id))
                repairs += _id_repairs(message, int(dbc_id), key, item.line)
                current = _Draft(message, key, int(length), sender or _NOBODY, item.line, [])
                drafts.append(current)
            case "SG_", _:
                if current is None:
                    raise DbcError(
                        "SG_ entry that belongs to no message",
                        file=name,
                        line=item.line,
                        hint="the line before it should be a BO_ or SG_ entry",
                    )
                current.signals.append(item)
            case "", _:
                # Perhaps a mistyped BO_: the signals behind it must not go to the message before.
                current = None
    first: dict[tuple[int, str], _Draft] = {}
    kept = []
    for draft in drafts:
        known = first.setdefault((draft.key, draft.name), draft)
        if known is not draft and known.same_as(draft):
            what = f"message {draft.name} repeats the one at line {known.line}; it counts once"
            repairs.append(Repair(draft.line, "repeated-message", what))
        else:
            kept.append(draft)
    return kept


def _id_repairs(message: str, dbc_id: int, key: int, line: int) -> Iterator[Repair]:
    """Yield what is to be told of a message's name and id."""
    if message == _UNSENT_NAME or dbc_id == _UNSENT_ID:
        what = f"{message} is CANdb++'s place for signals without a message; no frame carries them"
        yield Repair(line, "unsent-signals", what)
    elif not _is_reachable(key, message):
        what = f"message {message} has the id 0x{dbc_id:X}, which no frame can have; never matched"
        yield Repair(line, "impossible-id", what)
    elif key != dbc_id:
        what = f"message {message} has the 29-bit id 0x{dbc_id:X} without bit 31; taken as extended"
        yield Repair(line, "extended-id", what)
    repair = name_repair(message, line)
    if repair is not None:
        yield repair


def _is_reachable(key: int, message: str) -> bool:
    return not key & ~(CAN_EFF_FLAG | CAN_EFF_MASK) and message != _UNSENT_NAME


def _message(draft: _Draft, details: Details, repairs: list[Repair], file: str) -> Message:
    signals, more = read_signals(
        draft.signals, details, key=draft.key, message=draft.name, file=file
    )
    repairs += more
    senders = dict.fromkeys((draft.sender, *details.senders.get(draft.key, ())))
    reachable = _is_reachable(draft.key, draft.name)
    return Message(
        name=details.message_names.get(draft.key, draft.name),
        frame_id=draft.key & CAN_EFF_MASK if reachable else draft.key,
        is_extended_frame=bool(draft.key & CAN_EFF_FLAG),
        length=draft.length,
        signals=signals,
        senders=tuple(sender for sender in senders if sender != _NOBODY),
        is_j1939=details.is_j1939(draft.key),
        line=draft.line,
        _by_name={signal.name: signal for signal in signals},
    )


def _double_repairs(messages: Sequence[Message]) -> Iterator[Repair]:
    """Yield what is to be told of messages that share a name or an id; all of them are kept."""
    names: dict[str, Message] = {}
    ids: dict[tuple[int, bool], Message] = {}
    for message in messages:
        known = names.setdefault(message.name, message)
        if known is not message:
            what = f"message {message.name} stands at line {known.line} too, with another "
            other = "id" if known.frame_id != message.frame_id else "layout"
            yield Repair(message.line, "double-name", f"{what}{other}; both are kept")
        known = ids.setdefault((message.frame_id, message.is_extended_frame), message)
        if known is not message and known.name != message.name:
            what = f"message {message.name} has the id of {known.name} at line {known.line}"
            yield Repair(message.line, "double-id", f"{what}; both are kept, name the one you mean")
