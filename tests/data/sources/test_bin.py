"""InsightFace's .bin test sets become a dataset with pairs.csv, in its folds; a hostile one is refused."""

import csv
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from sklearn.model_selection import KFold

from rayface.cli.command_line import _outcome
from rayface.data.convert import convert
from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources import BinSource
from rayface.data.sources import bin as module
from rayface.data.sources.bin_file import BinFile, open_bin
from rayface.data.sources.pickle_values import PickleError
from rayface.storage import DataError
from tests.data.sources.bin_files import bin_file, of_python_2


def jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


A, B, C, D, E = (jpeg(seed) for seed in range(5))
# A, B and C are one person; D and E are of persons that no genuine pair tells.
PAIRS = [(A, B, True), (A, D, False), (B, C, True), (D, E, False), (E, A, False)] * 5 + [(C, A, True), (D, C, False)]
IMAGES = [image for a, b, _ in PAIRS for image in (a, b)]
IS_SAME = [same for *_, same in PAIRS]


def test_first_equal_of_images_that_cannot_be_read_takes_none_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [A, PickleError("no bytes"), B, A, PickleError("no bytes")]
    monkeypatch.setattr(BinFile, "read", lambda self, numbers: (found[number] for number in numbers))
    file = BinFile(path="unused", images=[b""] * 5, is_same=np.zeros(0, bool))
    assert file.first_equal().tolist() == [0, 1, 2, 0, 4]


@pytest.mark.parametrize("writer", ["python 2", "python 3"])
def test_bin_becomes_a_dataset_and_its_pairs_in_the_folds_of_insightface(tmp_path: Path, writer: str) -> None:
    src = tmp_path / "lfw.bin"
    data = of_python_2(IMAGES, IS_SAME, protocol=2, arrays=True) if writer == "python 2" else bin_file(IMAGES, IS_SAME)
    src.write_bytes(data)
    assert _outcome(["convert", str(src), str(tmp_path / "out"), "--from", "bin"]) == (0, "")
    dataset = open_dataset(tmp_path / "out")
    samples = {s.key: s for s in read_samples(dataset.shard_paths(), dataset.index) if isinstance(s, Sample)}
    assert sorted(sample.jpeg for sample in samples.values()) == sorted([A, B, C, D, E])  # each once
    label = {sample.jpeg: sample.label for sample in samples.values()}
    assert label[A] == label[B] == label[C]
    assert len({label[A], label[D], label[E]}) == dataset.num_classes == 3
    with (tmp_path / "out" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = [(samples[row["path_a"][:-4]].jpeg, samples[row["path_b"][:-4]].jpeg) for row in rows]
    assert [(*pair, row["is_same"] == "1") for pair, row in zip(images, rows, strict=True)] == PAIRS
    folds = np.zeros(len(PAIRS), int)
    for number, (_, tested) in enumerate(KFold(10).split(PAIRS)):
        folds[tested] = number
    assert [int(row["fold"]) for row in rows] == folds.tolist()


def test_bin_with_an_unreadable_image_loses_its_pairs_by_name(
    tmp_path: Path, messages: Callable[[], list[str]]
) -> None:
    (tmp_path / "x.bin").write_bytes(bin_file([*IMAGES, b"no image" * 50, A], [*IS_SAME, False]))
    assert _outcome(["convert", str(tmp_path / "x.bin"), str(tmp_path / "out"), "--from", "bin"]) == (0, "")
    text = "\n".join(messages())
    assert "x.bin: image 54 at byte" in text
    assert "1 of 28 pairs left out" in text
    assert (tmp_path / "out" / "pairs.csv").read_text().count("\n") == 28


def test_bins_as_one_dataset_share_no_person_and_name_the_pairs_that_are_not_written(
    tmp_path: Path, messages: Callable[[], list[str]]
) -> None:
    paths = [tmp_path / "lfw.bin", tmp_path / "agedb.bin"]
    for path, image in zip(paths, (C, D), strict=True):
        path.write_bytes(bin_file([A, B, A, image], [True, False]))
    dataset = convert([BinSource(path) for path in paths], tmp_path / "out")
    assert dataset.identities == ("lfw-000000", "lfw-000003", "agedb-000000", "agedb-000003")
    assert not (tmp_path / "out" / "pairs.csv").exists()
    text = "its pairs.csv is not written: convert the source alone to get it"
    assert [line for line in messages() if "pairs" in line] == [f"{path}: {text}" for path in paths]


def test_bin_that_is_hostile_is_refused_by_name_and_runs_nothing(tmp_path: Path) -> None:
    proof, src = tmp_path / "proof", tmp_path / "lfw.bin"
    good = bin_file(IMAGES, IS_SAME, protocol=2)
    src.write_bytes(good[:2] + f"cos\nsystem\n(S'touch {proof}'\ntR0".encode() + good[2:])
    code, text = _outcome(["convert", str(src), str(tmp_path / "out"), "--from", "bin"])
    assert code == 2
    assert f"{src}: not a .bin file of images and pairs (at byte 2: os.system is not admitted" in text
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("images", "is_same", "reason"),
    [
        ([A, B], [], "2 images for 0 pairs"),
        ([], [], "0 images for 0 pairs"),
        ([A, B, C], [True], "3 images for 1 pair"),
        ([A, "text"], [True], "image 1 is str and not bytes"),
        ([A, "text" * 100], [True], "image 1 is Span and not bytes"),
        ([A, None], [True], "image 1 is NoneType and not bytes"),
        ([A, B], [2], "must be a list of bools"),
        ([A, B], None, "must be a list of bools"),
    ],
)
def test_bin_of_another_structure_is_refused(tmp_path: Path, images: list, is_same: list, reason: str) -> None:
    (tmp_path / "x.bin").write_bytes(pickle.dumps((images, is_same)))
    with pytest.raises(DataError, match=reason):
        open_bin(str(tmp_path / "x.bin"))
    (tmp_path / "y.bin").write_bytes(pickle.dumps(images))
    with pytest.raises(DataError, match="it must be a pair"):
        open_bin(str(tmp_path / "y.bin"))


def test_convert_interrupted_before_pairs_csv_writes_it_when_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.bin").write_bytes(bin_file(IMAGES, IS_SAME))

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_pairs_csv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(BinSource(tmp_path / "x.bin"), tmp_path / "out")
    convert(BinSource(tmp_path / "x.bin"), tmp_path / "out")
    assert (tmp_path / "out" / "pairs.csv").read_text().count("\n") == 1 + len(PAIRS)
    assert not (tmp_path / "out" / "convert.json").exists()
