"""Tars of every format are parsed; corruption at byte level is skipped and named; members are written safely."""

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayface.data.shards.sequential import scan_shard
from rayface.data.shards.tar import (
    BLOCK,
    Gap,
    Member,
    TarError,
    _pax_records,
    encode_member,
    end_of_archive,
    iter_members,
    parse_header,
    read_member,
)
from tests.data.shard_files import JPEG, bad, good, members, only_fault, patch, write_tar


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("stem", ["k", "deep/folder/k", "n" * 150, "é" * 80])
def test_scan_of_every_tar_format_finds_every_sample(tmp_path: Path, format: int, stem: str) -> None:
    if len(stem.encode()) > 100 and format == tarfile.USTAR_FORMAT:
        stem = "d" * 90 + "/" + "n" * 80  # goes into the ustar prefix field
    files = [(f"{stem}{i}.{s}", data) for i in range(3) for s, data in (("jpg", b"J" * 513), ("cls", b"%d" % i))]
    offsets = write_tar(tmp_path / "a.tar", files, format)
    samples = list(scan_shard(tmp_path / "a.tar"))
    assert [(s.key, s.label, s.jpeg, s.offset) for s in samples] == [
        (f"{stem}{i}", i, b"J" * 513, offsets[f"{stem}{i}.jpg"]) for i in range(3)
    ]
    assert samples[0].offset + samples[0].num_bytes == samples[1].offset


def test_scan_of_gnu_tar_with_folders_finds_every_sample(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name, data in members():
        (tmp_path / "in" / "sub" / name).write_bytes(data)
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "--sort=name", "-C", tmp_path / "in", "."], check=True)
    samples = list(scan_shard(tmp_path / "a.tar"))
    assert [(s.key, s.label, s.jpeg) for s in samples] == [
        (f"./sub/{key}", i, jpeg) for i, (key, jpeg) in enumerate(JPEG.items())
    ]


def test_scan_of_base_256_size_and_old_header_finds_every_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members())
    header = bytearray((tmp_path / "a.tar").read_bytes()[:512])
    header[124:136] = b"\x80" + len(JPEG["k0"]).to_bytes(11, "big")
    header[156:157] = b"\0"
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    patch(tmp_path / "a.tar", 0, bytes(header))
    assert good(list(scan_shard(tmp_path / "a.tar"))) == list(JPEG)


