"""A worker's rank, and the collectives of training on one process and on two."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rayface.training import distributed
from rayface.training.distributed import (
    World,
    average_buffers,
    broadcast_flag,
    from_rank_0,
    gather_rows,
    host_group,
    use_cores,
)
from tests.ranks import run_ranks


def world(rank: int = 0, size: int = 1, local_size: int = 1) -> World:
    return World(rank=rank, size=size, local_size=local_size, device=torch.device("cpu"))


@pytest.mark.parametrize(("cores", "local_size", "threads"), [(8, 2, 4), (7, 2, 3), (2, 5, 1)])
def test_use_cores_of_several_workers_on_a_machine_splits_them(
    cores: int, local_size: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "num_cpus", lambda: cores)
    use_cores(world(local_size=local_size))
    assert torch.get_num_threads() == threads


def test_use_cores_of_gpu_workers_splits_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They move rows of class centers in host memory."""
    monkeypatch.setattr("rayface.training.distributed.num_cpus", lambda: 12)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    use_cores(World(rank=0, size=1, local_size=4, device=torch.device("cuda")))
    assert threads == [3]


def test_collectives_of_a_single_worker_return_what_they_are_given() -> None:
    rows, norm = torch.rand(3, 2), torch.nn.BatchNorm1d(2)
    assert gather_rows(rows, [3], world()) is rows
    assert from_rank_0({"a": 1}, world()) == {"a": 1}
    assert broadcast_flag(True, world())
    average_buffers(norm, world())
    assert norm.running_var.tolist() == [1, 1]


def collect(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = world(rank, 2, 2)
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(2).double())
    for layer in norm:
        layer.running_mean.fill_(rank)
        layer.running_var.fill_(2 + 4 * rank)
        layer.num_batches_tracked.fill_(5 + rank)
    average_buffers(norm, own)
    for layer in norm:
        assert set(layer.running_mean.tolist()) == {0.5}
        assert set(layer.running_var.tolist()) == {4.0}
        assert layer.num_batches_tracked == 5 + rank  # counts are no statistics
    counts = [3, 1]
    rows = gather_rows(torch.full((counts[rank], 2), float(rank)), counts, own)
    assert rows.tolist() == [[0, 0]] * 3 + [[1, 1]]
    assert from_rank_0(f"of {rank}", own) == "of 0"
    assert broadcast_flag(rank == 0, own)
    assert not broadcast_flag(rank == 1, own)
    Path(folder, f"rank{rank}").touch()


def test_collectives_of_two_workers_average_gather_and_broadcast(tmp_path: Path) -> None:
    run_ranks(collect, (str(tmp_path),), 2)
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1"}  # both came to the end


def wait_in_a_host_group(rank: int, folder: str) -> None:
    """Joined within a second, its collectives wait longer; a rank that does not join is found."""
    distributed.JOIN = 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = host_group(timedelta(seconds=60))
    if rank == 1:
        time.sleep(1.5)
    dist.barrier(group)
    if rank == 0:
        with pytest.raises(RuntimeError, match=r"^rank 0 cannot join the others by gloo within 1 s: .*GLOO"):
            host_group(None)
    dist.barrier(group)
    Path(folder, f"rank{rank}").touch()


def test_host_group_of_a_rank_that_does_not_join_is_given_up_early(tmp_path: Path) -> None:
    run_ranks(wait_in_a_host_group, (str(tmp_path),), 2)
    assert {path.name for path in tmp_path.glob("rank*")} == {"rank0", "rank1"}
