"""The bytes of one log, unpacked on the way.

Rules:
 * gzip is known by its first bytes, not by the file's name.
 * Damaged or cut gzip data give everything that can be unpacked, then `damage` says what is wrong.
   (The standard library's reader raises and drops the last bytes it had.)
 * Memory is bounded: a block at a time, also for a file that unpacks to a million times its size.
"""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.errors import LogError

BLOCK = 256 * 1024  # Bytes. Candump gives some 5,000 frames from one, which is small and fast.
MAX_LINE = 1024 * 1024  # Bytes without a newline after which this is no line of any log.
_HEAD = 16 * 1024
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib: 15 bits of window + 16 for the gzip wrapper.


class Source:
    """One file, open for reading, once from its beginning to its end.

    Attributes:
        path: The file.
        head: Its first bytes, unpacked, at most 16 KiB, without a UTF-8 byte order mark; they are
            read again by `read`.
        damage: What is wrong with the gzip data, once that is known, else None.
        position: Bytes of the file that were read past this class, by a reader that maps the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        self.position = 0
        try:
            self._size = path.stat().st_size
            self._file = path.open("rb")
        except OSError as exc:
            raise _cannot_open(path, exc) from exc
        self._packed = b""
        self._unpacker: zlib._Decompress | None = None
        try:
            if self._size == 0 and path.is_file():
                raise LogError(  # noqa: TRY301 - closes the file below
                    "the file is empty", file=str(path), hint="record the log again"
                )
            self._packed = self._read_file()
            if self._packed.startswith(_GZIP_MAGIC):
                self._unpacker = zlib.decompressobj(_GZIP_WINDOW)
            self._ahead = b""
            while len(self._ahead) < _HEAD and (block := self._next(_HEAD)):
                self._ahead += block
        except BaseException:
            self._file.close()
            raise
        self._ahead = self._ahead.removeprefix(b"\xef\xbb\xbf")
        self.head = self._ahead[:_HEAD]

    @property
    def is_packed(self) -> bool:
        """Whether the file is gzip."""
        return self._unpacker is not None

    @property
    def progress(self) -> float:
        """Fraction of the file's bytes that have been read, 0 to 1."""
        if self._size == 0 or self._file.closed:
            return 1.0
        return min(1.0, max(self.position, self._file.tell()) / self._size)

    def read(self, size: int = BLOCK) -> bytes:
        """Return up to `size` further bytes, unpacked; b"" at the end."""
        if self._ahead:
            block, self._ahead = self._ahead[:size], self._ahead[size:]
            return block
        return self._next(size)

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces of whole lines.

        Text is read as Latin-1, which maps every byte: what matters in a log is ASCII. The last
        piece may lack its newline; a last line that was cut by damage is left out.
        """
        rest = b""
        while block := self.read():
            cut = block.rfind(b"\n") + 1
            if cut:
                yield (rest + block[:cut]).decode("latin-1")
                rest = block[cut:]
            else:
                rest += block
                if len(rest) > MAX_LINE:
                    yield rest.decode("latin-1")
                    rest = b""
        if rest and self.damage is None:
            yield rest.decode("latin-1")

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read_file(self) -> bytes:
        try:
            return self._file.read(BLOCK)
        except OSError as exc:
            raise LogError(
                f"reading failed: {exc.strerror}", file=str(self.path), hint="check the medium"
            ) from exc

    def _next(self, size: int) -> bytes:  # noqa: C901, PLR0911 - gzip's members and ends, in order
        if self._unpacker is None:
            block, self._packed = self._packed or self._read_file(), b""
            return block
        while self.damage is None:
            if not self._packed:
                self._packed = self._read_file()
            if self._unpacker.eof:
                # A gzip file may be several members one after the other, and padded with zeros.
                self._packed = self._packed.lstrip(b"\0")
                if not self._packed:
                    self._packed = self._read_file()
                if not self._packed:
                    return b""
                if not _GZIP_MAGIC.startswith(self._packed[:2]):
                    self.damage = "other bytes follow the gzip data"
                    return b""
                self._unpacker = zlib.decompressobj(_GZIP_WINDOW)
            elif not self._packed:
                self.damage = "the gzip data end early"
                return b""
            before = self._unpacker.copy()
            try:
                block = self._unpacker.decompress(self._packed, size)
            except zlib.error:
                self.damage = "the gzip data are damaged"
                return _salvage(before, self._packed)
            eof = self._unpacker.eof
            self._packed = self._unpacker.unused_data if eof else self._unpacker.unconsumed_tail
            if block:
                return block
        return b""


def _salvage(unpacker: "zlib._Decompress", packed: bytes) -> bytes:
    """Return what can be unpacked before the damage; zlib drops it when it raises."""
    whole = bytearray()
    with contextlib.suppress(zlib.error):
        for at in range(len(packed)):
            whole += unpacker.decompress(packed[at : at + 1])
    return bytes(whole)


def _cannot_open(path: Path, exc: OSError) -> LogError:
    if isinstance(exc, FileNotFoundError):
        return LogError("there is no such file", file=str(path), hint="check the path of the log")
    if isinstance(exc, IsADirectoryError):
        return LogError(
            "this is a folder, a log file was expected", file=str(path), hint="name the files in it"
        )
    return LogError(
        f"cannot be opened: {exc.strerror}", file=str(path), hint="check the file's permissions"
    )
