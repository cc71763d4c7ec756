"""One rank of a process group that works through the oracle's cases: head_ranks RANK WORLD_SIZE RENDEZVOUS OUT."""

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rayface.heads import PartialFC, build_margin
from tests.heads.head_oracle import Case, cases


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    own, size = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=own, world_size=size)
    torch.save({case.name: solve(case, own, size) for case in cases()}, f"{sys.argv[4]}.{own}")
    dist.destroy_process_group()
