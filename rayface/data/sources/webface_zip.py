"""Source: zip archives of folders of images, as WebFace260M has them (0_0.zip, 0_1.zip, ...), not unpacked to disk."""

from __future__ import annotations

import itertools
import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from rayface.data.decode import SNIFF_BYTES, image_format
from rayface.data.shards.samples import Fault
from rayface.data.shards.tar import Fetch, is_safe_name
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings, archives_below
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.first_image import size_of_first
from rayface.data.sources.folder import is_hidden
from rayface.data.sources.image_file import has_image_suffix
from rayface.storage import DataError, Source, forward_reads, join, list_entries, one_line, open_binary

_MAGIC = b"PK\3\4"
_LOCAL = struct.Struct("<4s5H3I2H")  # header of a member, beside its data
_END_MAGIC, _END_64_MAGIC = b"PK\5\6", b"PK\6\6"
_END = struct.Struct("<4s4H2IH")  # the end of an archive, behind which a comment may follow
_END_64 = struct.Struct("<4sQ2H2I4Q")  # of a zip64 archive, before that and a locator
_LOCATOR_BYTES, _COMMENT_BYTES = 20, 65_535
_EXTRA_BYTES = 64  # of a header, read with it
_MAX_BYTES = 64 << 20  # of an image
_ENCRYPTED, _UTF8 = 0x1, 0x800


class _Member(NamedTuple):
    """A member as the archive's directory describes it, in columns of the listing."""

    name: bytes
    offset: int
    packed_bytes: int
    num_bytes: int
    crc: int
    method: int


class WebfaceZipSource(DatasetSource):
    """A zip archive, or all of a folder, which are one label space; a part is an archive.

    The identity of an image is the name of the folder that it is in. Images are read out of the archive, and their
    checksums are compared.
    """

    kind = "webface-zip"
    expects = "zip archives of folders of images, a folder for each identity"

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        super().__init__(src, settings)
        self._paths: list[str] = []
        self._names: list[str] = []
        self._not_read: list[Fault] = []

    def prepare(self, near: str) -> None:
        if self.root.partition("?")[0].lower().endswith(".zip"):
            self._paths, self._names = [self.root], [self.root.rpartition("/")[2]]
        else:
            files, folders = list_entries(self.root, "folder or .zip file")
            self._names = [file.name for file in files if file.name.lower().endswith(".zip")]
            if not self._names:
                raise DataError(f"{self.root}: no .zip file in this folder: give the file or its folder")
            self._not_read = archives_below(self.root, folders, ".zip")
            self._paths = [join(self.root, name) for name in self._names]

    def parts(self) -> Sequence[str]:
        return [name.partition("?")[0][: -len(".zip")] for name in self._names]

    def input_files(self) -> Sequence[str]:
        return self._paths

    def list_images(self, part: int) -> PartListing:
        path = self._paths[part]
        members, start_of_directory = _directory_of(path)
        faults = FaultLog(self.root, self._not_read if part == 0 else ())
        keys, identities, names = [], [], []
        numbers = {name: array("q") for name in _Member._fields[1:]}
        behind = itertools.chain((member.header_offset for member in members[1:]), (start_of_directory,))
        for member, next_offset in zip(members, behind, strict=True):
            if refused := _refused(member, next_offset):
                kind, reason = refused
                faults.add(_fault(path, member.filename, member.header_offset, reason, kind))
            elif not member.is_dir():
                folder, _, name = member.filename.rpartition("/")
                keys.append(member.filename.rpartition(".")[0] if has_image_suffix(name) else member.filename)
                identities.append(folder.rpartition("/")[2])
                names.append(_raw_name(member))
                row = (member.header_offset, member.compress_size, member.file_size, member.CRC, member.compress_type)
                for column, value in zip(numbers.values(), row, strict=True):
                    column.append(value)
        for empty in _empty_folders(members):
            name = empty.filename.rstrip("/")
            faults.add(_fault(path, name, empty.header_offset, "a folder without files", "identity"))
        columns = {"key": pa.array(keys, pa.string()), "identity": pa.array(identities, pa.string())}
        columns |= {"name": pa.array(names, pa.binary())}
        table = pa.table(columns | {name: pa.array(column) for name, column in numbers.items()})
        return PartListing(images=table, faults=faults, image_size=size_of_first(self, part, table))

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        path = self._paths[part]
        with Source(path) as source:
            fetch = forward_reads(source)
            for member in map(_Member._make, zip(*(images[name].to_pylist() for name in _Member._fields), strict=True)):
                name = member.name.decode("utf-8", "backslashreplace")
                try:
                    data = _content(fetch, member)
                except _MemberError as error:
                    yield _fault(path, name, member.offset, str(error), "unreadable")
                    continue
                if image_format(data[:SNIFF_BYTES]) is None and not has_image_suffix(name):
                    yield _fault(path, name, member.offset, "not an image", "other file")
                else:
                    yield SourceImage(data, path, name, member.offset)


