"""Converting any source: labels, order, encoding, faults; what is copied and what is refused."""

import contextlib
import dataclasses
import errno
import io
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import webdataset
from PIL import Image, ImageOps

from rayface.data.check import check
from rayface.data.conversion import listing, shard_plan, spill
from rayface.data.conversion.mapping import MapParts, map_in_threads
from rayface.data.conversion.shards import WriteShard
from rayface.data.conversion.work_folder import WorkFolder
from rayface.data.convert import ConvertSettings, convert
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_image
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, Sample
from rayface.data.sources.base import DatasetSource
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.folder import FolderSettings, FolderSource
from rayface.ray_tasks import _answer
from rayface.storage import DataError, StorageError
from tests.conftest import ObjectStore
from tests.data.conversion.work import images
from tests.data.sources.in_memory import InMemory


def convert_folder(
    src: Path,
    out: Path,
    *,
    image_size: int | None = 112,
    quality: int = 95,
    **settings: Any,
) -> Dataset:
    source = FolderSource(src, FolderSettings(image_size=image_size, quality=quality))
    return convert(source, out, ConvertSettings(**settings))


def picture(seed: int, height: int = 112, width: int = 112) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: np.ndarray) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(path.suffix.lower(), image)[1].tobytes()
    path.write_bytes(data)
    return data


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three identities with five images each."""
    for n, name in enumerate(("Ann Lee", "bob", "cy")):
        for i in range(5):
            save(tmp_path / "people" / name / f"{i}.jpg", picture(10 * n + i))
    return tmp_path / "people"


def test_convert_folder_writes_shuffled_shards_of_the_same_bytes(people: Path, tmp_path: Path, recorder: Any) -> None:
    dataset = convert_folder(people, tmp_path / "out", shard_size=40000)
    assert dataset.identities == ("Ann Lee", "bob", "cy")
    about = dataset.about
    assert (dataset.num_images, about.layout, about.image_size, about.name) == (15, "shuffled", (112, 112), "out")
    assert (dataset.about.source, dataset.faults) == ("folder people", ())
    assert recorder.advances == [
        ("list images", 1, 1),
        ("name images", 1, 1),
        ("read images", 1, 1),
        *[("write shards", i, 3) for i in range(1, 4)],
    ]
    assert len(dataset.shards) > 1
    samples = read_samples(dataset.shard_paths(), dataset.index)
    for sample in samples:
        assert isinstance(sample, Sample)
        name, number = sample.key.rsplit("_", 1)
        label = ["Ann_Lee", "bob", "cy"].index(name)
        assert label == sample.label
        assert sample.jpeg == (people / dataset.identities[label] / f"{number}.jpg").read_bytes()  # byte for byte
    keys = dataset.keys()
    assert keys != sorted(keys)
    assert Counter(s["cls"] for s in webdataset.WebDataset(dataset.shard_paths(), shardshuffle=False)) == {
        b"0": 5,
        b"1": 5,
        b"2": 5,
    }


def test_convert_order_follows_seed_and_layout(people: Path, tmp_path: Path) -> None:
    def tars(name: str, **kwargs: object) -> list[bytes]:
        convert_folder(people, tmp_path / name, name="same", **kwargs)
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    assert tars("a", seed=1) == tars("b", seed=1)
    assert tars("c", seed=2) != tars("d", seed=1)
    dataset = convert_folder(people, tmp_path / "e", layout="by_identity")
    assert dataset.about.layout == "by_identity"
    assert dataset.keys() == sorted(dataset.keys())


def test_convert_images_of_other_formats_and_sizes_encodes_them(tmp_path: Path) -> None:
    src = tmp_path / "in"
    images = {name: picture(i) for i, name in enumerate(("a.png", "b.WEBP", "c.bmp"))}
    for name, image in images.items():
        save(src / "p" / name, image)
    save(src / "p" / "big.jpg", picture(7, 224, 224))
    save(src / "p" / "tall.jpg", picture(8, 300, 150))
    save(src / "p" / "small.jpeg", picture(9, 50, 50))
    dataset = convert_folder(src, tmp_path / "out", layout="by_identity")
    samples = {s.key: s for s in read_samples(dataset.shard_paths(), dataset.index) if isinstance(s, Sample)}
    decoded = {key: simplejpeg.decode_jpeg(s.jpeg, colorspace="BGR").astype(int) for key, s in samples.items()}
    assert {image.shape for image in decoded.values()} == {(112, 112, 3)}
    for name, image in images.items():
        assert np.abs(decoded[f"p_{name[0]}"] - image).mean() < 6
    tall = cv2.resize(picture(8, 300, 150), (112, 112), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(decoded["p_tall"] - tall).mean() < 6  # whole image, not a crop


def test_convert_unreadable_images_are_faults(people: Path, tmp_path: Path) -> None:
    whole = (people / "bob" / "1.jpg").read_bytes()
    (people / "bob" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (people / "bob" / "2.jpg").write_bytes(b"")
    (people / "bob" / "3.png").write_bytes(b"not a picture")
    save(people / "stray.jpg", picture(3))
    dataset = convert_folder(people, tmp_path / "out")
    assert dataset.num_images == 13
    left = {str(fault.member): (fault.kind, fault.num_lost) for fault in dataset.faults}
    assert left == {
        **dict.fromkeys(("bob/1.jpg", "bob/2.jpg", "bob/3.png"), ("unreadable", 1)),
        "stray.jpg": ("outside", 1),
    }


def test_convert_identities_without_a_readable_image_are_left_out(people: Path, tmp_path: Path) -> None:
    for name, content in (("all bad", b"\xff\xd8 not much of a JPEG"), ("zz", b"text")):
        (people / name).mkdir()
        for i in range(3):
            (people / name / f"{i}.jpg").write_bytes(content)
    (people / "notes").mkdir()
    (people / "notes" / "a.txt").write_text("")
    dataset = convert_folder(people, tmp_path / "out")
    assert dataset.identities == ("Ann Lee", "bob", "cy")
    assert np.bincount(dataset.index.label).tolist() == [5, 5, 5]
    left: Counter[str] = Counter()
    for fault in dataset.faults:
        left[fault.kind] += fault.num_lost
    assert left == {"unreadable": 6, "other file": 1, "identity": 3}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_convert_exif_orientation_is_applied_with_and_without_resize(tmp_path: Path, kind: str) -> None:
    for side in (112, 150):
        for turn in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = turn
            path = tmp_path / "in" / "p" / f"{side}_{turn}.x"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(3, side, side)).save(path, kind, exif=exif, quality=95)
    dataset = convert_folder(tmp_path / "in", tmp_path / "out")
    samples = read_samples(dataset.shard_paths(), dataset.index)
    assert len(samples) == 16
    for sample in samples:
        assert isinstance(sample, Sample)
        data = (tmp_path / "in" / "p" / f"{sample.key.removeprefix('p_').removesuffix('_x')}.x").read_bytes()
        with Image.open(io.BytesIO(data)) as stored:
            upright = np.asarray(
                ImageOps.exif_transpose(stored).convert("RGB").resize((112, 112), Image.Resampling.BOX)
            )
        for got in (decode_image(sample.jpeg), simplejpeg.decode_jpeg(sample.jpeg), decode_image(data, 112)):
            assert np.abs(got.astype(int) - np.asarray(upright)).mean() < 6


@pytest.mark.parametrize("side", [112, 224])
def test_convert_damaged_image_is_refused_with_and_without_resize(people: Path, tmp_path: Path, side: int) -> None:
    whole = simplejpeg.encode_jpeg(picture(1, side, side), 90)
    start, rng = whole.index(b"\xff\xda") + 20, np.random.default_rng(0)
    refused = set()
    for i in range(40):
        copy = bytearray(whole)
        copy[rng.integers(start, len(whole) - 2)] ^= 1 << rng.integers(8)
        (people / "bob" / f"bad{i}.jpg").write_bytes(copy)
        try:
            simplejpeg.decode_jpeg(bytes(copy))
        except ValueError:
            refused.add(f"bob/bad{i}.jpg")
    assert refused
    dataset = convert_folder(people, tmp_path / "out")
    assert {fault.member for fault in dataset.faults} == refused
    assert check(tmp_path / "out", deep=True).ok


def test_convert_unusable_input_is_one_line(tmp_path: Path) -> None:
    def refused(words: str, **kwargs: object) -> None:
        with pytest.raises(ValueError, match=words) as caught:
            convert_folder(tmp_path / "in", tmp_path / "out", **kwargs)
        assert "\n" not in str(caught.value)

    refused("no such folder")
    (tmp_path / "in" / "p").mkdir(parents=True)
    refused("no images")
    refused("layout 'sorted'", layout="sorted")
    refused("quality 0", quality=0)
    (tmp_path / "in" / "p" / "x.jpg").write_bytes(b"x")
    refused("none of its images can be used")
    save(tmp_path / "in" / "p" / "x.jpg", picture(0))
    convert_folder(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="not empty"):
        convert_folder(tmp_path / "in", tmp_path / "out")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("layout", ["shuffled", "by_identity"])
def test_convert_bytes_depend_on_no_size_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Literal["shuffled", "by_identity"]
) -> None:
    settings = ConvertSettings(layout=layout, shard_size=12_000, name="same")
    source = InMemory([images(25), images(15, first=25)])
    convert(source, tmp_path / "large", settings)
    for module, name, value in (
        (listing, "UNIT_IMAGES", 6),
        (spill, "PIECE_BYTES", 2000),
        (shard_plan, "BLOCK_BYTES", 5000),
    ):
        monkeypatch.setattr(module, name, value)
    convert(source, tmp_path / "small", settings)
    found = files(tmp_path / "small")
    assert len(found) > 6
    assert found == files(tmp_path / "large")
    assert check(tmp_path / "small", deep=True).ok


class Killed(BaseException):
    """Ends a conversion at once."""


def killed_in(phase: str, after: int) -> MapParts:
    """Map parts in threads, until a phase has finished some of them."""

    def map_parts(work: Any, parts: Any, name: str, *, rows: int | None = None) -> Any:
        for number, result in enumerate(map_in_threads(work, parts, name, rows=rows)):
            if name == phase and number == after:
                raise Killed
            yield result

    return map_parts  # type: ignore[return-value]


@pytest.mark.parametrize("phase", ["list images", "read images", "write shards"])
def test_convert_killed_in_any_pass_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr(listing, "UNIT_IMAGES", 6)
    settings = ConvertSettings(shard_size=12_000, name="same")
    parts = [images(15), images(15, first=15), [("bad", "id0", b"")]]
    convert(InMemory(parts), tmp_path / "whole", settings)
    out = tmp_path / "out"
    with pytest.raises(Killed):
        convert(InMemory(parts), out, settings, map_parts=killed_in(phase, 2))
    with pytest.raises(DataError, match="the dataset is unfinished"):
        open_dataset(out)
    before = {path.name: path.stat().st_ino for path in out.glob("shard-*.tar")}
    with pytest.raises(DataError, match=r"was started with seed 0, this job has 1"):
        convert(InMemory(parts), out, dataclasses.replace(settings, seed=1))
    source = InMemory(parts)
    dataset = convert(source, out, settings)
    assert files(out) == files(tmp_path / "whole")
    assert {name: (out / name).stat().st_ino for name in before} == before
    assert [fault.member for fault in dataset.faults] == ["bad"]
    assert pq.read_table(out / "lost.parquet").to_pylist() == [
        {"key": "bad", "kind": "unreadable", "fault": "p2: bad: no bytes"}
    ]
    if phase == "write shards":
        assert before
        assert source.read_rows == []


@pytest.mark.parametrize("kills", [1, 2])
def test_convert_killed_in_its_clean_up_still_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    parts, out = [[*images(6), ("bad", "id0", b"")]], tmp_path / "out"

    def killed(work: WorkFolder) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(WorkFolder, "delete", killed)
        for _ in range(kills):
            with pytest.raises(Killed):
                convert(InMemory(parts), out)
    dataset = convert(InMemory(parts), out)
    assert dataset.faults == convert(InMemory(parts), tmp_path / "whole").faults
    assert [fault.member for fault in dataset.faults] == ["bad"]
    assert not list(out.glob(".*")) + list(out.glob("convert.json"))


def test_convert_with_too_many_unreadable_images_stops_and_resumes_with_a_higher_limit(tmp_path: Path) -> None:
    source = InMemory([[*images(8), ("bad0", "id0", b""), ("bad1", "id0", b"")]])
    words = r"convert.max_corrupt_fraction: 0.1: 2 of 10 images cannot be read \(the first: p0: bad0"
    with pytest.raises(DataError, match=words):
        convert(source, tmp_path / "out", ConvertSettings(max_corrupt_fraction=0.1))
    source.read_rows.clear()
    dataset = convert(source, tmp_path / "out", ConvertSettings(max_corrupt_fraction=0.2))
    assert (dataset.num_images, len(dataset.faults), source.read_rows) == (8, 2, [])


def test_convert_with_too_many_unreadable_images_counts_no_other_files(
    tmp_path: Path, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bob/5.jpg", "cy/6.jpg", "cy/7.jpg"):
        (people / name).write_bytes(b"torn")
    for number in range(20):
        (people / "Ann Lee" / f"{number}.txt").touch()
    monkeypatch.setattr(listing, "UNIT_IMAGES", 31)  # all files but the last seven

    def one_by_one(work: Any, parts: Any, name: str, *, rows: int | None = None) -> Any:
        return map(work, parts)

    for limit, words in ((0.15, "3 of 18 images"), (0.03, "1 of at most 18 images")):
        settings = ConvertSettings(max_corrupt_fraction=limit)
        with pytest.raises(DataError, match=rf"_fraction: {limit}: {words} cannot be read \(the first: .*/5.jpg"):
            convert(FolderSource(people), tmp_path / str(limit), settings, map_parts=one_by_one)


@pytest.mark.parametrize("is_in_task", [False, True])
def test_convert_on_a_full_disk_names_folder_and_remedy_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_task: bool
) -> None:
    def full(*given: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source, line = InMemory([images(6)]), r"^convert.out: .*/out: cannot be written: No space left on device: free"
    with monkeypatch.context() as patched:
        patched.setattr(
            *((WriteShard, "__call__") if is_in_task else (sys.modules[convert.__module__], "_publish")), full
        )
        with pytest.raises(StorageError, match=f"{line} space there, then run again: it resumes$"):
            convert(source, tmp_path / "out", map_parts=in_tasks)
    source.read_rows.clear()
    assert convert(source, tmp_path / "out").num_images == 6
    assert source.read_rows == []


def in_tasks(work: Any, parts: Any, name: str, *, rows: int | None = None) -> Any:
    """Map as Ray's tasks do, whose errors leave them as text."""
    for part in parts:
        yield _answer(lambda part=part: work(part)).value()


