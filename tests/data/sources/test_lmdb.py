"""LMDB databases: every way to store an image and its label, parts, corruption."""

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import simplejpeg

from rayface.data.convert import convert
from rayface.data.dataset import Dataset
from rayface.data.decode import decode_image
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources import lmdb as lmdb_source
from rayface.data.sources.lmdb import LmdbSource
from rayface.storage import DataError


def jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


JPEG = [jpeg(seed) for seed in range(5)]
LABELS = [7, 3, 7, 300, 3]


def varint(number: int) -> bytes:
    data = b""
    while number >= 128:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


def datum(data: bytes, label: int, shape: tuple[int, int, int] | None = None) -> bytes:
    """A Caffe Datum, field by field: encoded, or raw pixels of a shape (channels, height, width)."""
    sides = b"".join(varint(number << 3) + varint(side) for number, side in enumerate(shape or (), 1))
    fields = sides + varint(4 << 3 | 2) + varint(len(data)) + data + varint(5 << 3) + varint(label)
    return fields + (b"" if shape else varint(7 << 3) + b"\1")


def write(path: Path, entries: Mapping[str, bytes], *, subdir: bool = True) -> Path:
    environment = lmdb.open(str(path), map_size=1 << 24, subdir=subdir)
    with environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    environment.close()
    return path


def numbered(values: list[bytes]) -> dict[str, bytes]:
    return {f"{number:08d}": value for number, value in enumerate(values)}


COUNTS = {"num-samples": b"5"}
LENGTH = {"__len__": pickle.dumps(5), "__keys__": pickle.dumps([b"0"])}
TWO_KEYS = {f"image-{n:09d}": data for n, data in enumerate(JPEG)}
TWO_KEYS |= {f"label-{n:09d}": b"%d" % label for n, label in enumerate(LABELS)}
FORMS = {
    "two keys": {**TWO_KEYS, **COUNTS},
    "pickle": {**numbered([pickle.dumps((data, label)) for data, label in zip(JPEG, LABELS, strict=True)]), **LENGTH},
    "pickle of arrays": numbered(
        [pickle.dumps([np.frombuffer(data, np.uint8), label]) for data, label in zip(JPEG, LABELS, strict=True)]
    ),
    "old pickle": numbered([pickle.dumps((data, label), 2) for data, label in zip(JPEG, LABELS, strict=True)]),
    "datum": numbered([datum(data, label) for data, label in zip(JPEG, LABELS, strict=True)]),
}


def samples(dataset: Dataset) -> dict[str, tuple[str | int, bytes]]:
    read = [s for s in read_samples(dataset.shard_paths(), dataset.index) if isinstance(s, Sample)]
    names = dataset.identities
    return {s.key: (names[s.label] if names else s.label, s.jpeg) for s in read}


@pytest.mark.parametrize("part", [2, 1 << 16])
@pytest.mark.parametrize("form", FORMS)
def test_lmdb_of_every_form_gives_the_images_and_labels(
    tmp_path: Path, form: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_source, "_PART", part)
    dataset = convert(LmdbSource(write(tmp_path / "in", FORMS[form])), tmp_path / "out")
    wanted = [(str(label), data) for label, data in zip(LABELS, JPEG, strict=True)]
    assert [value for _, value in sorted(samples(dataset).items())] == wanted
    assert (dataset.faults, dataset.about.image_size) == ((), (16, 16))
    assert not lmdb_source._environments


def test_lmdb_with_folders_in_its_keys_takes_them_as_names(tmp_path: Path) -> None:
    entries = {f"train/p{label}/{n}.jpg": data for n, (data, label) in enumerate(zip(JPEG, LABELS, strict=True))}
    dataset = convert(LmdbSource(write(tmp_path / "in.mdb", entries, subdir=False)), tmp_path / "out")
    assert samples(dataset) == {
        f"train/p{label}/{n}": (f"p{label}", data) for n, (data, label) in enumerate(zip(JPEG, LABELS, strict=True))
    }


