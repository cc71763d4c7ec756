"""Partial FC on 1, 2 and 3 real gloo processes against the float64 oracle, gradients included."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.heads import head_oracle

CASES = {case.name: case for case in head_oracle.cases()}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """Return a function that runs all cases on W processes, once."""
    done: dict[int, list[dict]] = {}

    def run(world_size: int) -> list[dict]:
        if world_size not in done:
            folder = tmp_path_factory.mktemp(f"ranks{world_size}")
            command = [sys.executable, "-m", "tests.heads.head_ranks"]
            ranks = [
                subprocess.Popen([*command, str(rank), str(world_size), str(folder / "meet"), str(folder / "out")])
                for rank in range(world_size)
            ]
            try:
                assert [rank.wait(timeout=120) for rank in ranks] == [0] * world_size
            finally:
                for rank in ranks:
                    rank.kill()
            done[world_size] = [torch.load(f"{folder}/out.{k}", weights_only=True) for k in range(world_size)]
        return done[world_size]

    return run


def relative(ours: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest wanted value."""
    return ((ours.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)).item()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_oracle(solved, name: str, world_size: int) -> None:
    """Losses, embedding gradients, centers and moments."""
    case, parts = CASES[name], [part[name] for part in solved(world_size)]
    used = torch.stack([part["used"] for part in parts]).any(0)
    wanted = head_oracle.run(case, list(used))
    for part in parts:
        assert relative(part["losses"], wanted["losses"]) < case.bound
        assert torch.equal(part["losses"], parts[0]["losses"])
    assert relative(torch.cat([p["gradients"] for p in parts], 1), wanted["gradients"]) < case.bound
    assert relative(torch.cat([p["state centers"] for p in parts]), wanted["centers"]) < case.bound
    for ours, theirs in (("momentum", "m"), ("exp_avg", "m"), ("exp_avg_sq", "v")):
        if f"state {ours}" in parts[0]:
            assert relative(torch.cat([p[f"state {ours}"] for p in parts]), wanted[theirs]) < case.bound


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sampled_ranks_use_their_share(solved, world_size: int) -> None:
    """Every rank uses int(r n) of its n rows, or all its positives where these are more."""
    case = CASES["arcface sparse sampled"]
    for rank, part in enumerate(solved(world_size)):
        rows = case.num_classes // world_size + (rank < case.num_classes % world_size)
        for used in part[case.name]["used"]:
            assert used.sum() >= int(0.3 * rows)
            assert used.sum() <= max(int(0.3 * rows), case.batch)


@pytest.mark.parametrize("name", CASES)
def test_collectives_of_a_step(solved, name: str) -> None:
    """One all-gather, one all-reduce, one reduce-scatter; a maximum more where the scale is no safe bound.

    Rows that are fetched early need the labels of all ranks early: a gather more.
    """
    calls = solved(2)[0][name]["collectives"].tolist()
    extra = 1 if "large" in name else 0
    # CurricularFace must know the target cosines first; its second all-reduce replaces the reduce-scatter
    wanted = [1, 2 + extra, 0] if "curricular" in name else [1 + CASES[name].prefetch, 1 + extra, 1]
    assert calls == wanted
    assert solved(1)[0][name]["collectives"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_fetched_early_change_no_bit(solved, world_size: int) -> None:
    """Losses, gradients and all state of every rank."""
    for part in solved(world_size):
        late, soon = part["rows read late"], part["rows read soon"]
        assert all(torch.equal(late[key], soon[key]) for key in late if key != "collectives")
