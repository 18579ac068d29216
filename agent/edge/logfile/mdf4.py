"""The blocks of an ASAM MDF 4 file: groups of records, and their bytes, in file order.

    block   id "##XX" · 4 bytes · length u64 · number of links u64 · links u64 … · data
    HD → DG (data group) → CG (channel group: one kind of record) → CN (channel: a field of it)
         DG → DT, or DZ (deflated), or DL (list of these), or HL → DL

Rules:
 * Nothing is trusted: an address outside the file, a block of another kind or a chain that bites
   its tail raises `DamagedFile`, which costs that group and no other.
 * A data block that ends with the file instead of at its length gives what is there, and `damage`
   says so. In a file that was never finished (UnFinMF) this is how it must be.
 * Bytes come a block at a time; nothing is ever written to the disk.

Blocks as in ASAM MDF 4.1, chapters 5 and 6. Not read: column-oriented storage and the
compressions of MDF 4.2 and later.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

CHANNEL_VARIABLE = 1  # VLSD: the record holds an offset into signal data.
CHANNEL_MASTER = 2
CHANNEL_VIRTUAL_MASTER = 3
CHANNEL_VIRTUAL = 6
GROUP_IS_VARIABLE = 1  # cg_flags: its records are the signal data of a channel of another group.
SYNC_TIME = 1

_BLOCK_HEADER = struct.Struct("<4s4xQQ")
_IDENTIFICATION_SIZE = 64
_FLAGS_AT = 60  # Of the identification: what was never updated in an unfinished file.
_UNFINISHED_COUNTS = 0b1
_UNFINISHED_LENGTH = 0b100
_STEP = 1 << 20  # Bytes of a plain data block that are handed over at once.
_MAX_UNPACKED = 1 << 28  # Bytes; the standard advises 4 MiB.
_ZIP = struct.Struct("<2xBxIQQ")  # method, columns, unpacked size, packed size
_ZIP_DEFLATE, _ZIP_TRANSPOSED = 0, 1
_MAX_DEPTH = 4  # Channels within channels; bus logging has one level.


class DamagedFile(ValueError):  # noqa: N818 - control flow inside this package, never leaves it
    """The file is not as MDF 4 says; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A CC block: kind (0 none, 1 linear, 5 and 6 tables) and its values."""

    kind: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Channel:
    """A CN block: a field of a record.

    Attributes:
        name: As in the file.
        kind: One of CHANNEL_….
        sync: Of a master: SYNC_TIME or another quantity.
        data_type: 0 to 3 integers, 4 and 5 floats, from 6 bytes; odd ones below 6 are big-endian.
        bit: First bit within the first byte.
        byte: First byte within the record.
        bits: Width.
        data: Address of the signal data or of the group that holds them, or 0.
        conversion: From raw to physical value, or None.
    """

    name: str
    kind: int
    sync: int
    data_type: int
    bit: int
    byte: int
    bits: int
    data: int
    conversion: Conversion | None


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """A CG block: one kind of record.

    Attributes:
        address: Where the block is, which names it.
        record_id: What a record of an unsorted data group begins with.
        count: Number of records, or None where it was never written.
        is_variable: Whether its records are signal data of variable length.
        size: Bytes of a record without its id.
        channels: Its fields, those within others among them.
    """

    address: int
    record_id: int
    count: int | None
    is_variable: bool
    size: int
    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True)
class DataGroup:
    """A DG block: records of one kind (sorted), or of several, each with its id."""

    id_size: int
    groups: tuple[ChannelGroup, ...]
    data: int


@dataclass(slots=True)
class Mdf4:
    """One file in memory, mapped or loaded.

    Attributes:
        start_ns: ns since the epoch, as the header says.
        position: How far into the file data have been read, bytes.
        damage: What is missing from data that were given, or None.
    """

    raw: mmap | bytes
    start_ns: int = 0
    position: int = 0
    damage: str | None = None
    _unfinished: int = 0
    _known: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if len(self.raw) < _IDENTIFICATION_SIZE:
            raise DamagedFile("the file ends within its identification")
        if self.raw[8:9] != b"4":
            raise DamagedFile("it is MDF of another version than 4")
        if self.raw[:8] == b"UnFinMF ":
            (self._unfinished,) = struct.unpack_from("<H", self.raw, _FLAGS_AT)
        _, at, _ = self._block(_IDENTIFICATION_SIZE, b"##HD")
        (self.start_ns,) = self._unpack("<Q", at)

    def data_groups(self) -> list[DataGroup]:
        """Return every data group, up to the first that is damaged."""
        links, _, _ = self._block(_IDENTIFICATION_SIZE, b"##HD")
        groups: list[DataGroup] = []
        try:
            groups.extend(self._data_group(at) for at in self._chain(links[0], b"##DG"))
        except DamagedFile as exc:
            self.damage = str(exc)
        return groups

    def data(self, address: int) -> Iterator[bytes]:
        """Yield the bytes of a data group or of signal data, in order.

        Raises:
            DamagedFile: The blocks that hold them are not as they should be.
        """
        if not address:
            return
        name = bytes(self.raw[address : address + 4])
        if name == b"##HL":
            links, _, _ = self._block(address, b"##HL")
            yield from self.data(links[0])
        elif name == b"##DL":
            for at in self._chain(address, b"##DL"):
                links, _, _ = self._block(at, b"##DL")
                parts = [link for link in links[1:] if link]
                for part in parts:
                    yield from self._part(part, is_last=not links[0] and part == parts[-1])
        else:
            yield from self._part(address, is_last=True)

    def _data_group(self, address: int) -> DataGroup:
        links, at, _ = self._block(address, b"##DG")
        (id_size,) = self._unpack("<B", at)
        if id_size not in (0, 1, 2, 4, 8):
            raise DamagedFile("a record id of an impossible size")
        members = tuple(self._channel_group(group) for group in self._chain(links[1], b"##CG"))
        return DataGroup(id_size=id_size, groups=members, data=links[2])

    def _part(self, address: int, *, is_last: bool) -> Iterator[bytes]:
        name = bytes(self.raw[address : address + 4])
        if name == b"##DZ":
            yield self._unpacked(address)
            return
        if name not in (b"##DT", b"##SD", b"##RD"):
            raise DamagedFile("no data block where one should be")
        _, size, links = self._unpack("<4s4xQQ", address)
        at = address + _BLOCK_HEADER.size + 8 * links
        end = address + size
        if is_last and self._unfinished & _UNFINISHED_LENGTH and name == b"##DT":
            following = [known for known in self._known if known > address]
            end = min(following, default=len(self.raw))
        elif end > len(self.raw):
            self.damage = "the file ends within a data block"
            end = len(self.raw)
        while at < end:
            self.position = at
            yield bytes(self.raw[at : min(at + _STEP, end)])
            at += _STEP

    def _unpacked(self, address: int) -> bytes:
        _, at, end = self._block(address, b"##DZ", may_be_cut=True)
        method, columns, size, packed = self._unpack(_ZIP.format, at)
        if method not in (_ZIP_DEFLATE, _ZIP_TRANSPOSED):
            raise DamagedFile("a compression of a later version than MDF 4.1")
        if size > _MAX_UNPACKED:
            raise DamagedFile("a compressed block of an impossible size")
        self.position = at
        first = at + _ZIP.size
        stored = self.raw[first : min(first + packed, end)]
        try:
            data = zlib.decompressobj().decompress(stored, size) if size else b""
        except zlib.error as exc:
            raise DamagedFile("a block with damaged compression") from exc
        if len(data) < size:
            self.damage = "the file ends within a compressed block"
            if method == _ZIP_TRANSPOSED:  # The end of every record is missing.
                return b""
        if method == _ZIP_TRANSPOSED and columns > 1:
            rows = len(data) // columns
            matrix = bytearray(rows * columns)
            for column in range(columns):
                matrix[column::columns] = data[column * rows : (column + 1) * rows]
            data = bytes(matrix) + data[rows * columns :]
        return data

    def _channel_group(self, address: int) -> ChannelGroup:
        links, at, _ = self._block(address, b"##CG")
        record_id, count, flags, data_size, invalid_size = self._unpack("<QQH6xII", at)
        is_variable = bool(flags & GROUP_IS_VARIABLE)
        return ChannelGroup(
            address=address,
            record_id=record_id,
            count=None if self._unfinished & _UNFINISHED_COUNTS else count,
            is_variable=is_variable,
            size=data_size + invalid_size,
            channels=() if is_variable else tuple(self._channels(links[1])),
        )

    def _channels(self, address: int, depth: int = 0) -> Iterator[Channel]:
        if depth > _MAX_DEPTH:
            raise DamagedFile("channels within channels without an end")
        for at in self._chain(address, b"##CN"):
            links, data_at, _ = self._block(at, b"##CN")
            kind, sync, data_type, bit, byte, bits = self._unpack("<BBBBII", data_at)
            yield Channel(
                name=self._text(links[2]),
                kind=kind,
                sync=sync,
                data_type=data_type,
                bit=bit,
                byte=byte,
                bits=bits,
                data=links[5],
                conversion=self._conversion(links[4]),
            )
            if links[1] and self.raw[links[1] : links[1] + 4] == b"##CN":
                yield from self._channels(links[1], depth + 1)

    def _conversion(self, address: int) -> Conversion | None:
        if not address:
            return None
        _, at, _ = self._block(address, b"##CC")
        kind, count = self._unpack("<B5xH", at)
        return Conversion(kind, self._unpack(f"<{count}d", at + 24))

    def _text(self, address: int) -> str:
        _, at, end = self._block(address, b"##TX")
        return bytes(self.raw[at:end]).split(b"\0", 1)[0].decode("utf-8", "replace")

    def _chain(self, address: int, name: bytes) -> Iterator[int]:
        """Yield the addresses of a block and of those that follow it by their first link."""
        seen: set[int] = set()
        while address:
            if address in seen:
                raise DamagedFile("a chain of blocks that bites its tail")
            seen.add(address)
            links, _, _ = self._block(address, name)
            yield address
            if not links:
                raise DamagedFile(f"a {name.decode()} block without links")
            address = links[0]

    def _block(
        self, address: int, name: bytes, *, may_be_cut: bool = False
    ) -> tuple[tuple[int, ...], int, int]:
        """Return the links of a block and where its data begin and end."""
        found, size, count = self._unpack("<4s4xQQ", address)
        if found != name:
            raise DamagedFile(f"no {name.decode()} block where one should be")
        self._known.add(address)
        links_at = address + _BLOCK_HEADER.size
        end = address + size
        if end > len(self.raw):
            if not may_be_cut:
                raise DamagedFile(f"the file ends within a {name.decode()} block")
            end = len(self.raw)
        if links_at + 8 * count > end:
            raise DamagedFile(f"a {name.decode()} block with an impossible number of links")
        return self._unpack(f"<{count}Q", links_at), links_at + 8 * count, end

    def _unpack(self, layout: str, at: int) -> tuple[Any, ...]:
        try:
            return struct.unpack_from(layout, self.raw, at)
        except (struct.error, OverflowError) as exc:
            raise DamagedFile("the file ends where a block should be") from exc
