"""Ranks of a process group that work through the oracle's cases."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rayface.heads import PartialFC, build_margin, fused_softmax
from tests.heads import head_oracle
from tests.heads.head_oracle import Case
from tests.ranks import run_ranks


def solve(case: Case, rank: int, world_size: int) -> dict[str, Any]:
    """Return this rank's losses, gradients, used classes, and rows."""
    centers = case.centers()
    head = PartialFC(case.width, case.num_classes, build_margin(case.margin, **case.margin_args), **case.head_args)
    head.load_centers(centers.to(case.dtype))
    edges = [r * case.batch // world_size for r in range(world_size + 1)]
    own, counts = slice(edges[rank], edges[rank + 1]), [last - first for first, last in pairwise(edges)]
    losses, gradients, used = [], [], []
    calls = count_collectives()
    for index, (x, y) in enumerate(case.batches(centers)):
        x, labels = x[own].to(case.dtype).requires_grad_(), y[own]
        if case.prefetch:
            head.prefetch(labels, counts)
        value = head.loss(x, labels, counts)
        value.backward()
        losses.append(value.detach())
        gradients.append(x.grad / world_size)
        used.append(used_classes(head))
        if (index + 1) % case.losses_per_step == 0:
            head.step(case.lr)
    state = {k: v for k, v in head.state().items() if isinstance(v, Tensor)}
    return {
        "losses": torch.stack(losses),
        "gradients": torch.stack(gradients),
        "used": torch.stack(used),
        "collectives": torch.tensor([calls[name] / len(losses) for name in COLLECTIVES]),
        **{f"state {k}": v.clone() for k, v in state.items()},
    }


COLLECTIVES = {name: getattr(dist, name) for name in ("all_gather_single", "all_reduce", "reduce_scatter_single")}


def count_collectives() -> dict[str, int]:
    """Return counters of calls from now on."""
    calls = dict.fromkeys(COLLECTIVES, 0)

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return COLLECTIVES[name](*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(name))
    return calls


def used_classes(head: PartialFC) -> Tensor:
    """Return which classes of this rank the last loss used, (C,) bool, all others false."""
    used = torch.zeros(head.num_classes, dtype=torch.bool)
    rows = head.last_rows()
    used[head.first : head.last] = rows is None
    if rows is not None:
        used[head.first + rows] = True
    return used


def solve_on_ranks(folder: Path, world_size: int, kernel: str) -> list[dict[str, Any]]:
    """Return what each of W processes found for the cases of a kernel."""
    run_ranks(_rank_main, (world_size, folder, kernel), world_size)
    return [torch.load(folder / f"out.{k}", weights_only=True) for k in range(world_size)]


def relative(ours: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest wanted value."""
    return ((ours.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12)).item()


def assert_solved(case: Case, parts: list[dict[str, Any]]) -> None:
    """Compare the losses, embedding gradients, centers and moments of all ranks with the oracle's."""
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


def _rank_main(rank: int, world_size: int, folder: Path, kernel: str) -> None:
    """Solve the cases of a kernel as one rank."""
    torch.set_num_threads(1)
    fused_softmax.GPU_CHUNK_ROWS = 20  # several chunks
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world_size)
    chosen = head_oracle.fused_cases() if kernel == "fused" else head_oracle.cases()
    torch.save({case.name: solve(case, rank, world_size) for case in chosen}, folder / f"out.{rank}")
