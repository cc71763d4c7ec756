"""Writing shards from pieces: once, completely, and in their order."""

from pathlib import Path

import pytest

from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.shard_plan import ShardPlan, plan_shards
from rayface.data.conversion.shards import WriteShard
from rayface.data.conversion.work_folder import WorkFolder
from rayface.data.shards.samples import Sample
from rayface.data.shards.sequential import scan_shard
from rayface.storage import DataError
from tests.data.conversion.work import images, spilled, work_folder
from tests.data.sources.in_memory import InMemory

SETTINGS = ConvertSettings(shard_size=12_000)


@pytest.fixture
def planned(tmp_path: Path) -> tuple[ShardPlan, WorkFolder]:
    work = work_folder(tmp_path)
    found = spilled(work, InMemory([images(20)]), SETTINGS, piece_bytes=4000)
    return plan_shards(found, work, SETTINGS, block_bytes=3000), work


def test_write_shard_writes_its_samples_within_the_size(planned: tuple[ShardPlan, WorkFolder], tmp_path: Path) -> None:
    plan, work = planned
    write = WriteShard(plan=plan, work=work)
    keys = []
    for number in range(len(plan)):
        written = write(number)
        path = tmp_path / written.entry.path
        assert path.stat().st_size == written.entry.num_bytes <= 12_000 + 10_240  # padded to whole records
        samples = [each for each in scan_shard(path) if isinstance(each, Sample)]
        keys += [sample.key for sample in samples]
        assert {sample.key: (sample.label, sample.jpeg) for sample in samples}.items() <= {
            key: (int(name[2:]), data) for key, name, data in images(20)
        }.items()
    assert len(keys) == len(set(keys)) == 20
    assert keys != sorted(keys)


def test_write_shard_of_a_complete_one_keeps_it_and_of_a_torn_one_writes_the_same_bytes(
    planned: tuple[ShardPlan, WorkFolder], tmp_path: Path
) -> None:
    plan, work = planned
    write = WriteShard(plan=plan, work=work)
    first = write(0)
    path = tmp_path / first.entry.path
    data, inode = path.read_bytes(), path.stat().st_ino
    assert write(0) == first
    assert path.stat().st_ino == inode
    path.write_bytes(data[:-1])
    assert write(0) == first
    assert path.read_bytes() == data


def test_write_shard_from_a_piece_without_an_image_is_refused(planned: tuple[ShardPlan, WorkFolder]) -> None:
    plan, work = planned
    for piece in plan.pieces:
        Path(piece).write_bytes(b"")
    with pytest.raises(DataError, match=r"pieces have 0 of \d+ images of shard 0: delete the output folder"):
        WriteShard(plan=plan, work=work)(0)
