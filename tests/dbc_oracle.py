"""What cantools makes of a DBC file and a payload: the oracle for `agent.core.dbc` and `decode`.

It shares no code with the agent. Files that cantools refuses are first mended here line by line,
with plain regular expressions; names that it does not take get a prefix for the while.
"""

import logging
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from copy import copy
from functools import cache

import cantools
from cantools.database import DecodeError
from cantools.database.can import Database, Message, Signal
from cantools.database.errors import Error
from cantools.database.namedsignalvalue import NamedSignalValue

from agent.core.dbc import DbcFile
from agent.core.dbc import Message as OurMessage
from agent.core.decode import compile_extract, field_of, physical

PREFIX = "X__"

Value = int | float | str | NamedSignalValue

# It warns of doubles, which are ours to name.
logging.getLogger("cantools").setLevel(logging.ERROR)


def text_of(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def load(data: bytes) -> Database:
    """Return cantools' reading of a file, of the file as it is where cantools takes it."""
    text = text_of(data)
    try:
        return _load(text)
    except Error:
        return _load(_mend(text))


def original(name: str) -> str:
    return name.removeprefix(PREFIX)


def _load(text: str) -> Database:
    database = cantools.database.load_string(text, "dbc", strict=False)
    assert isinstance(database, Database)
    return database


def _mend(text: str) -> str:
    text = re.sub(r'^CM_ (?:[^"]*"[^"]*")\s*;', "", text, flags=re.MULTILINE)
    text = re.sub(r"\b(BO_|SG_|VAL_|SIG_VALTYPE_)( +)(\d+)\b", _mend_id, text)
    text = re.sub(r"^( *SG_ +)(\d)", rf"\1{PREFIX}\2", text, flags=re.MULTILINE)
    text = re.sub(r"^((?:BO_|VAL_) +\d+ +)(\d)", rf"\1{PREFIX}\2", text, flags=re.MULTILINE)
    text = re.sub(r'(^VAL_ \d+ .*")\s*$', r"\1 ;", text, flags=re.MULTILINE)
    declared: dict[str, set[str]] = defaultdict(set)
    current = ""
    kept: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"BO_ +(\d+)", line):
            current = found[1]
        elif not line.strip():
            current = current if kept and kept[-1].startswith(" SG_") else ""
        if found := re.match(r" *SG_ +(\w+)", line):
            declared[current].add(found[1])
            if _is_impossible(current):
                continue
        if re.match(r"BO_ ", line) and _is_impossible(current):
            continue
        kept.append(line)
    return "\n".join(line for line in kept if not _is_orphan(line, declared))


def _mend_id(found: re.Match[str]) -> str:
    number = int(found[3])
    if 0x800 <= number <= 0x1FFFFFFF:
        number |= 0x80000000
    return f"{found[1]}{found[2]}{number}"


def _is_impossible(number: str) -> bool:
    return number != "" and bool(int(number) & 0x60000000)


def _is_orphan(line: str, declared: dict[str, set[str]]) -> bool:
    found = re.match(r"(?:VAL_|SIG_VALTYPE_) +(\d+) +(\w+)", line)
    return found is not None and found[2] not in declared.get(found[1], set())


