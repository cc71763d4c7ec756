"""The benchmark of conversions: every format has all images."""

from pathlib import Path

import pytest

from rayface.bench.convert import as_table, bench_convert
from rayface.bench.source_files import WRITERS
from rayface.data.writer import write_dataset
from tests.data.scanned_tars import picture


def test_bench_convert_of_every_format_converts_all_images(tmp_path: Path) -> None:
    samples = [(f"{n}", n % 3, picture(n, "jpg")) for n in range(8)]
    write_dataset(tmp_path / "set", samples, name="set", identities=["a", "b", "c"], image_size=None)
    found = bench_convert(str(tmp_path / "set"), images=6, formats=[], folder=tmp_path)
    assert [one.source for one in found] == list(WRITERS)
    assert [one.images for one in found] == [6] * len(WRITERS)
    assert all(one.share_of_copy > 0 and one.megabytes > 0 for one in found)
    assert [row["images"] for row in as_table(found)] == ["6"] * len(WRITERS)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_bench_convert_of_an_unknown_format_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^formats: 'tape': must be one of folder, rec, "):
        bench_convert(str(tmp_path), images=6, formats=["tape"])
