"""CFP's own layout becomes a dataset with pairs.csv."""

import csv
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rayface.data.convert import convert
from rayface.data.sources import CfpSource, open_source
from rayface.evaluation.pairs import load_pairs
from rayface.storage import DataError


def jpeg(grey: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((16, 16, 3), grey, np.uint8))


@pytest.fixture
def cfp(tmp_path: Path) -> Path:
    """Three persons with two frontal and two profile images each, and two folds; image n is of the grey 10 * n."""
    home, grey, lists = tmp_path / "cfp-dataset", 0, {"F": [], "P": []}
    for person in ("001", "002", "003"):
        for side in ("frontal", "profile"):
            for number in ("01", "02"):
                path = home / "Data" / "Images" / person / side / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(10 * grey))
                own = lists[side[0].upper()]
                own.append(f"{len(own) + 1} ../Data/Images/{person}/{side}/{number}.jpg")
                grey += 1
    for name, lines in lists.items():
        (home / "Protocol").mkdir(exist_ok=True)
        (home / "Protocol" / f"Pair_list_{name}.txt").write_text("\n".join(lines))
    for protocol in ("FP", "FF"):
        for fold, (same, diff) in {"01": ("1,2\n3,4", "1,6"), "02": ("5,6", "6,1\n2,3\n")}.items():
            folder = home / "Protocol" / "Split" / protocol / fold
            folder.mkdir(parents=True)
            (folder / "same.txt").write_text(same)
            (folder / "diff.txt").write_text(diff)
        (home / "Protocol" / "Split" / protocol / "notes").mkdir()  # no fold
    return home


@pytest.mark.parametrize(("protocol", "second"), [("FP", [30, 70, 110, 110, 20, 60]), ("FF", [10, 50, 90, 90, 0, 40])])
def test_cfp_gives_the_pairs_of_its_protocol(cfp: Path, tmp_path: Path, protocol: str, second: list[int]) -> None:
    source = open_source("cfp", cfp, {"image_size": None, "protocol": protocol})
    dataset = convert(source, tmp_path / "out")
    assert (dataset.num_images, dataset.identities) == (12, ("001", "002", "003"))
    assert dataset.about.source == "cfp cfp-dataset"
    pairs = load_pairs(tmp_path / "out" / "pairs.csv", tmp_path / "out", image_size=16)
    greys = pairs.images[:, 8, 8, 0].astype(int)
    assert greys[pairs.a].tolist() == [0, 40, 0, 80, 90, 10]
    assert greys[pairs.b].tolist() == second
    assert pairs.is_same.tolist() == [True, True, False, True, False, False]
    assert pairs.fold.tolist() == [0, 0, 0, 1, 1, 1]


def test_cfp_with_missing_images_leaves_their_pairs_out(cfp: Path, tmp_path: Path) -> None:
    (cfp / "Data" / "Images" / "001" / "frontal" / "01.jpg").unlink()
    source = CfpSource(cfp)
    convert(source, tmp_path / "out")
    with (tmp_path / "out" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path_a"] for row in rows] == [
        "002_frontal_01.jpg",
        "003_frontal_01.jpg",
        "003_frontal_02.jpg",
        "001_frontal_02.jpg",
    ]


def test_cfp_without_its_protocol_is_refused_in_one_line(cfp: Path, tmp_path: Path) -> None:
    same = cfp / "Protocol" / "Split" / "FP" / "01" / "same.txt"
    for text, message in (("1;2", "'1;2' must be two numbers"), ("1,99", "'1,99' must be two numbers")):
        same.write_text(text)
        with pytest.raises(DataError, match=rf"same\.txt: {message}"):
            convert(CfpSource(cfp), tmp_path / "out")
    same.unlink()
    with pytest.raises(DataError, match=r"same\.txt: cannot be read"):
        convert(CfpSource(cfp), tmp_path / "out")
    with pytest.raises(DataError, match=r"Pair_list_F\.txt: cannot be read .*: give the folder of CFP"):
        convert(CfpSource(cfp / "Data"), tmp_path / "out")
