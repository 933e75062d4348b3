"""The zip archives that torch writes, looked over before anything relies on them.

A zip file says everything twice: in the list of contents at its end and in a header before each member. Readers differ
in which they believe, torch maps members where the header says and takes their length from elsewhere, and none of
them minds that members lie over each other. So one archive can hold one model for one reader and another, or
compressed bytes, for the next. Here an archive must say one thing only, and what it says must be there.

Format: PKWARE's APPNOTE.TXT, sections 4.3.7 (header of a member) and 4.3.16 (end of the list).
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

_END, _END_64, _LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_HEADER = struct.Struct("<4s5H3L2H")
_IN_END_64 = 0xFFFFFFFF  # a size or an offset that stands elsewhere, because it needs 64 bits
_LIST_BYTES = 16 << 20  # of the list of contents: more than 100,000 members
_UNPACKED = 20  # times the size of the file: weights shrink by a tenth, never to a twentieth
SLACK = 64 << 20  # bytes that any file may claim, however small


class ArchiveError(ValueError):
    """Why an archive is not read."""


@dataclass(frozen=True)
class Archive:
    """What an archive holds.

    Attributes:
        members: by name, without the folder that all of them lie in.
        stored: no member is compressed, so all can be mapped.
    """

    path: Path
    members: dict[str, zipfile.ZipInfo]
    stored: bool

    def open(self, name: str) -> IO[bytes]:
        """A member as a stream of its unpacked bytes, by the standard library's reader."""
        info = self.members[name]
        if hasattr(info, "CRC"):
            del info.CRC  # torch can be told to write none, and then there is a number all the same
        return zipfile.ZipFile(self.path).open(info)


def look_into(path: Path) -> Archive:
    """The contents of an archive of torch's, every statement in it checked.

    Raises:
        ArchiveError: it says two things, or something that is not so.
        zipfile.BadZipFile: it has no list of contents (cut short), or a damaged one.
    """
    with path.open("rb") as file:
        _check_list(path, file)
        with zipfile.ZipFile(file) as archive:
            infos, end = archive.infolist(), archive.start_dir
        if not infos or min(info.header_offset for info in infos):
            raise ArchiveError("has something before the first member of its zip archive")
        _check_names(infos)
        place = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.header_offset < place:
                raise ArchiveError(f"has members in its zip archive that lie over each other, at {info.filename!r}")
            place = _after(file, info)
            if place > end:
                raise ArchiveError(
                    f"has a member of its zip archive that reaches into the list of contents, {info.filename!r}"
                )
    size, unpacked = path.stat().st_size, sum(info.file_size for info in infos)
    if unpacked > _UNPACKED * size + SLACK:
        raise ArchiveError(f"unpacks from {size:,} to {unpacked:,} bytes, which no weights do")
    members = {info.filename.partition("/")[2]: info for info in infos}
    return Archive(path, members, all(info.compress_type == zipfile.ZIP_STORED for info in infos))


def _check_list(path: Path, file: BinaryIO) -> None:
    """The end of the list of contents is the end of the file, and the list is of a size that can be read."""
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
    """All in one folder, none twice: torch's reader takes upper and lower case for the same."""
    folders, seen = {info.filename.partition("/")[0] for info in infos}, set()
    if len(folders) > 1:
        raise ArchiveError(f"has {len(folders)} folders in its zip archive, torch's have one")
    for info in infos:
        if info.filename.lower() in seen or info.filename != info.orig_filename:  # cut at a zero, or said elsewhere
            raise ArchiveError(f"has {info.filename!r} in its zip archive twice")
        seen.add(info.filename.lower())


def _after(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where a member ends; its header must say what the list says, or leave it to the list."""
    file.seek(info.header_offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(b"PK\3\4"):
        raise ArchiveError(f"has no {info.filename!r} where its zip archive's list of contents says")
    _, _, flags, method, _, _, _, packed, unpacked, name_length, extra_length = _HEADER.unpack(header)
    name = file.read(name_length)
    sizes_agree = all(
        said in (listed, _IN_END_64) or (said == 0 and flags & 8)  # 8: the sizes stand behind the member
        for said, listed in ((packed, info.compress_size), (unpacked, info.file_size))
    )
    if name != info.orig_filename.encode("utf-8" if flags & 0x800 else "cp437") or method != info.compress_type:
        raise ArchiveError(
            f"has a member of its zip archive, {info.filename!r}, under another name or in another form than listed"
        )
    if not sizes_agree or (method == zipfile.ZIP_STORED and info.compress_size != info.file_size):
        raise ArchiveError(f"has a member of its zip archive, {info.filename!r}, of another size than listed")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or flags & 1:
        raise ArchiveError(
            f"has a member of its zip archive, {info.filename!r}, compressed or encrypted in a form that torch lacks"
        )
    return info.header_offset + _HEADER.size + name_length + extra_length + info.compress_size
