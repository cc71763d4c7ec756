"""The slow, obvious definition of a margin-softmax head: whole matrices, autograd, one process, float64."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Case:
    """One problem: a logical matrix of class centers, a few global batches, and the head's arguments."""

    name: str
    num_classes: int = 37
    width: int = 12
    batch: int = 12
    steps: int = 3
    margin: str = "cosface"
    margin_args: dict[str, Any] = field(default_factory=dict)
    head_args: dict[str, Any] = field(default_factory=dict)
    special: str = ""
    losses_per_step: int = 1
    prefetch: bool = False
    norm: float = 1.0
    dtype: torch.dtype = torch.float64
    bound: float = 1e-10  # on the relative error of losses, gradients, centers and moments
    lr: float = 0.1

    def centers(self) -> Tensor:
        """Return the initial matrix, (C, D)."""
        return torch.randn(self.num_classes, self.width, generator=self._generator(0), dtype=torch.float64)

    def batches(self, centers: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the global batches of all losses: embeddings (B, D) and labels (B,)."""
        made = []
        for index in range(self.steps * self.losses_per_step):
            generator = self._generator(1 + index)
            x = torch.randn(self.batch, self.width, generator=generator, dtype=torch.float64) * self.norm
            y = torch.randint(self.num_classes, (self.batch,), generator=generator)
            if self.special == "one range":  # no positives for the other ranks
                y = y % max(1, self.num_classes // 3)
            if self.special == "duplicates":
                x[1:6], y[1:4] = x[0], y[0]
            if self.special == "zeros":
                x[0] = x[5] = 0
            if self.special == "aligned":  # cosines of 1 and -1 to their own and to another center
                x[0], x[1], x[2] = centers[y[0]] * 3, -centers[y[1]], centers[(y[2] + 1) % self.num_classes]
            made.append((x, y))
        return made

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * len(self.name) + number)


def target_logit(case: Case, cosine: Tensor, norms: Tensor, stats: dict[str, float]) -> Tensor:
    """Return the target's logit over the scale, (B,), from the papers' definitions."""
    a = case.margin_args
    theta = torch.acos(cosine.clamp(-1, 1))
    if case.margin == "cosface":
        return cosine - a.get("margin", 0.4)
    if case.margin in ("arcface", "combined"):
        m1, m2, m3 = a.get("m1", 1.0), a.get("m2", a.get("margin", 0.5)), a.get("m3", 0.0)
        moved = torch.cos(m1 * theta + m2) - m3
        return moved if a.get("gradient") == "exact" else cosine + (moved - cosine).detach()
    if case.margin == "elasticface":  # tested with a deviation of 0
        return torch.cos(theta + 0.5) if a.get("kind", "arc") == "arc" else cosine - 0.35
    if case.margin == "adaface":
        z = norms.detach().clamp(0.001, 100)
        if stats.get("moves", True):
            stats["mean"] = 0.99 * stats.get("mean", 20.0) + 0.01 * z.mean().item()
            stats["std"] = 0.99 * stats.get("std", 100.0) + 0.01 * z.std(unbiased=True).item()
        k = ((z - stats["mean"]) / (stats["std"] + 1e-3) * 0.333).clamp(-1, 1)
        return torch.cos((theta - 0.4 * k).clamp(1e-3, math.pi - 1e-3)) - (0.4 + 0.4 * k)
    if case.margin == "magface":
        m = (0.8 - 0.45) / (110 - 10) * (norms.clamp(10, 110) - 10) + 0.45
        return torch.where(theta > math.pi - m, cosine - m * torch.sin(m), torch.cos(theta + m))
    if case.margin == "curricularface":
        return torch.where(theta > math.pi - 0.5, cosine - 0.5 * math.sin(0.5), torch.cos(theta + 0.5))
    raise KeyError(case.margin)


def loss(case: Case, x: Tensor, y: Tensor, centers: Tensor, used: Tensor, stats: dict[str, float]) -> Tensor:
    """Return the mean loss of a global batch over the used classes (C,) bool."""
    cosine = F.normalize(x) @ F.normalize(centers).T
    own = cosine.gather(1, y[:, None]).squeeze(1)
    scale = case.margin_args.get("scale", 64.0)
    others = cosine.clone()
    threshold = case.margin_args.get("conflict_threshold")
    if threshold is not None:
        others = torch.where(others > threshold, torch.zeros_like(others), others)
    norms = x.norm(dim=1)
    if case.margin == "curricularface":
        if stats.get("moves", True):
            stats["t"] = 0.99 * stats.get("t", 0.0) + 0.01 * own.mean().item()
        hard = others > torch.cos(torch.acos(own) + 0.5)[:, None].detach()
        others = torch.where(hard, others * (stats["t"] + others), others)
    logits = scale * others.scatter(1, y[:, None], target_logit(case, own, norms, stats)[:, None])
    value = F.cross_entropy(logits.masked_fill(~used, -math.inf), y)
    if case.margin == "magface":
        a = norms.clamp(10, 110)
        value = value + 35 * (1 / a + a / 110**2).mean()
    return value


def update(case: Case, centers: Tensor, gradient: Tensor, moves: Tensor, memory: dict[str, Tensor]) -> None:
    """Move the rows of centers (C, D) where moves (C,) is true, in place, row by row."""
    args = case.head_args
    decay = args.get("weight_decay", 5e-4)
    for name in ("m", "v"):
        memory.setdefault(name, torch.zeros_like(centers))
    age = memory.setdefault("age", torch.zeros(len(centers)))
    for row in moves.nonzero().flatten().tolist():
        w, g, m, v = centers[row], gradient[row], memory["m"][row], memory["v"][row]
        if args.get("optimizer", "sgd") == "sgd":
            m.copy_(args.get("momentum", 0.9) * m + g + decay * w)
            w -= case.lr * m
        else:
            age[row] += 1
            w *= 1 - case.lr * decay
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.999 * v + 0.001 * g * g)
            step = (m / (1 - 0.9 ** age[row].item())) / ((v / (1 - 0.999 ** age[row].item())).sqrt() + 1e-8)
            w -= case.lr * step


def run(case: Case, rows_used: list[Tensor]) -> dict[str, Any]:
    """Return losses, embedding gradients and the final matrix; rows_used: (C,) bool per loss, as the head chose."""
    centers = case.centers()
    stats: dict[str, float] = {}
    memory: dict[str, Tensor] = {}
    losses, gradients = [], []
    batches = case.batches(centers.clone())
    for step in range(case.steps):
        w = centers.clone().requires_grad_()
        moves = torch.zeros(case.num_classes, dtype=torch.bool)
        for index in range(step * case.losses_per_step, (step + 1) * case.losses_per_step):
            x, y = batches[index]
            x = x.clone().requires_grad_()
            stats["moves"] = index == step * case.losses_per_step  # once per update of the centers
            value = loss(case, x, y, w, rows_used[index], stats)
            value.backward()
            losses.append(value.detach())
            # a zero embedding has no direction: the head leaves its gradient at 0
            gradients.append(torch.where(x.norm(dim=1, keepdim=True) > 0, x.grad, 0.0))
            moves |= rows_used[index]
        if case.head_args.get("center_update") == "dense":
            moves[:] = True
        update(case, centers, w.grad, moves, memory)
    return {"losses": torch.stack(losses), "gradients": torch.stack(gradients), "centers": centers, **memory}


def cases() -> list[Case]:
    """Return every problem that all world sizes must solve."""
    cos, arc = {"margin": 0.4}, {"margin": 0.5}
    conflict = {"conflict_threshold": 0.15}
    dense = {"center_update": "dense"}
    made = [
        Case("cosface dense", margin_args=cos, head_args=dense),
        Case("cosface dense conflict", margin_args=cos | conflict, head_args=dense),
        Case("arcface dense", margin="arcface", margin_args=arc, head_args=dense),
        Case("arcface dense conflict", margin="arcface", margin_args=arc | conflict, head_args=dense),
        Case("cosface dense sampled", head_args=dense | {"sample_rate": 0.3}),
        Case("arcface sparse sampled", margin="arcface", head_args={"sample_rate": 0.3}),
        Case("arcface exact", margin="arcface", margin_args={"gradient": "exact"}),
        Case(
            "combined exact",
            margin="combined",
            margin_args={"scale": 30.0, "m1": 1.1, "m2": 0.2, "m3": 0.1, "gradient": "exact"},
        ),
        Case("adamw sparse", head_args={"optimizer": "adamw", "sample_rate": 0.4, "weight_decay": 0.1}, lr=0.01),
        Case("adamw dense", head_args={"optimizer": "adamw", "weight_decay": 0.1, **dense}, lr=0.01),
        Case("no momentum", head_args={"momentum": 0.0, "sample_rate": 0.5}),
        Case("recomputed chunks", head_args={"logit_memory": 1200}),
        Case("recomputed sampled", head_args={"logit_memory": 1200, "sample_rate": 0.6}, margin_args=conflict),
        Case("large scale", margin_args={"scale": 900.0} | conflict),
        Case("large scale sampled", margin_args={"scale": 900.0}, head_args={"sample_rate": 0.5}),
        Case("accumulated", losses_per_step=2, head_args={"sample_rate": 0.3}),
        Case("accumulated dense", losses_per_step=3, head_args={"sample_rate": 0.3, **dense}),
        Case("accumulated all", losses_per_step=2, head_args={"logit_memory": 3000}),
        Case("adaface", margin="adaface", norm=8.0),
        Case("elastic arc", margin="elasticface", margin_args={"std": 0.0}),
        Case("elastic cos", margin="elasticface", margin_args={"kind": "cos", "std": 0.0}),
        Case("magface", margin="magface", norm=8.0, head_args={"sample_rate": 0.5}),
        Case("curricularface", margin="curricularface", width=4),
        Case("curricularface sampled", margin="curricularface", width=4, head_args={"sample_rate": 0.5}),
        Case("curricularface large", margin="curricularface", width=4, margin_args={"scale": 900.0}),
        Case(
            "curricularface accumulated",
            margin="curricularface",
            width=4,
            losses_per_step=2,
            head_args={"logit_memory": 1200},
        ),
        # names of one length: the same data
        Case("rows read late", head_args={"host_memory": True, "sample_rate": 0.4, "logit_memory": 1200}),
        Case(
            "rows read soon",
            head_args={"host_memory": True, "sample_rate": 0.4, "logit_memory": 1200},
            prefetch=True,
        ),
        Case("uneven", batch=11, head_args={"sample_rate": 0.5}),
        Case("adaface accumulated", margin="adaface", losses_per_step=3),
        Case("uneven curricularface accumulated", batch=7, margin="curricularface", width=4, losses_per_step=2),
        Case("one class", num_classes=1),
        Case("two classes", num_classes=2, margin="arcface", head_args={"sample_rate": 0.5}),
        Case("one range", special="one range", head_args={"sample_rate": 0.3}),
        Case("duplicates", special="duplicates", margin="arcface"),
        Case("zeros", special="zeros", margin="arcface", margin_args={"gradient": "exact"}),
        Case("aligned", special="aligned"),
        Case("aligned arc", special="aligned", margin="arcface", bound=1e-7),  # acos near 1 halves the digits
    ]
    low = {"compute_dtype": "bf16"}
    for name, changes in {
        "one class": {"num_classes": 1},
        "fewer classes than ranks": {"num_classes": 2},
        "one range": {"special": "one range"},
        "zeros": {"special": "zeros"},
        "duplicates": {"special": "duplicates"},
        "aligned": {"special": "aligned"},
    }.items():
        made.append(Case(f"{name} bf16", dtype=torch.float32, head_args=low, bound=0.05, **changes))
    single = [Case(f"{c.name} fp32", **{k: v for k, v in vars(c).items() if k != "name"}) for c in made[:6]]
    for case in single:
        case.dtype, case.bound = torch.float32, 1e-5
    return made + single


FUSED = (
    *("arcface dense conflict", "combined exact", "adamw sparse", "accumulated dense", "large scale", "adaface"),
    *("magface", "rows read soon", "uneven", "two classes", "one range", "duplicates"),
)


def fused_cases() -> list[Case]:
    """Return the problems that the fused kernels must solve in fp32."""
    known = {case.name: case for case in cases()}
    made = []
    for name in FUSED:
        case = known[name]
        bound = 1e-3 if "large" in name else 1e-5  # a logit of 900 has an error of 3e-5 in fp32
        args = {**case.head_args, "kernel": "fused"}
        steps = 2 if name in ("adamw sparse", "uneven") else 1
        made.append(replace(case, head_args=args, steps=steps, dtype=torch.float32, bound=bound))
    return made
