"""A file's bytes, decompressed piece by piece if necessary, and never more of them than is plausible."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from rescoldo.data.foreign import BZIP2, COMPRESSED, COMPRESSIONS, GZIP, WORKBOOK, XZ, ZIP, ZSTD, kind_of
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.extras import missing
from rescoldo.files import quote

HEAD = 64 << 10  # bytes used to detect a file's kind
MAX_RATIO = 300  # maximum ratio of unpacked to packed bytes, above FREE_BYTES: text does not compress better
FREE_BYTES = 64 << 20
MAX_XZ_MEMORY = 512 << 20
_PIECE = 256 << 10
_NOT_DATA = ("__MACOSX/", ".DS_Store", "Thumbs.db")
_DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError)


@dataclass(frozen=True)
class Packed:
    """A file and access to its content.

    Attributes:
        name: the content's name: the file's without .gz and the like; that of the member of a ZIP.
        kind: the content's kind (data.foreign's kinds; WORKBOOK is distinguished from ZIP).
        head: the content's first bytes.
        notes: what was detected, for people.
        compression: the kind of compression; "" if there is none.
    """

    path: Path
    name: str
    kind: str
    head: bytes
    notes: tuple[str, ...]
    compression: str
    _open: Callable[[], AbstractContextManager[tuple[IO[bytes], Callable[[], int]]]]

    @contextmanager
    def open(self) -> Iterator[tuple[IO[bytes], Callable[[], float]]]:
        """The content as a stream (with `peek`), and a function for the fraction of the file read so far.

        Raises:
            RescoldoError: it cannot be read, is damaged, or unpacks to more than is plausible.
        """
        with ExitStack() as stack:
            with _in_words(self.path):  # not around what the caller does
                size = max(1, self.path.stat().st_size)
                stream, packed = stack.enter_context(self._open())
            checked = io.BufferedReader(_Checked(stream, packed if self.compression else None, self.path), _PIECE)
            yield cast(IO[bytes], checked), lambda: min(1.0, packed() / size)

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """The content as a regular file, for readers that need to seek; unpacked into a temporary file if necessary.

        Raises:
            RescoldoError: see `open`; or there is not enough disk space.
        """
        if not self.compression:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="rescoldo-") as folder:
            place = Path(folder) / "content"
            with self.open() as (stream, _), open(place, "wb") as file:
                while piece := stream.read(_PIECE):
                    file.write(piece)
            yield place


def packed(path: Path) -> Packed:
    """Detect a file's kind from its first bytes, through its compression.

    Raises:
        RescoldoError: it is missing, a directory, unreadable, damaged, or an archive of several files.
    """
    with _in_words(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RescoldoError(
                "is not a regular file, and is read more than once", where=str(path), fix="save it first"
            )
        with open(path, "rb") as file:
            kind = kind_of(file.read(HEAD))
        if kind == ZIP:
            return _zipped(path)
        if kind in COMPRESSED:
            name = path.stem if path.suffix.lower() in COMPRESSIONS else path.name
            found = _look(path, name, kind, (f"compressed with {kind}",), lambda: _unpacking(path, kind))
            if found.kind in (*COMPRESSED, ZIP):
                raise RescoldoError(
                    f"is compressed twice ({kind}, then {found.kind})", where=str(path), fix="unpack it"
                )
            return found
        return _look(path, path.name, "", (), lambda: _plain(path))


def _look(path: Path, name: str, compression: str, notes: tuple[str, ...], opener: Any) -> Packed:
    first = Packed(path, name, "", b"", notes, compression, opener)
    with first.open() as (stream, _):
        head = stream.read(HEAD)
    kind = kind_of(head)
    if head[257:262] == b"ustar":
        raise RescoldoError(
            "is a tar archive of several files", where=str(path), fix=f"tar -tf {quote(path)} lists them"
        )
    if kind == ZIP and compression:
        kind = WORKBOOK if name.lower().endswith((".xlsx", ".xlsm")) else ZIP
    return Packed(path, name, kind, head, notes, compression, opener)


def _zipped(path: Path) -> Packed:
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if not one.is_dir()]
        names = {one.filename for one in members}
        if "xl/workbook.xml" in names:
            return Packed(path, path.name, WORKBOOK, b"PK\x03\x04", (), "", lambda: _plain(path))
        if "[Content_Types].xml" in names or "mimetype" in names:
            what = "is an Office document without a table (.docx, .pptx, .ods)"
            raise RescoldoError(what, where=str(path), fix="save the table as .xlsx or CSV")
        real = [one for one in members if not any(part in one.filename for part in _NOT_DATA)]
        if len(real) != 1:
            listed = ", ".join(one.filename for one in real[:8])
            raise RescoldoError(
                f"is a ZIP archive of {len(real)} files: expected one ({listed})", where=str(path),
                fix=f"unzip {quote(path)}, and import one after the other",
            )  # fmt: skip
        if real[0].flag_bits & 1:
            raise RescoldoError("is a ZIP archive with a password", where=str(path), fix="unpack it first")
    member = real[0].filename
    found = _look(path, Path(member).name, ZIP, (f"{member} in a ZIP archive",), lambda: _member(path, member))
    if found.kind in (*COMPRESSED, ZIP):
        raise RescoldoError(f"is compressed twice (ZIP, then {found.kind})", where=str(path), fix="unpack it")
    return found


@contextmanager
def _plain(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    with open(path, "rb", buffering=0) as file:
        yield file, file.tell


@contextmanager
def _member(path: Path, member: str) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive, archive.open(member) as stream:
        yield stream, file.tell


@contextmanager
def _unpacking(path: Path, kind: str) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    with open(path, "rb") as file:
        stream: Any
        if kind == GZIP:
            stream = gzip.GzipFile(fileobj=file)
        elif kind == BZIP2:
            stream = bz2.BZ2File(file)
        elif kind == XZ:
            stream = _Xz(file)
        else:
            stream = _zstd(file, path)
        with contextlib.closing(stream):
            yield stream, file.tell


def _zstd(file: IO[bytes], path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise missing(
            "tables", f"{ZSTD} is unpacked by the package pyarrow", where=str(path), otherwise=f"zstd -d {quote(path)}"
        ) from None
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


class _Xz:
    """An .xz stream whose dictionary is limited to MAX_XZ_MEMORY (lzma.LZMAFile has no limit)."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._decoder = file, self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end."""
        while True:
            if self._decoder.eof:
                rest = self._decoder.unused_data.lstrip(b"\0") or self._file.read(_PIECE).lstrip(b"\0")
                if not rest:
                    return b""
                self._decoder = self._new()  # an .xz file may hold several streams
                piece = self._decoder.decompress(rest, size)
            elif self._decoder.needs_input:
                data = self._file.read(_PIECE)
                if not data:
                    raise EOFError("the file ends before its content does")
                piece = self._decoder.decompress(data, size)
            else:
                piece = self._decoder.decompress(b"", size)
            if piece:
                return piece

    def close(self) -> None:
        """Nothing: the file is the caller's."""


