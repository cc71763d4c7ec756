"""pairs.csv beside a dataset: written and read again."""

from pathlib import Path

import numpy as np
import pytest

from rayface.data.sources.pairs_csv import read_pairs_csv, write_pairs_csv
from rayface.data.writer import write_dataset
from rayface.storage import DataError
from tests.data.scanned_tars import picture


def test_pairs_csv_that_is_read_again_is_in_the_order_of_the_folds(tmp_path: Path) -> None:
    samples = [(key, 0, picture(0, "jpg")) for key in "abc"]
    dataset = write_dataset(tmp_path, samples, name="set", identities=["x"], image_size=None)
    same, fold = np.array([True, False, True]), np.array([1, 0, 0])
    write_pairs_csv(dataset, ["a", "b", "a"], ["b", "c", "lost"], same, fold)
    keys, is_same = read_pairs_csv(str(tmp_path / "pairs.csv"))
    assert (keys.to_pylist(), is_same) == (["b", "c", "a", "b"], [False, True])


def test_pairs_csv_of_another_program_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    lines = ["path_a,path_b,is_same,fold", "a.jpg,b.jpg,1,10", "c.jpg,d.jpg,0,9", "e.jpg,f.jpg,1,1"]
    (tmp_path / "pairs.csv").write_text("\r\n".join(lines), "utf-8-sig", newline="")
    keys, is_same = read_pairs_csv(str(tmp_path / "pairs.csv"))
    assert (keys.to_pylist(), is_same) == (["e", "f", "c", "d", "a", "b"], [True, False, True])


@pytest.mark.parametrize("text", ["", "path_a,path_b\na,b", "path_a,path_b,is_same,fold\na,b,2,0", "a\n1\n"])
def test_pairs_csv_without_pairs_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(DataError, match=r"pairs\.csv: (must be a csv|has no pairs)"):
        read_pairs_csv(str(tmp_path / "pairs.csv"))
