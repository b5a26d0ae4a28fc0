"""What a shared library of 64 bits says of itself, read from the file: ELF (gABI) and Mach-O (mach-o/loader.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Binary:
    """A shared library.

    Attributes:
        kind: ELF or Mach-O.
        machine: the CPU, in platform.machine()'s words on Linux.
        exported: names of what it offers to others.
        needed: the libraries that it loads.
        glibc: the versions of glibc's symbols that it uses; empty for Mach-O.
        minimum: the oldest macOS that loads it; None for ELF.
        signed: whether it carries a signature, which Apple's ARM CPUs ask for.
    """

    kind: str
    machine: str
    exported: frozenset[str]
    needed: frozenset[str]
    glibc: frozenset[tuple[int, ...]] = frozenset()
    minimum: tuple[int, int] | None = None
    signed: bool = False


def read(path: Path) -> Binary:
    """The library at `path`.

    Raises:
        ValueError: it is neither.
    """
    data = path.read_bytes()
    if data[:6] == b"\x7fELF\x02\x01":
        return _elf(data)
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return _mach_o(data)
    raise ValueError(f"{path} is neither ELF nor Mach-O of 64 bits")


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _elf(data: bytes) -> Binary:
    machine = {62: "x86_64", 183: "aarch64"}.get(struct.unpack_from("<H", data, 18)[0], "another CPU")
    (headers,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # name, type, flags, address, offset, size, link, info, alignment, entry size
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, headers + i * size) for i in range(count)]
    exported, needed, glibc = set(), set(), set()
    for _, kind, _, _, offset, length, link, entries, _, _ in sections:
        names = sections[link][4] if link < count else 0
        if kind == 11:  # SHT_DYNSYM
            for at in range(offset + 24, offset + length, 24):
                name, info, other, section = struct.unpack_from("<IBBH", data, at)
                if (
                    section != 0 and info >> 4 in (1, 2) and other & 3 == 0
                ):  # defined, global or weak, default visibility
                    exported.add(_string(data, names + name))
        elif kind == 6:  # SHT_DYNAMIC
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<QQ", data, at)
                if tag == 1:  # DT_NEEDED
                    needed.add(_string(data, names + value))
        elif kind == 0x6FFFFFFE:  # SHT_GNU_verneed
            at = offset
            for _ in range(entries):
                _, versions, _, first, following = struct.unpack_from("<HHIII", data, at)
                version = at + first
                for _ in range(versions):
                    _, _, _, name, next_one = struct.unpack_from("<IHHII", data, version)
                    said = _string(data, names + name)
                    if said.startswith("GLIBC_"):
                        glibc.add(tuple(map(int, said.removeprefix("GLIBC_").split("."))))
                    version += next_one
                at += following
    return Binary("ELF", machine, frozenset(exported), frozenset(needed), frozenset(glibc))


def _mach_o(data: bytes) -> Binary:
    machine = {0x01000007: "x86_64", 0x0100000C: "aarch64"}.get(struct.unpack_from("<I", data, 4)[0], "another CPU")
    exported, needed, minimum, signed = frozenset[str](), set(), None, False
    at = 32
    for _ in range(struct.unpack_from("<I", data, 16)[0]):
        command, length = struct.unpack_from("<II", data, at)
        if command in (0xC, 0x80000018, 0x8000001F):  # LC_LOAD_DYLIB, weak, re-exported
            needed.add(_string(data, at + struct.unpack_from("<I", data, at + 8)[0]))
        elif command in (0x32, 0x24):  # LC_BUILD_VERSION, LC_VERSION_MIN_MACOSX
            (version,) = struct.unpack_from("<I", data, at + (12 if command == 0x32 else 8))
            minimum = version >> 16, version >> 8 & 0xFF
        elif command == 0x1D:  # LC_CODE_SIGNATURE
            signed = True
        elif command == 0x80000033:  # LC_DYLD_EXPORTS_TRIE
            offset, size = struct.unpack_from("<II", data, at + 8)
            exported = _trie(data[offset : offset + size])
        elif command in (0x22, 0x80000022):  # LC_DYLD_INFO: its last table
            offset, size = struct.unpack_from("<II", data, at + 40)
            exported = _trie(data[offset : offset + size])
        at += length
    return Binary("Mach-O", machine, exported, frozenset(needed), minimum=minimum, signed=signed)


def _trie(data: bytes) -> frozenset[str]:
    """The names in a table of exports, without the underscore that C's names begin with."""
    names, todo = set(), [(0, "")] if data else []
    while todo:
        at, name = todo.pop()
        terminal, at = _uleb(data, at)
        if terminal:
            names.add(name.removeprefix("_"))
        at += terminal
        children = data[at]
        at += 1
        for _ in range(children):
            edge = _string(data, at)
            node, at = _uleb(data, at + len(edge) + 1)
            todo.append((node, name + edge))
    return frozenset(names)


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned LEB128 number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
