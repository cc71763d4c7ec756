"""A dataset of what a core set keeps: images found by key; what is refused before samples are copied."""

import io
import tarfile
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.curate.prune import pruned_dataset
from rayface.curate.prune.pruned_dataset import _select, check_copied, check_data, write_dataset
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.selection import select, write_selection
from rayface.data.shards.tar import encode_member
from rayface.embedding.embeddings import open_embeddings
from rayface.storage import DataError
from tests.keyed_dataset import KEYS, embed_keyed, keyed_dataset


def shard(folder: Path, *keys: str) -> Path:
    """A folder with a tar of foreign samples."""
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key in keys:
            for suffix, content in (("jpg", b"\xff\xd8\xff"), ("cls", b"0")):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("key", ["../../a", "a/../../b", "/etc/a", "\\xc9milie/1"])
def test_check_copied_of_a_key_outside_of_its_shard_raises(tmp_path: Path, key: str) -> None:
    """Foreign shards with such keys are read, but not copied; encode_member refuses such names too."""
    dataset = open_dataset(shard(tmp_path / "data", "good", key, "n/..x/a"))
    assert dataset.num_images == 3
    with pytest.raises(ValueError, match=r"prune.write_shards: .*data: key '.*': is a path outside") as raised:
        check_copied(dataset)
    assert repr(key) in str(raised.value)
    with pytest.raises(ValueError, match=r"must be a relative name without \.\."):
        encode_member(f"{key}.jpg", b"")
    with pytest.raises(ValueError, match=r"must be a relative name without \.\."):
        encode_member(key.replace("/", "\\") + ".jpg", b"")
    check_copied(open_dataset(shard(tmp_path / "other", "good", "n/..x/a", "a..b")))


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    return keyed_dataset(tmp_path, monkeypatch)


def test_check_data_of_the_embedded_dataset_passes_and_of_another_is_refused(
    keyed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = open_embeddings(embed_keyed(keyed, tmp_path / "embeddings", monkeypatch))
    check_data(embeddings, keyed)
    other = open_dataset(tmp_path / "b")
    with pytest.raises(DataError, match=r"^prune.data: .*b: has no key 'a/0.tar/0' \(3 of 3 are missing\): give the"):
        check_data(embeddings, other)


def test_core_set_in_any_order_is_found_in_the_dataset_by_key(keyed: Dataset, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(12)
    rows = {"key": np.array(KEYS)[order], "label": np.tile(range(3), 4)[order], "kept": order % 5 == 0}
    pq.write_table(pa.table(rows), tmp_path / "core_set.parquet")
    selection, known = _select(tmp_path / "core_set.parquet", keyed, {})
    assert (selection.rows.tolist(), known) == ([0, 5, 10], 12)
    (tmp_path / "pruned").mkdir()
    pruned = write_selection(str(tmp_path / "pruned"), selection, name="pruned")
    assert pruned.keys() == ["a/0.tar/0", "a/1.tar/2", "b/1.tar/1"]
    rows["key"][3] = "b/0.tar/9"
    pq.write_table(pa.table(rows), tmp_path / "core_set.parquet")
    with pytest.raises(DataError, match=r"has no key 'b/0.tar/9' \(1 of 12 are missing\): give the dataset"):
        _select(tmp_path / "core_set.parquet", keyed, {})


def test_core_set_of_other_labels_is_refused_unless_they_were_merged(keyed: Dataset, tmp_path: Path) -> None:
    labels = np.tile([0, 1, 1], 4)
    pq.write_table(pa.table({"key": KEYS, "label": labels, "kept": np.ones(12, bool)}), tmp_path / "core_set.parquet")
    with pytest.raises(DataError, match=r"^prune.data: .*: label of a/0.tar/2 is 2, the embeddings say 1: give the"):
        _select(tmp_path / "core_set.parquet", keyed, {})
    selection, _ = _select(tmp_path / "core_set.parquet", keyed, {2: 1})
    assert sorted(set(selection.labels.tolist())) == [0, 1]


def test_shards_of_an_interrupted_job_are_no_dataset_until_it_is_run_again(
    keyed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a manifest, the shards that are written would be read as a whole dataset."""
    monkeypatch.setattr(pruned_dataset, "ray", types.SimpleNamespace(put=lambda value: value, get=lambda value: value))
    selection = select(keyed, np.array([0, 2, 5, 10]))

    def write(name: str, interrupted: bool = False) -> dict[str, bytes]:
        def tasks(work, parts, *phase, **of):
            for part in parts:
                yield work(part)
                if interrupted:
                    raise KeyboardInterrupt

        monkeypatch.setattr(pruned_dataset, "map_unordered", tasks)
        (tmp_path / name / "same").mkdir(parents=True, exist_ok=True)
        write_dataset(str(tmp_path / name / "same"), selection, 12, write_shards=True)
        return {path.name: path.read_bytes() for path in (tmp_path / name / "same").iterdir()}

    wanted = write("whole")
    with pytest.raises(KeyboardInterrupt):
        write("half", interrupted=True)
    assert (tmp_path / "half" / "same" / "shard-000000.tar").exists()
    with pytest.raises(DataError, match=r"the dataset is unfinished; run the command that writes it again$"):
        open_dataset(tmp_path / "half" / "same")
    assert write("half") == wanted
    assert open_dataset(tmp_path / "half" / "same").keys() == ["a/0.tar/0", "a/0.tar/2", "a/1.tar/2", "b/1.tar/1"]