class _Checked(io.RawIOBase):
    """Stops if the content is implausibly larger than the file."""

    def __init__(self, stream: Any, taken: Callable[[], int] | None, path: Path) -> None:
        self._stream, self._taken, self._path, self._given = stream, taken, path, 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        with _in_words(self._path):
            piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        self._given += len(piece)
        if self._taken and self._given > FREE_BYTES and self._given > MAX_RATIO * max(1, self._taken()):
            what = f"unpacks to more than {MAX_RATIO} times its size: not a dataset, or a decompression bomb"
            raise RescoldoError(what, where=str(self._path), fix="unpack it yourself if you know what it is")
        return len(piece)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turns the errors of the system and of decompressors into RescoldoError."""
    try:
        yield
    except FileNotFoundError:
        raise RescoldoError("there is no such file", where=str(path), fix="check the path") from None
    except IsADirectoryError:
        raise RescoldoError("is a directory", where=str(path), fix="name the file in it") from None
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RescoldoError(
                f"cannot be read: {error.strerror or error}", where=str(path), exit_code=EXIT_FAILURE
            ) from None
        if isinstance(error, UnicodeError):
            raise
        said = " ".join(str(error).split())[:120]
        raise RescoldoError(f"is damaged or cut off ({said})", where=str(path), fix="fetch or pack it again") from None
