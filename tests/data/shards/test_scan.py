"""Scanning whole shards in parallel: index, images, digests."""

from pathlib import Path

from rayface.data.check import check
from tests.data.scanned_tars import picture
from tests.data.shard_files import write_tar


def test_check_deep_of_a_corrupt_png_names_it(tmp_path: Path) -> None:
    bad = bytearray(picture(1, "png"))
    bad[len(bad) // 2] ^= 1
    files = [("a.png", picture(0, "png")), ("a.cls", b"0"), ("b.c.png", bytes(bad)), ("b.c.cls", b"1")]
    write_tar(tmp_path / "a.tar", files)
    (fault,) = check(tmp_path, deep=True).faults
    assert (fault.member, fault.num_lost) == ("b.c.png", 1)
