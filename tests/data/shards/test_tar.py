"""Tars of every format are parsed; corruption at byte level is skipped and named; members are written safely."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from rayface.data.shards.sequential import scan_shard
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
