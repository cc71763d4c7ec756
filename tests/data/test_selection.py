"""Datasets that are some samples of another one."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from rayface.data.check import check
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.manifest import Parent
from rayface.data.selection import select, write_selected_shard, write_selection, write_shards_manifest
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, Sample
from rayface.data.shards.sequential import scan_shard
from rayface.data.writer import write_dataset
from rayface.storage import DataError
from tests.data.scanned_tars import picture
from tests.data.shard_files import write_tar


def make(folder: Path, names: str = "abc", first: int = 0) -> Dataset:
    """Four samples of each identity, in small shards."""
    samples = ((f"{folder.name}{k}", k % len(names), b"\xff\xd8" + bytes([k])) for k in range(first, 4 * len(names)))
    return write_dataset(folder, samples, name=folder.name, identities=list(names), image_size=None, shard_size=8192)


def content(dataset: Dataset) -> list[tuple[str, int, bytes]]:
    """Keys, labels and bytes, read through the index."""
    samples = read_samples(dataset.shard_paths(), dataset.index)
    assert not any(isinstance(sample, Fault) for sample in samples)
    pairs = zip(dataset.index.shard, samples, strict=True)
    keys = [dataset.key_prefixes[shard] + sample.key for shard, sample in pairs if not isinstance(sample, Fault)]
    assert keys == dataset.keys()
    jpegs = [sample.jpeg for sample in samples if not isinstance(sample, Fault)]
    return list(zip(keys, dataset.index.label.tolist(), jpegs, strict=True))


ROWS = np.array([9, 1, 4, 5])


@pytest.mark.parametrize("copied", [False, True])
def test_selection_when_opened_reads_like_any_dataset(tmp_path: Path, copied: bool) -> None:
    """The selected samples in the order of the source, and the parent dataset."""
    source = make(tmp_path / "all")
    chosen, out = select(source, ROWS), tmp_path / "some"
    out.mkdir()
    if copied:
        samples = source.index.select(chosen.rows)
        scans = []
        for number, shard in enumerate(np.unique(samples.shard)):
            mine = samples.shard == shard
            for _ in range(2):  # the second time it is there
                scan = write_selected_shard(
                    str(out), source.shard_paths(), samples.select(mine), chosen.labels[mine], number, ""
                )
            scans.append(scan)
        found = write_shards_manifest(str(out), chosen, scans, name="some")
        assert check(out, deep=False).ok
    else:
        found = write_selection(str(out), chosen, name="some")
        with pytest.raises(ValueError, match=f"is a selection of those of other datasets: check {tmp_path}/all"):
            check(out)
    whole = content(source)
    assert content(found) == [whole[row] for row in sorted(ROWS)]
    assert found.identities == source.identities
    assert found.about.parent == Parent(path=str(tmp_path / "all"), digest=source.digest)
    assert found.digest != source.digest


def test_selection_without_all_images_of_a_class_renumbers_labels(tmp_path: Path) -> None:
    """Remaining labels are renumbered and keep their names; the shards keep the old labels."""
    source = make(tmp_path / "all")
    rows = np.flatnonzero(source.index.label != 1)
    out = tmp_path / "some"
    out.mkdir()
    found = write_selection(str(out), select(source, rows), name="some")
    assert (found.num_classes, found.identities) == (2, ("a", "c"))
    assert found.index.label.tolist() == [0, 1] * 4
    assert found.index.source_label.tolist() == [0, 2] * 4
    assert [row[0] for row in content(found)] == [source.keys()[row] for row in rows]


def test_selection_of_several_datasets_joins_with_another(tmp_path: Path) -> None:
    """Labels are joined by identity name."""
    make(tmp_path / "one", "ab")
    make(tmp_path / "two", "bc")
    both = open_dataset([tmp_path / "one", tmp_path / "two"])
    out = tmp_path / "some"
    out.mkdir()
    found = write_selection(str(out), select(both, np.flatnonzero(both.index.label > 0)), name="some")
    assert found.identities == ("b", "c")
    joined = open_dataset([tmp_path / "one", out])
    names = {key: joined.identities[label] for key, label, _ in content(joined) if joined.identities}
    assert {names[key] for key in names if key.startswith("some/two")} == {"b", "c"}
    assert "one/one1" in names  # faces of `one` are in both: each twice, told apart by the directory
    assert "some/one1" in names
    assert len(names) == len(content(joined))


def test_selection_of_a_corrupt_source_reports_its_faults(tmp_path: Path) -> None:
    source = make(tmp_path / "all")
    out = tmp_path / "some"
    out.mkdir()
    write_selection(str(out), select(source, ROWS), name="some")
    first = Path(source.shards[int(source.index.shard[1])].path)
    first.write_bytes(first.read_bytes()[:600])
    lost = open_dataset(out, max_corrupt_fraction=1)
    assert lost.num_images < len(ROWS)
    assert lost.faults[0].shard == str(first)
    assert sum(fault.num_lost for fault in lost.faults) + lost.num_images == len(ROWS)


def test_digest_of_other_selections_differs(tmp_path: Path) -> None:
    source = make(tmp_path / "all")
    digests = set()
    for name, rows in (("x", [1, 2]), ("y", [1, 3]), ("z", [1, 2])):
        (tmp_path / name).mkdir()
        digests.add(write_selection(str(tmp_path / name), select(source, np.array(rows)), name=name).digest)
    assert len(digests) == 2
    assert json.loads((tmp_path / "x" / "dataset.json").read_text())["num_images"] == 2
    with pytest.raises(ValueError, match="no samples of the dataset remain"):
        select(source, np.array([], np.int64))


def test_selection_with_other_labels_gives_each_row_its_own_and_has_another_digest(tmp_path: Path) -> None:
    source = make(tmp_path / "all")
    rows, digests = np.array([5, 1, 9]), set()
    for name, labels in (("x", [0, 2, 1]), ("y", [2, 0, 1])):
        (tmp_path / name).mkdir()
        found = write_selection(str(tmp_path / name), select(source, rows, np.array(labels)), name=name)
        assert found.index.label.tolist() == [labels[1], labels[0], labels[2]]  # in the order of the source
        assert found.keys() == [source.keys()[row] for row in (1, 5, 9)]
        digests.add(found.digest)
    assert len(digests) == 2
    fewer = select(source, rows, np.array([0, 2, 2]))  # two identities are one now, and the third is gone
    assert (fewer.labels.tolist(), fewer.identities, fewer.num_classes) == ([1, 0, 1], ("a", "c"), 2)


def test_selection_without_its_index_is_refused(tmp_path: Path) -> None:
    """Without it, all samples of the referenced shards would be read."""
    source, out = make(tmp_path / "all"), tmp_path / "some"
    out.mkdir()
    write_selection(str(out), select(source, ROWS), name="some")
    (out / "index.parquet").unlink()
    with pytest.raises(ValueError, match=r"some: index.parquet is missing, which lists the selected samples"):
        open_dataset(out)


def test_write_selected_shard_beside_one_of_other_samples_is_refused(tmp_path: Path) -> None:
    source, out = make(tmp_path / "all"), tmp_path / "some"
    out.mkdir()
    for rows in ([0, 1], [0, 1, 2]):
        chosen = select(source, np.array(rows))
        samples = source.index.select(chosen.rows)
        given = str(out), source.shard_paths(), samples, chosen.labels, 0, ""
        if len(rows) == 2:
            write_selected_shard(*given)
        else:
            with pytest.raises(DataError, match=r"shard-000000\.tar: has 2 of 3 samples: delete it and run again"):
                write_selected_shard(*given)


def test_selection_written_as_shards_has_the_description_of_its_source_and_digests(tmp_path: Path) -> None:
    samples = ((f"k{k}", 0, b"\xff\xd8" + bytes([k])) for k in range(3))
    about = {"image_size": (32, 48), "licence": "CC0", "source": "drawn", "layout": "by_identity"}
    source, out = write_dataset(tmp_path / "all", samples, name="all", identities=["a"], **about), tmp_path / "some"
    out.mkdir()
    chosen = select(source, np.array([0, 2]))
    given = source.shard_paths(), source.index.select(chosen.rows), chosen.labels
    scan = write_selected_shard(str(out), *given, 0, "")
    found = write_shards_manifest(str(out), chosen, [scan], name="some")
    assert {key: getattr(found.about, key) for key in about} == about
    assert (found.name, found.about.created_by) == ("some", source.about.created_by)
    (shard,) = found.shards
    content = Path(shard.path).read_bytes()
    assert (shard.num_images, shard.num_bytes, shard.sha256) == (2, len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_write_selected_shard_keeps_format_and_key(tmp_path: Path, suffix: str) -> None:
    files = [m for i in range(3) for m in ((f"k.{i}.{suffix}", picture(i, suffix)), (f"k.{i}.json", b'{"label": 0}'))]
    write_tar(tmp_path / "in" / "a.tar", files)
    dataset = open_dataset(tmp_path / "in")
    chosen = select(dataset, np.array([2, 0]))
    samples = dataset.index.select(chosen.rows)
    (tmp_path / "out").mkdir()
    write_selected_shard(str(tmp_path / "out"), dataset.shard_paths(), samples, chosen.labels, 0, "")
    (path,) = (tmp_path / "out").iterdir()
    found = [entry for entry in scan_shard(path) if isinstance(entry, Sample)]
    assert [(s.key, s.label, s.jpeg) for s in found] == [(f"k.{i}", 0, picture(i, suffix)) for i in (0, 2)]
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"k.{i}.{s}" for i in (0, 2) for s in (suffix, "cls")]