def test_lmdb_with_folders_that_begin_as_labels_and_tables_keeps_their_images(tmp_path: Path) -> None:
    images = {"__bob__/x.jpg": "__bob__", "__ann/x.jpg": "__ann", "label-0001/x.jpg": "label-0001", "cy/x.jpg": "cy"}
    entries = {key: JPEG[number] for number, key in enumerate(images)}
    dataset = convert(LmdbSource(write(tmp_path / "in", {**entries, **LENGTH, **COUNTS})), tmp_path / "out")
    assert samples(dataset) == {key[:-4]: (name, entries[key]) for key, name in images.items()}
    assert dataset.faults == ()


def test_lmdb_with_a_label_without_its_image_names_it(tmp_path: Path) -> None:
    entries = {key: value for key, value in TWO_KEYS.items() if key != "image-000000001"}
    dataset = convert(LmdbSource(write(tmp_path / "in", entries)), tmp_path / "out")
    assert dataset.num_images == 4
    assert [fault.member for fault in dataset.faults] == ["label-000000001"]


def test_lmdb_with_raw_pixels_keeps_them_as_png(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)  # BGR, as Caffe has them
    value = datum(pixels.transpose(2, 0, 1).tobytes(), 4, (3, 16, 12))
    dataset = convert(LmdbSource(write(tmp_path / "in", {"a": value})), tmp_path / "out")
    (_, data) = samples(dataset)["a"]
    assert np.array_equal(decode_image(data), cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def test_lmdb_values_that_are_no_images_or_lack_a_label_are_faults(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    bad = {
        "b-hostile": f"cos\nsystem\n(S'touch {proof}'\ntR.".encode(),
        "c-text": b"hello",
        "d-truncated": pickle.dumps((JPEG[0], 3))[:-20],
        "e-no-label": JPEG[1],
        "f-negative": pickle.dumps((JPEG[1], -1)),
        "g-datum": datum(JPEG[1], 3)[:100],
        "h-claim": varint(4 << 3 | 2) + varint(1 << 62) + b"x",
        "i-shape": datum(b"xx", 3, (3, 9999, 9999)),
        "j-corrupt": pickle.dumps((JPEG[2][:-30], 3)),
        "image-l-long": JPEG[1],
        "m-nested": b"N" + b"\x85" * 100_000 + b")R.",
        "k-dict": pickle.dumps({"image": JPEG[1], "label": 3}),
    }
    entries = {"a-good": pickle.dumps((JPEG[0], 3)), **bad, "label-l-long": b"1" * 5000}
    dataset = convert(LmdbSource(write(tmp_path / "in", entries)), tmp_path / "out")
    assert samples(dataset) == {"a-good": ("3", JPEG[0])}
    assert sorted(str(fault.member) for fault in dataset.faults) == sorted(bad)
    assert not proof.exists()


def test_lmdb_that_is_truncated_or_none_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "in", FORMS["pickle"])
    data = (path / "data.mdb").read_bytes()
    for cut, message in ((len(data) - 1, "truncated: "), (9000, "truncated: "), (100, "not an LMDB database")):
        (path / "data.mdb").write_bytes(data[:cut])
        with pytest.raises(DataError, match=rf"{path}: {message}"):
            LmdbSource(path).prepare("")
    for content in (b"", b"<html>" * 1000):
        (path / "data.mdb").write_bytes(content)
        with pytest.raises(DataError, match=rf"{path}: not an LMDB database"):
            LmdbSource(path).prepare("")
    with pytest.raises(DataError, match="not an LMDB database"):
        LmdbSource(tmp_path / "nowhere").prepare("")
    with pytest.raises(DataError, match="the database is empty"):
        LmdbSource(write(tmp_path / "none", {})).prepare("")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match=r"^convert.kind: lmdb: needs the package lmdb: pip install 'rayface\[lmdb\]'$"):
        LmdbSource(path).prepare("")