def test_scan_of_zeros_in_the_middle_continues(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    start = offsets["k1.jpg"]
    patch(tmp_path / "a.tar", start, bytes(1024))
    assert only_fault(tmp_path / "a.tar", "k1.jpg", start, "zeros") == ["k0", "k2", "k3", "k4"]


def test_scan_after_lost_bytes_finds_unaligned_headers(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    data = (tmp_path / "a.tar").read_bytes()
    cut = offsets["k1.jpg"] + 600
    (tmp_path / "a.tar").write_bytes(data[:cut] + data[cut + 100 :])
    entries = list(scan_shard(tmp_path / "a.tar"))
    assert good(entries) == ["k0", "k2", "k3", "k4"]
    (fault,) = bad(entries)
    assert fault.member == "k1.cls"


def test_scan_of_concatenated_archives_reads_all(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members())
    write_tar(tmp_path / "b.tar", [("z.jpg", b"z"), ("z.cls", b"1")])
    (tmp_path / "c.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    entries = list(scan_shard(tmp_path / "c.tar"))
    assert good(entries) == [*JPEG, "z"]
    assert [fault.num_lost for fault in bad(entries)] == [0]


def parsed(data: bytes) -> list[Member | Gap]:
    return list(iter_members(lambda offset, count: data[offset : offset + count], len(data)))


@pytest.mark.parametrize("name", ["k.jpg", "d/" * 40 + "k.jpg", "n" * 300, "é" * 80])
def test_encode_member_of_any_name_is_parsed_and_read_by_tarfile(name: str) -> None:
    data = encode_member(name, b"x" * 700)
    data += end_of_archive(len(data))
    assert len(data) % 10240 == 0
    (member,) = parsed(data)
    assert isinstance(member, Member)
    assert (member.name, member.size, member.offset, member.is_file) == (name, 700, 0, True)
    assert data[member.data : member.data + member.size] == b"x" * 700
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [name]


@pytest.mark.parametrize("name", ["../k", "a/../k", "/etc/k", "a\\..\\k", "k\n", ""])
def test_encode_member_of_a_name_outside_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be a relative name without \.\. and control characters"):
        encode_member(name, b"")


@pytest.mark.parametrize(
    ("start", "field", "message"),
    [
        (0, b"x", r"checksum is \d+, header says"),
        (148, b"0b12456\0", "checksum b'0b12456.*' is not an octal number"),
        (124, b"-0000000012\0", "size b'-0000000012.*' is not an octal number|checksum"),
    ],
)
def test_parse_header_with_a_wrong_field_names_it(start: int, field: bytes, message: str) -> None:
    block = bytearray(encode_member("k.jpg", b"x" * 10)[:512])
    assert parse_header(bytes(block)) == ("k.jpg", 10, b"0")
    block[start : start + len(field)] = field
    with pytest.raises(ValueError, match=message):
        parse_header(bytes(block))


def test_read_member_with_an_oversized_extension_is_corrupt() -> None:
    block = bytearray(encode_member("n" * 300, b"x"))
    block[124:136] = b"%011o\0" % (1 << 21)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    with pytest.raises(TarError, match="extension header of 2097152 bytes") as caught:
        read_member(lambda offset, count: bytes(block[offset : offset + count]), 0, len(block))
    assert (caught.value.offset, caught.value.kind) == (0, "header")


def test_read_member_of_an_extension_without_a_member_is_corrupt() -> None:
    data = encode_member("n" * 300, b"x")[:1024] + bytes(1024)
    with pytest.raises(TarError, match="an extension header has no member after it") as caught:
        read_member(lambda offset, count: data[offset : offset + count], 0, len(data))
    assert (caught.value.offset, caught.value.member) == (1024, "n" * 300)


def test_iter_members_of_a_truncated_member_ends_with_a_gap_that_names_it() -> None:
    data = encode_member("a.jpg", b"x" * 600) + encode_member("b.jpg", b"y" * 600)[:700]
    member, gap = parsed(data)
    assert isinstance(member, Member)
    assert isinstance(gap, Gap)
    assert (gap.offset, gap.end, gap.kind, gap.harmless) == (member.end, len(data), "truncated", False)
    assert "600 bytes of data, 188 left" in gap.reason


@pytest.mark.parametrize("high", [128, 256])
def test_parse_header_of_any_bytes_compares_their_sum(high: int) -> None:
    """Headers with the right sum are accepted, those that are one off are refused."""
    random = np.random.default_rng(high)
    plain = encode_member("a.jpg", b"")[:BLOCK]
    for _ in range(200):
        block = bytearray(plain)
        block[257:] = random.integers(0, high, BLOCK - 257, dtype=np.uint8).tobytes()
        block[148:156] = b" " * 8
        total = sum(block)
        block[148:156] = b"%06o\0 " % total
        assert parse_header(bytes(block))[1:] == (0, b"0")
        for stored in (total + 1, total ^ 0x10000):
            block[148:156] = b"%06o\0 " % stored
            with pytest.raises(ValueError, match=f"checksum is {total}, header says {stored}"):
                parse_header(bytes(block))


def test_parse_header_with_the_largest_sum_is_exact() -> None:
    block = bytearray(b"\xff" * BLOCK)
    block[124:136] = b"00000000000\0"
    block[148:156] = b" " * 8
    total = sum(block)
    block[148:156] = b"%06o\0 " % total
    assert parse_header(bytes(block))[1] == 0


class Sliced(bytes):
    """Bytes that count what their slices copy."""

    copied = 0

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        Sliced.copied += len(found)
        return Sliced(found)


def test_pax_records_of_many_are_read_in_one_pass() -> None:
    data = b"".join(b"15 k%04d=abcde\n" % number for number in range(5000)) + bytes(100)
    assert _pax_records(Sliced(data)) == {f"k{number:04d}": "abcde" for number in range(5000)}
    assert Sliced.copied < 3 * len(data)


@pytest.mark.parametrize("data", [b"9 a=b\n", b"5 a=b\n", b"x a=b\n", b"6 ab\n", b"6 a=bc", b"7" * 30, b"6 a=b\n\0x"])
def test_pax_records_that_are_malformed_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="malformed pax record"):
        _pax_records(data)
