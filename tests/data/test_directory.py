"""Opening a directory: counts compared with the manifest, changed shards, unusable folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.data.dataset import open_dataset
from rayface.storage import DataError
from tests.data.shard_files import members, small_dataset, write_tar


def test_bare_directory_by_identity_is_recognised(tmp_path: Path) -> None:
    files = [(f"{i}.{s}", d) for i in range(9) for s, d in (("jpg", b"x"), ("cls", b"%d" % (i // 3)))]
    write_tar(tmp_path / "a" / "a.tar", files)
    assert open_dataset(tmp_path / "a").about.layout == "by_identity"
    write_tar(tmp_path / "b" / "a.tar", members())
    assert open_dataset(tmp_path / "b").about.layout == "shuffled"
    assert open_dataset([tmp_path / "a", tmp_path / "b"], join="labels").about.layout == "by_identity"


def test_open_dataset_with_a_truncated_shard_keeps_the_rest(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    dataset = open_dataset(folder)
    last = Path(dataset.shards[-1].path)
    start = int(dataset.index.offset[-1])
    with open(last, "r+b") as file:
        file.truncate(start + 700)
    with pytest.raises(DataError) as caught:
        open_dataset(folder)
    message = str(caught.value)
    assert "1 of 5 samples" in message
    assert "data.max_corrupt_fraction" in message
    assert f"{last}: k4 at byte {start}" in message
    assert "\n" not in message
    reduced = open_dataset(folder, max_corrupt_fraction=0.2)
    assert reduced.num_images == 4
    assert reduced.keys() == ["k0", "k1", "k2", "k3"]
    (fault,) = reduced.faults
    assert (fault.member, fault.offset, fault.num_lost, fault.kind) == ("k4", start, 1, "size")


def test_open_dataset_with_replaced_or_missing_shards_counts_the_loss(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    shards = open_dataset(folder).shards
    write_tar(Path(shards[0].path), [("other.jpg", b"x" * 30000), ("other.cls", b"0")])
    Path(shards[1].path).unlink()
    dataset = open_dataset(folder, max_corrupt_fraction=1)
    lost = shards[0].num_images + shards[1].num_images
    assert [fault.num_lost for fault in dataset.faults] == [shards[0].num_images, shards[1].num_images]
    assert dataset.num_images == 5 - lost


def test_open_dataset_with_a_label_out_of_range_is_a_fault(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["num_classes"] = 4
    (folder / "dataset.json").write_text(json.dumps(manifest))
    (folder / "identities.parquet").unlink()
    dataset = open_dataset(folder, max_corrupt_fraction=0.5)
    (fault,) = dataset.faults
    assert (fault.member, fault.kind) == ("k4.cls", "label")
    assert "label 4 is out of range: 4 classes" in fault.reason
    (folder / "index.parquet").unlink()
    assert open_dataset(folder, max_corrupt_fraction=0.5).faults == dataset.faults


def edit_index(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(folder / "index.parquet")), folder / "index.parquet")


def test_open_dataset_of_an_unusable_directory_is_one_line(tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            open_dataset(folder)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", "no such dataset folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"no tar shards .*: `rayface convert` makes a dataset")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.tar").write_bytes(b"junk" * 1000)
    refused(tmp_path / "junk", "no tar member in 4000 bytes.*corrupt.*remove it")
    for name, content in (("bad1", "{"), ("bad2", '{"name": 3}')):
        folder = small_dataset(tmp_path, name)
        (folder / "dataset.json").write_text(content)
        refused(folder, "dataset.json")
    folder = small_dataset(tmp_path, "escape")
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace("shard-000000.tar", "../escape.tar"))
    refused(folder, "must be the name of a file")
    folder = small_dataset(tmp_path, "short")
    edit_index(folder, lambda table: table.slice(1))
    refused(folder, "sample counts differ.*rayface check --write-manifest")
    folder = small_dataset(tmp_path, "noparquet")
    (folder / "index.parquet").write_bytes(b"x")
    refused(folder, "not a parquet file")
    folder = small_dataset(tmp_path, "names")
    pq.write_table(pa.table({"label": [0, 1], "identity": ["a", "b"]}), folder / "identities.parquet")
    refused(folder, "identities.parquet: label")