def test_convert_after_a_mended_source_starts_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of its images can be used"):
        convert(InMemory([[("k0", "ann", b"")]]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert convert(InMemory([images(1)]), tmp_path / "out").num_images == 1


def test_convert_after_an_error_of_a_part_keeps_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "UNIT_IMAGES", 6)
    source, read = InMemory([images(12)]), InMemory.read

    def refused(self: InMemory, part: int, rows: Any) -> Any:
        if "k6" in rows["key"].to_pylist():
            raise DataError("p0: is gone")
        return read(self, part, rows)

    monkeypatch.setattr(InMemory, "read", refused)
    with pytest.raises(DataError, match="p0: is gone"):
        convert(source, tmp_path / "out")
    monkeypatch.setattr(InMemory, "read", read)
    source.read_rows.clear()
    assert convert(source, tmp_path / "out").num_images == 12
    assert source.read_rows == [(0, [f"k{n}" for n in range(6, 12)])]


def test_convert_of_several_sources_joins_their_identities_by_name(tmp_path: Path) -> None:
    first, second = InMemory([images(4, identities=2)]), InMemory([images(3, identities=3, first=30)])
    first.root, second.root = "/one", "/two"
    dataset = convert([first, second], tmp_path / "out", ConvertSettings(layout="by_identity"))
    assert dataset.identities == ("id0", "id1", "id2")
    assert dataset.keys() == ["one/k0", "one/k2", "two/k30", "one/k1", "one/k3", "two/k31", "two/k32"]
    assert dataset.about.source == "memory one, memory two"


def test_convert_of_sources_whose_folders_differ_only_in_dots_keeps_their_keys_apart(tmp_path: Path) -> None:
    first, second = InMemory([images(2)]), InMemory([images(2)])
    first.root, second.root = "/faces.1", "/faces_1"
    dataset = convert([first, second], tmp_path / "out")
    assert sorted(dataset.keys()) == ["faces_1-2/k0", "faces_1-2/k1", "faces_1/k0", "faces_1/k1"]


def test_convert_of_one_folder_by_two_names_is_refused(tmp_path: Path, people: Path) -> None:
    (tmp_path / "link").symlink_to(people)
    with pytest.raises(DataError, match=r"^convert.source: .*: is given twice: leave one of them out$"):
        convert([FolderSource(people), FolderSource(tmp_path / "link")], tmp_path / "out")


def test_convert_of_several_folders_of_numbers_is_refused_until_it_is_told_who_is_who(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2"):
        save(tmp_path / name / "x.jpg", picture(len(name)))
    sources = [FolderSource(tmp_path / name) for name in "ab"]
    with pytest.raises(DataError, match=r"a has only numbers for identity names"):
        convert(sources, tmp_path / "out")
    for join, identities in [("separate", ("a/1", "a/2", "b/1", "b/2")), ("names", ("1", "2"))]:
        assert convert(sources, tmp_path / join, ConvertSettings(join=join)).identities == identities


def test_convert_of_a_folder_whose_name_is_no_utf8_writes_it_printable(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9")
    save(source / os.fsdecode(b"ann\xe9") / "x.jpg", picture(1))
    (source / os.fsdecode(b"ann\xe9") / "y.jpg").write_bytes(b"\xff\xd8 torn")
    dataset = convert(FolderSource(source), tmp_path / "out")
    assert (dataset.about.source, dataset.identities) == (r"folder caf\udce9", (r"ann\udce9",))
    assert r"caf\udce9: ann\udce9/y.jpg" in str(dataset.faults[0])
    with pytest.raises(DataError, match=r"/o\\udce9: is not valid UTF-8"):
        convert(FolderSource(source), tmp_path / os.fsdecode(b"o\xe9"))


def test_convert_with_options_leaves_out_and_encodes_what_they_say(tmp_path: Path) -> None:
    given = [("a", "ann", 3), ("b", "bob", 1), ("c", "cy", 9)]
    source = InMemory([[(f"{key}{n}", name, images(1)[0][2]) for key, name, count in given for n in range(count)]])
    dataset = convert(source, tmp_path / "out", ConvertSettings(min_images=2, limit=10, jpeg_quality=30))
    assert (dataset.identities, np.bincount(dataset.index.label).tolist()) == (("ann", "cy"), [3, 6])
    assert [(fault.member, fault.reason) for fault in dataset.faults] == [("bob", "only 1 readable image")]
    sample = read_samples(dataset.shard_paths(), dataset.index)[0]
    assert isinstance(sample, Sample)
    assert len(sample.jpeg) < len(images(1)[0][2])


def test_convert_of_several_sources_names_all_of_them_for_an_identity_that_is_left_out(tmp_path: Path) -> None:
    for name, identities in (("a", "ab"), ("b", "bc")):
        for identity in identities:
            save(tmp_path / name / identity / f"{name}.jpg", picture(0))
    sources = [FolderSource(tmp_path / name) for name in "ab"]
    dataset = convert(sources, tmp_path / "out", ConvertSettings(min_images=2))
    assert dataset.identities == ("b",)
    both = f"[{sources[0].root},{sources[1].root}]"
    assert [str(fault) for fault in dataset.faults] == [f"{both}: {name}: only 1 readable image" for name in "ac"]


def test_convert_with_keys_that_a_source_repeats_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = InMemory([images(3)])
    monkeypatch.setattr(source, "unique_keys", lambda keys: ["k", "k", "j"])
    with pytest.raises(DataError, match="key 'k' occurs twice"):
        convert(source, tmp_path / "out")


def test_convert_into_a_store_with_shards_that_it_cannot_hold_is_refused(tmp_path: Path) -> None:
    settings = ConvertSettings(shard_size=5 * 2**30 + 1)
    with pytest.raises(ValueError, match=r"^shard_size 5368709121: must be at most 5368709120 \(5 GiB\) on an object"):
        convert(InMemory([images(1)]), "s3://bucket/out", settings)
    assert convert(InMemory([images(1)]), tmp_path / "out", settings).num_images == 1


@pytest.mark.parametrize("is_empty", [False, True])
def test_convert_closes_its_sources_at_the_end_and_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    closed: list[DatasetSource] = []
    monkeypatch.setattr(InMemory, "close", lambda source: closed.append(source))
    source = InMemory([[] if is_empty else images(1)])
    with pytest.raises(DataError, match="no images") if is_empty else contextlib.nullcontext():
        convert(source, tmp_path / "out")
    assert closed == [source]


def test_convert_of_sources_of_different_measures_is_refused(tmp_path: Path) -> None:
    first, second = InMemory([images(1)]), InMemory([images(1, first=1)])
    first.root, second.root = "/one", "/two"
    second.measures = ("blur",)  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"^convert.kind: memory, memory: must have the same measures$"):
        convert([first, second], tmp_path / "out")


def test_convert_into_a_folder_in_use_is_refused_before_the_source_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch()
    monkeypatch.setattr(InMemory, "prepare", None)
    with pytest.raises(DataError, match=r"is not empty \(mine\)"):
        convert(InMemory([images(1)]), tmp_path)


def test_convert_that_fails_keeps_a_folder_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with pytest.raises(DataError, match="no images"):
            convert(InMemory([[]]), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert not list((tmp_path / "mine").iterdir())


def test_convert_with_images_lost_in_the_listing_names_the_first(tmp_path: Path) -> None:
    lost = Fault(shard="p0", member="torn", reason="truncated", num_lost=3, kind="truncated")
    source = InMemory([images(7)], faults=FaultLog("memory", [lost]))
    with pytest.raises(DataError, match=r"0.1: 3 of 10 images cannot be read \(the first: p0: torn: truncated\)"):
        convert(source, tmp_path / "out", ConvertSettings(max_corrupt_fraction=0.1))


def test_convert_with_a_limit_leaves_out_no_identity_behind_it(tmp_path: Path) -> None:
    dataset = convert(InMemory([images(9)]), tmp_path / "out", ConvertSettings(limit=2))
    assert (dataset.num_images, dataset.identities, dataset.faults) == (2, ("id0", "id1"), ())


@pytest.mark.parametrize(("join", "identities"), [("labels", ("0", "2")), ("separate", None)])
def test_convert_of_joined_labels_of_which_one_is_left_out_keeps_them_as_names(
    tmp_path: Path, join: Literal["labels", "separate"], identities: tuple[str, ...] | None
) -> None:
    sources = [
        InMemory([[(f"k{label}-{n}", label, images(1)[0][2]) for n, label in enumerate(labels)]])
        for labels in ([0, 0, 1], [2, 2])
    ]
    sources[0].root, sources[1].root = "/one", "/two"
    settings = ConvertSettings(join=join, min_images=2, layout="by_identity")
    dataset = convert(sources, tmp_path / "out", settings)
    assert (dataset.identities, dataset.index.label.tolist()) == (identities, [0, 0, 1, 1])


def test_convert_whose_shards_have_other_keys_than_were_read_is_refused(tmp_path: Path) -> None:
    def other_keys(work: Any, parts: Any, name: str, *, rows: int | None = None) -> Any:
        for result in map_in_threads(work, parts, name, rows=rows):
            is_shard = name == "write shards"
            yield dataclasses.replace(result, digest=result.digest ^ 1) if is_shard else result

    with pytest.raises(DataError, match=r"/out: the keys in the shards differ from those that were read: delete it"):
        convert(InMemory([images(2)]), tmp_path / "out", map_parts=other_keys)  # type: ignore[arg-type]


def test_convert_into_an_object_store_writes_what_a_disk_holds(tmp_path: Path, object_store: ObjectStore) -> None:
    settings = ConvertSettings(shard_size=12_000, name="same")
    convert(InMemory([images(20)]), tmp_path / "out", settings)
    convert(InMemory([images(20)]), object_store.uri("out"), settings)
    found = {name.removeprefix("out/"): data for name, data in object_store.files().items()}
    assert found == files(tmp_path / "out")