class Oracle:
    """What cantools decodes from the payloads of one message, signal by signal where it must."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self._by_name = {signal.name: signal for signal in message.signals}
        self._mend_multiplexers()
        self._alone = cache(self._message_alone)

    @property
    def names(self) -> list[str]:
        """Signals whose name means one layout."""
        names = [signal.name for signal in self.message.signals]
        return [name for name in names if names.count(name) == 1]

    def _mend_multiplexers(self) -> None:
        """Hang signals on their multiplexer where cantools 45 leaves them without.

        It renames a multiplexer that has a long name and not what refers to it, and it takes one
        that only `SG_MUL_VAL_` names, without the mark M, for none. It never decodes what hangs
        on either. Long names exist because CANdb++ cuts names to 32 characters.
        """
        for signal in self.message.signals:
            short = signal.multiplexer_signal
            if short is not None:
                found = [name for name in self._by_name if name.startswith(short)]
                assert len(found) == 1 or short in found
                signal.multiplexer_signal = short if short in found else found[0]
                self._by_name[signal.multiplexer_signal].is_multiplexer = True
        self.message.refresh(strict=False)

    def raw(self, payload: bytes) -> dict[str, Value]:
        return self._decode(payload, choices=False, scaling=False)

    def physical(self, payload: bytes) -> dict[str, Value]:
        return self._decode(payload, choices=False, scaling=True)

    def texts(self, payload: bytes) -> dict[str, Value]:
        values = self._decode(payload, choices=True, scaling=True)
        return {
            name: str(v) if isinstance(v, NamedSignalValue) else v for name, v in values.items()
        }

    def _decode(self, payload: bytes, *, choices: bool, scaling: bool) -> dict[str, Value]:
        try:
            return self.message.decode_simple(
                payload, decode_choices=choices, scaling=scaling, allow_truncated=True
            )
        except (DecodeError, KeyError):
            # A neighbour that overlaps, leaves the message or has the same name (KeyError), or a
            # multiplexer whose value means nothing.
            decoded = {}
            for name in self.names:
                value = self._decode_alone(name, payload, choices=choices, scaling=scaling)
                if value is not None:
                    decoded[name] = value
            return decoded

    def _decode_alone(
        self, name: str, payload: bytes, *, choices: bool, scaling: bool
    ) -> Value | None:
        try:
            values = self._alone(name).decode_simple(
                payload, decode_choices=choices, scaling=scaling, allow_truncated=True
            )
        except DecodeError as exc:
            if "expected multiplexer id" not in str(exc):
                raise
            return None
        return values.get(name)

    def can_be_there(self, name: str, longest: int) -> bool:
        """Tell whether a payload of so many bytes can hold a signal and what selects it."""
        signal = self._by_name[name]
        if signal.multiplexer_signal is not None and signal.multiplexer_ids:
            selector = self._by_name[signal.multiplexer_signal]
            if min(signal.multiplexer_ids) >= 1 << selector.length:
                return False
        return self._alone(name).length <= longest

    def _message_alone(self, name: str) -> Message:
        """Return a message of one signal and its multiplexers, as long as it needs to be."""
        # Taken for itself it need not be a multiplexer: each of its values is one.
        chain: list[Signal] = [copy(self._by_name[name])]
        chain[0].is_multiplexer = False
        while chain[-1].multiplexer_signal is not None:
            chain.append(self._by_name[chain[-1].multiplexer_signal])
        length = max(max(bits_of(signal)) // 8 + 1 for signal in chain)
        return Message(
            frame_id=0,
            name=name,
            length=length,
            signals=chain,
            strict=False,
            is_extended_frame=True,
        )

    def payloads(self, rng: random.Random, lengths: Iterable[int]) -> Iterator[bytes]:
        """Yield random payloads of these lengths, and one in which each signal is present."""
        for length in lengths:
            yield self._stamped(rng.randbytes(length), rng.choice(self.message.signals), rng)
        for fill in (b"\x00", b"\xff"):
            yield fill * self.message.length
        for signal in self.message.signals:
            if signal.multiplexer_ids:
                length = self._message_alone(signal.name).length
                yield self._stamped(rng.randbytes(length), signal, rng)

    def _stamped(self, payload: bytes, signal: Signal, rng: random.Random) -> bytes:
        """Return the payload with the multiplexers above a signal set so that it is there."""
        stamped = bytearray(payload)
        while signal.multiplexer_signal is not None and signal.multiplexer_ids:
            raw = rng.choice(signal.multiplexer_ids)
            signal = self._by_name[signal.multiplexer_signal]
            _write(stamped, signal, raw)
        return bytes(stamped)


def differences(file: DbcFile, database: Database, lengths: Iterable[int]) -> Iterator[str]:
    """Yield a sentence for whatever the agent reads or decodes otherwise than cantools."""
    rng = random.Random(2026)  # The same payloads in every run.
    lengths = list(lengths)
    ours = {(m.frame_id, m.is_extended_frame, m.name): m for m in file.messages}
    for theirs in database.messages:
        message = ours.pop((theirs.frame_id, theirs.is_extended_frame, original(theirs.name)), None)
        if message is None:
            yield f"message {theirs.name} is missing"
        elif theirs.signals:
            yield from _message_differences(message, Oracle(theirs), rng, lengths)
    yield from (f"message {name} is not in the file" for _, _, name in ours)


def _message_differences(
    message: OurMessage, oracle: Oracle, rng: random.Random, lengths: Iterable[int]
) -> Iterator[str]:
    names = oracle.names
    if {original(name) for name in names} != {signal.name for signal in message.signals}:
        yield f"{message.name} has other signals"
        return
    fields = [field_of(message, original(name)) for name in names]
    extract = compile_extract(fields)
    # Other signals, other code: what is read together may share a word.
    pairs = [
        rng.sample(range(len(fields)), min(2, len(fields))) for _ in range(min(5, len(fields)))
    ]
    apart = [(pair, compile_extract([fields[index] for index in pair])) for pair in pairs]
    absent = set(names)
    for payload in oracle.payloads(rng, lengths):
        raws = extract(payload)
        for pair, extract_pair in apart:
            if repr(extract_pair(payload)) != repr(tuple(raws[index] for index in pair)):
                yield f"{message.name} alone or together: {payload.hex()}"
        expected = [f(payload) for f in (oracle.raw, oracle.physical, oracle.texts)]
        for name, field, raw in zip(names, fields, raws, strict=True):
            found: list[Value | None] = [None] * 3
            if raw is not None:
                absent.discard(name)
                value = physical(field, raw)
                found = [raw, value, field.choices.get(int(raw), value) if field.choices else value]
            wanted = [values.get(name) for values in expected]
            # repr tells -0.0 from 0.0 and 1 from 1.0, and takes NaN for NaN.
            if repr(found) != repr(wanted):
                yield f"{message.name}.{name}: {found} instead of {wanted} from {payload.hex()}"
    longest = max(lengths, default=0)
    for name in absent:
        if oracle.can_be_there(name, longest):
            yield f"{message.name}.{name} was never there"


def bits_of(signal: Signal) -> list[int]:
    """Return the signal's bits from the least significant one, as 8 * byte + bit."""
    if signal.byte_order == "little_endian":
        return [signal.start + index for index in range(signal.length)]
    bits, bit = [], signal.start
    for _ in range(signal.length):
        bits.append(bit)
        bit = bit - 1 if bit % 8 else bit + 15
    return bits[::-1]


def _write(payload: bytearray, signal: Signal, raw: int) -> None:
    """Write a raw value into those bits of the payload that were received."""
    for index, bit in enumerate(bits_of(signal)):
        if bit // 8 < len(payload):
            payload[bit // 8] &= ~(1 << bit % 8)
            payload[bit // 8] |= (raw >> index & 1) << bit % 8
