"""Shards for tests: made by hand, byte by byte."""

import io
import tarfile
from pathlib import Path

from rayface.data.shards.samples import Fault, Sample
from rayface.data.shards.sequential import scan_shard
from rayface.data.writer import write_dataset

JPEG = {f"k{i}": b"\xff\xd8" + bytes([i]) * (700 + 300 * i) for i in range(5)}


def members() -> list[tuple[str, bytes]]:
    return [m for i, (key, jpeg) in enumerate(JPEG.items()) for m in ((f"{key}.jpg", jpeg), (f"{key}.cls", b"%d" % i))]


def write_tar(path: Path, files: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> dict[str, int]:
    """Write a tar with tarfile; return the offset of each member's first header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = {}
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            offsets[name] = tar.offset
            tar.addfile(info, io.BytesIO(data))
    return offsets


def patch(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def good(entries: list[Sample | Fault]) -> list[str]:
    return [entry.key for entry in entries if isinstance(entry, Sample)]


def bad(entries: list[Sample | Fault]) -> list[Fault]:
    return [entry for entry in entries if isinstance(entry, Fault)]


def only_fault(path: Path, member: str | None, offset: int, *words: str) -> list[str]:
    """Assert that a scan finds exactly one fault, at that member and byte; return the keys of the good samples."""
    entries = list(scan_shard(path))
    (fault,) = bad(entries)
    assert (fault.shard, fault.member, fault.offset) == (str(path), member, offset), str(fault)
    for word in words:
        assert word in fault.reason
    assert str(fault) == f"{path}: {member + ' ' if member else ''}at byte {offset}: {fault.reason}"
    quick = list(scan_shard(path, read_jpeg=False))
    assert bad(quick) == bad(entries)
    assert good(quick) == good(entries)
    return good(entries)


def small_dataset(
    tmp_path: Path, name: str = "set", names: tuple[str, ...] = ("a", "b", "c", "d", "e"), shard_size: int = 5000
) -> Path:
    samples = [(key, i, jpeg) for i, (key, jpeg) in enumerate(JPEG.items())]
    write_dataset(tmp_path / name, samples, name=name, identities=names, image_size=None, shard_size=shard_size)
    return tmp_path / name
