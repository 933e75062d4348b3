"""Checks the zip archives that torch writes before they are read.

A zip file stores every fact twice: in the central directory at its end and in a header before each member. Readers use
one or the other (torch uses both), and none rejects overlapping members, so one archive can hold different models for
different readers. Here both must agree, and the bytes they describe must exist.
Format: PKWARE's APPNOTE.TXT, sections 4.3.7 (local file header) and 4.3.16 (end of central directory).
"""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

_END, _END_64, _LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_HEADER = struct.Struct("<4s5H3L2H")
_IN_END_64 = 0xFFFFFFFF  # stands for a size or an offset that needs 64 bits and is stored elsewhere
_LIST_BYTES = 16 << 20  # most bytes of the central directory: more than 100,000 members
_UNPACKED = 20  # most unpacked bytes per byte of the file: compression takes about a tenth off weights
SLACK = 64 << 20  # bytes that a file of any size may claim


class ArchiveError(ValueError):
    """An archive contradicts itself, or torch did not write it."""


@dataclass(frozen=True)
class Archive:
    path: Path
    members: dict[str, zipfile.ZipInfo]  # by name, without the common folder
    stored: bool  # no member is compressed, so all can be memory-mapped

    def open(self, name: str) -> IO[bytes]:
        """A member's unpacked bytes as a stream, read by the standard library."""
        info = self.members[name]
        if hasattr(info, "CRC"):
            del info.CRC  # torch can be set to write no checksums; the field is then arbitrary
        return zipfile.ZipFile(self.path).open(info)


def read_archive(path: Path) -> Archive:
    """The content of an archive; ArchiveError if it contradicts itself or its bytes, BadZipFile without an index."""
    with path.open("rb") as file:
        _check_list(path, file)
        with zipfile.ZipFile(file) as archive:
            infos, end = archive.infolist(), archive.start_dir
        if not infos or min(info.header_offset for info in infos):
            raise ArchiveError("has something before the first member of its zip archive")
        _check_names(infos)
        place = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            name = f"{info.filename!r}"
            if info.header_offset < place:
                raise ArchiveError(f"has members in its zip archive that overlap, at {name}")
            place = _after(file, info)
            if place > end:
                raise ArchiveError(f"has a member of its zip archive that reaches into the list of contents, {name}")
    size, unpacked = path.stat().st_size, sum(info.file_size for info in infos)
    if unpacked > _UNPACKED * size + SLACK:
        raise ArchiveError(f"unpacks from {size:,} to {unpacked:,} bytes, which no weights do")
    members = {info.filename.partition("/")[2]: info for info in infos}
    return Archive(path, members, all(info.compress_type == zipfile.ZIP_STORED for info in infos))


def _check_list(path: Path, file: BinaryIO) -> None:
    """Check that the central directory ends the file and is not too large to read."""
    size = path.stat().st_size
    file.seek(max(size - _END.size, 0))
    end = file.read()
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("no list of contents")
        raise ArchiveError("has something behind its zip archive")
    length = _END.unpack(end)[5]
    if length == _IN_END_64 and size > _END.size + _LOCATOR_64.size:
        file.seek(size - _END.size - _LOCATOR_64.size)
        mark, _, where, _ = _LOCATOR_64.unpack(file.read(_LOCATOR_64.size))
        file.seek(where if mark == b"PK\6\7" and where < size else 0)
        record = file.read(_END_64.size)
        if len(record) < _END_64.size or not record.startswith(b"PK\6\6"):
            raise zipfile.BadZipFile("a damaged list of contents")
        length = _END_64.unpack(record)[8]
    if length > _LIST_BYTES:
        raise ArchiveError(f"has a zip archive whose list of contents is {length:,} bytes long")


def _check_names(infos: list[zipfile.ZipInfo]) -> None:
    """Check that all members lie in one folder and no name comes twice; torch's reader ignores case."""
    folders, seen = {info.filename.partition("/")[0] for info in infos}, set()
    if len(folders) > 1:
        raise ArchiveError(f"has {len(folders)} folders in its zip archive, torch's have one")
    for info in infos:
        other_name = info.filename != info.orig_filename  # cut at a zero, or from an extra field
        if other_name or info.filename.lower() in seen:
            raise ArchiveError(f"has {info.filename!r} in its zip archive twice")
        seen.add(info.filename.lower())


def _after(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """The offset at which a member ends. Its header must agree with the central directory, or defer to it."""
    member = f"has a member of its zip archive, {info.filename!r},"
    file.seek(info.header_offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(b"PK\3\4"):
        raise ArchiveError(f"has no {info.filename!r} where its zip archive's list of contents says")
    _, _, flags, method, _, _, _, packed, unpacked, name_length, extra_length = _HEADER.unpack(header)
    name = file.read(name_length)
    sizes_agree = all(
        size in (listed, _IN_END_64) or (size == 0 and flags & 8)  # 8: the sizes stand behind the member
        for size, listed in ((packed, info.compress_size), (unpacked, info.file_size))
    )
    if name != info.orig_filename.encode("utf-8" if flags & 0x800 else "cp437") or method != info.compress_type:
        raise ArchiveError(f"{member} under another name or in another form than listed")
    if not sizes_agree or (method == zipfile.ZIP_STORED and info.compress_size != info.file_size):
        raise ArchiveError(f"{member} of another size than listed")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or flags & 1:
        raise ArchiveError(f"{member} compressed or encrypted in a form that torch lacks")
    return info.header_offset + _HEADER.size + name_length + extra_length + info.compress_size