class _MemberError(ValueError):
    """A member that cannot be read."""


def _directory_of(path: str) -> tuple[list[zipfile.ZipInfo], int]:
    """Return the members of an archive in the order of their bytes, and where its directory begins.

    Raises:
        DataError: it has no valid directory, which is at its end.
    """
    try:
        with open_binary(path) as stream, zipfile.ZipFile(stream) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            _check_count(stream, len(members))
            return members, archive.start_dir
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error, IndexError) as error:
        if isinstance(error, DataError):
            raise
        reason = f"truncated or not a zip archive ({one_line(error)})"
        raise DataError(f"{path}: {reason}: download it again, or remove it") from None


def _check_count(stream: BinaryIO, count: int) -> None:
    """Compare the number of members with the one at the end of the archive, which zipfile ignores.

    Raises:
        ValueError: they differ: a corrupt entry of the directory hides others.
    """
    size = stream.seek(0, os.SEEK_END)
    start = stream.seek(max(0, size - _END.size - _COMMENT_BYTES - _END_64.size - _LOCATOR_BYTES))
    tail = stream.read(size - start)
    at = tail.rindex(_END_MAGIC)
    claimed, modulus = _END.unpack_from(tail, at)[4], 1 << 16
    at_64 = at - _LOCATOR_BYTES - _END_64.size
    if at_64 >= 0 and tail.startswith(_END_64_MAGIC, at_64):
        claimed, modulus = _END_64.unpack_from(tail, at_64)[7], 1 << 64
    if claimed != count % modulus:
        raise ValueError(f"{claimed} members, but {count} in its directory")


def _refused(member: zipfile.ZipInfo, next_offset: int) -> tuple[str, str] | None:
    """Return kind and reason of the fault if a member is not read."""
    name = member.filename
    if not is_safe_name(name):
        return "name", "a name that leads out of the archive's folder"
    if _is_hidden(name):
        return "hidden", "hidden, or of a tool"
    if member.is_dir():
        return None
    if "/" not in name:
        return "outside", "file outside of an identity's folder"
    if member.flag_bits & _ENCRYPTED:
        return "unreadable", "encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "unreadable", f"packed by method {member.compress_type}: only stored and deflated members are read"
    if member.file_size > _MAX_BYTES:
        return "unreadable", f"{member.file_size} bytes, more than {_MAX_BYTES}"
    if member.header_offset < 0:
        return "truncated", "begins before the archive"
    end = member.header_offset + _LOCAL.size + len(_raw_name(member)) + member.compress_size
    return ("header", "overlaps the next member") if end > next_offset else None


def _is_hidden(name: str) -> bool:
    return any(map(is_hidden, name.rstrip("/").split("/")))


def _empty_folders(members: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Return the folders in which nothing is, apart from hidden files."""
    seen = [each for each in members if is_safe_name(each.filename) and not _is_hidden(each.filename)]
    filled = {each.filename.rstrip("/").rpartition("/")[0] for each in seen}
    for folder in list(filled):
        while (folder := folder.rpartition("/")[0]) not in filled:
            filled.add(folder)
    return [each for each in seen if each.is_dir() and each.filename.rstrip("/") not in filled]


def _content(fetch: Fetch, member: _Member) -> bytes:
    """Return the data of a member, whose local header must agree with the directory.

    Raises:
        _MemberError: it is corrupt.
    """
    raw = fetch(member.offset, _LOCAL.size + len(member.name) + _EXTRA_BYTES + member.packed_bytes)
    if len(raw) < _LOCAL.size:
        raise _MemberError("truncated")
    magic, _, _, method, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(raw)
    name, start = raw[_LOCAL.size : _LOCAL.size + name_bytes], _LOCAL.size + name_bytes + extra_bytes
    if (magic, name, method) != (_MAGIC, member.name, member.method):
        raise _MemberError("its header differs from the archive's directory")
    if len(raw) < start + member.packed_bytes:
        raw += fetch(member.offset + len(raw), start + member.packed_bytes - len(raw))
    data = raw[start : start + member.packed_bytes]
    if method == zipfile.ZIP_DEFLATED:
        data = _inflated(data, member.num_bytes)
    if len(data) != member.num_bytes or zlib.crc32(data) != member.crc:
        raise _MemberError("its size or checksum is wrong")
    return data


def _inflated(data: bytes, num_bytes: int) -> bytes:
    """Unpack at most one byte more than the directory claims."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, num_bytes + 1)
    except zlib.error as error:
        raise _MemberError(f"cannot be unpacked ({error})") from None


def _raw_name(member: zipfile.ZipInfo) -> bytes:
    return member.orig_filename.encode("utf-8" if member.flag_bits & _UTF8 else "cp437")


def _fault(path: str, member: str, offset: int, reason: str, kind: str) -> Fault:
    return Fault(shard=path, member=member, offset=offset, reason=reason, kind=kind)
