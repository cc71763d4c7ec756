"""Datasets with pairs written as a .bin of InsightFace."""

import csv
import os
import pickle
from pathlib import Path

import pytest

from rayface.data.targets import target_of
from rayface.storage import DataError
from tests.data.targets.small_set import SAMPLES, dataset_of


def test_bin_target_is_the_pickle_that_insightface_reads(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "set")
    with pytest.raises(DataError, match=r"pairs\.csv: no such file"):
        target_of("bin")(dataset, str(tmp_path / "x.bin"))
    rows = [("x/0.jpg", "x_0.jpg", 1, 1), ("y.png", "z.jpg", 0, 0), ("w.jpg", "y.png", 1, 0)]
    with (tmp_path / "set" / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path_a", "path_b", "is_same", "fold"), *rows])
    left = tmp_path / ".x.bin.01234567.tmp"
    left.touch()
    os.utime(left, (1, 1))  # of a killed writer
    written = target_of("bin")(dataset, str(tmp_path / "x.bin"))
    assert not left.exists()
    images, is_same = pickle.loads((tmp_path / "x.bin").read_bytes(), encoding="bytes")
    of = {key: data for key, _, data in SAMPLES}
    assert images == [of[key] for key in ("y", "z", "w", "y", "x/0", "x_0")]  # by fold
    assert is_same == [False, True, True]
    assert (written.num_images, written.num_files) == (6, 1)
    with pytest.raises(DataError, match=r"x\.bin: exists"):
        target_of("bin")(dataset, str(tmp_path / "x.bin"))
    for text, message in (("path_a\nx", "must be a csv"), ("path_a,path_b,is_same,fold\nq.jpg,y.jpg,1,0", "names q,")):
        (tmp_path / "set" / "pairs.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            target_of("bin")(dataset, str(tmp_path / "y.bin"))
