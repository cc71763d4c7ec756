"""What is refused before samples are copied into shards of their own."""

import io
import tarfile
from pathlib import Path

import pytest

from rayface.curate.prune.pruned_dataset import check_copied
from rayface.data.dataset import open_dataset
from rayface.data.shards.tar import encode_member


def shard(folder: Path, *keys: str) -> Path:
    """A folder with a tar of somebody's samples."""
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


@pytest.mark.parametrize("key", ["../../a", "a/../../b", "/etc/a"])
def test_check_copied_of_a_key_outside_of_its_shard_raises(tmp_path: Path, key: str) -> None:
    """They are read, and refused where a shard of ours would have them; so is any such member."""
    dataset = open_dataset(shard(tmp_path / "data", "good", key, "n/..x/a"))
    assert dataset.num_images == 3
    with pytest.raises(ValueError, match=r"prune.write_shards: .*data: key '.*': is a place outside") as raised:
        check_copied(dataset)
    assert repr(key) in str(raised.value)
    with pytest.raises(ValueError, match=r"must be a relative name without \.\."):
        encode_member(f"{key}.jpg", b"")
    with pytest.raises(ValueError, match=r"must be a relative name without \.\."):
        encode_member(key.replace("/", "\\") + ".jpg", b"")
    check_copied(open_dataset(shard(tmp_path / "other", "good", "n/..x/a", "a..b")))
