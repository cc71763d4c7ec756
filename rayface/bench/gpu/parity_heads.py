"""Parity of heads: losses, gradients of the embeddings, and where two steps move the class centers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from rayface.bench.gpu.case import Case, Kit, Measured
from rayface.bench.gpu.errors import as_good, relative_error
from rayface.heads import MARGINS, build_margin
from rayface.heads.partial_fc import DTYPES, PartialFC
from rayface.heads.prefetch import Place

_FLOORS = {"fp32": 2e-5, "bf16": 5e-3}  # of errors; below it no difference between devices matters
_STEPS, _RATE = 2, 0.1
_OPTIONS = {"combined": {"m2": 0.3, "m3": 0.2}}  # without any it is a plain softmax


class SameRows(PartialFC):
    """Partial FC that draws its rows on the CPU: each kind of device has random numbers of its own."""

    def choose_rows(self, targets: Tensor, place: Place) -> Tensor | None:
        """Return the rows that a head on the CPU chooses."""
        rows = super().choose_rows(targets.cpu(), place)
        return None if rows is None else rows.to(targets.device)


@dataclass(frozen=True, kw_only=True)
class HeadSetting:
    """A head, and how it is used."""

    margin: str = "cosface"
    scale: float = 64.0
    conflict_threshold: float | None = None
    sample_rate: float = 1.0
    center_update: str = "sparse"
    optimizer: str = "sgd"
    compute_dtype: str = "fp32"
    storage_dtype: str = "fp32"
    kernel: str = "chunked"
    host_memory: bool = False
    prefetch: bool = False
    logit_memory: int = 512_000_000
    losses: int = 1
    """Before each step."""

    @property
    def floor(self) -> float:
        """The error below which no difference matters."""
        return _FLOORS["bf16" if "bf16" in (self.compute_dtype, self.storage_dtype) else "fp32"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """More than one chunk of rows on a GPU."""

    num_classes: int = 20_000
    embedding_size: int = 64
    batch_size: int = 64


MINI = Sizes(num_classes=300, embedding_size=16, batch_size=12)

VARIANTS: dict[str, HeadSetting] = {
    "many rows sampled": HeadSetting(sample_rate=0.85),
    "adamw, sampled, sparse": HeadSetting(optimizer="adamw", sample_rate=0.1),
    "adamw, sampled, dense": HeadSetting(optimizer="adamw", sample_rate=0.1, center_update="dense"),
    "bf16 products, full": HeadSetting(compute_dtype="bf16"),
    "bf16 products, sampled": HeadSetting(compute_dtype="bf16", sample_rate=0.1),
    "bf16 products, curricularface": HeadSetting(compute_dtype="bf16", margin="curricularface"),
    "bf16 storage, sampled, sparse": HeadSetting(storage_dtype="bf16", sample_rate=0.1),
    "bf16 storage, sampled, dense": HeadSetting(storage_dtype="bf16", sample_rate=0.1, center_update="dense"),
    "bf16 storage and products, adamw": HeadSetting(storage_dtype="bf16", compute_dtype="bf16", optimizer="adamw"),
    "host memory, sampled": HeadSetting(host_memory=True, sample_rate=0.1),
    "host memory, prefetch": HeadSetting(host_memory=True, sample_rate=0.1, prefetch=True),
    "host memory, prefetch, dense": HeadSetting(
        host_memory=True, sample_rate=0.1, prefetch=True, center_update="dense"
    ),
    "host memory, prefetch, adamw": HeadSetting(host_memory=True, sample_rate=0.1, prefetch=True, optimizer="adamw"),
    "host memory, prefetch, bf16": HeadSetting(
        host_memory=True, sample_rate=0.1, prefetch=True, storage_dtype="bf16", compute_dtype="bf16"
    ),
    "host memory, full": HeadSetting(host_memory=True),
    "logits recomputed": HeadSetting(logit_memory=1_000_000),
    "logits recomputed, curricularface": HeadSetting(logit_memory=1_000_000, margin="curricularface"),
    "two losses a step, sparse": HeadSetting(losses=2, sample_rate=0.1),
    "two losses a step, dense": HeadSetting(losses=2, sample_rate=0.1, center_update="dense"),
    "two losses a step, full": HeadSetting(losses=2),
    "conflict filter": HeadSetting(conflict_threshold=0.4),
    "running maximum": HeadSetting(scale=120.0),
}
FUSED: dict[str, HeadSetting] = {
    "fused, full": HeadSetting(kernel="fused", compute_dtype="bf16"),
    "fused, sampled": HeadSetting(kernel="fused", compute_dtype="bf16", sample_rate=0.1),
    "fused, fp32": HeadSetting(kernel="fused"),
    "fused, bf16 storage": HeadSetting(kernel="fused", compute_dtype="bf16", storage_dtype="bf16"),
    "fused, conflict filter": HeadSetting(kernel="fused", compute_dtype="bf16", conflict_threshold=0.4),
    "fused, running maximum": HeadSetting(kernel="fused", scale=120.0),
    "fused, host memory, prefetch": HeadSetting(kernel="fused", host_memory=True, sample_rate=0.1, prefetch=True),
    "fused, two losses a step": HeadSetting(kernel="fused", losses=2, sample_rate=0.1, center_update="dense"),
    "fused, adamw": HeadSetting(kernel="fused", optimizer="adamw"),
    "fused, arcface": HeadSetting(kernel="fused", compute_dtype="bf16", margin="arcface"),
}
"""Of the Triton kernels, which run on CUDA only."""


@dataclass(frozen=True, kw_only=True)
class HeadErrors(Measured):
    """Relative errors against float64, of the device and of the CPU in the same types."""

    loss: float
    gradient: float
    """Of the embeddings."""
    centers: float
    """Of their movement in two steps."""
    cpu_loss: float
    cpu_gradient: float
    cpu_centers: float


@dataclass(frozen=True, kw_only=True)
class Repeatability(Measured):
    """Two equal runs on the device."""

    largest_difference: float


@dataclass(frozen=True)
class Trace:
    """What a head did in some steps, in float64 on the CPU."""

    losses: Tensor
    gradients: Tensor
    moved: Tensor
    statistics: Tensor
    """Of the margin."""

    def errors(self, exact: "Trace") -> tuple[float, float, float]:
        """Return the relative errors of losses, gradients and movement; the margin's statistics count as losses."""
        found, wanted = (torch.cat([trace.losses, trace.statistics]) for trace in (self, exact))
        gradients, moved = (getattr(self, name) for name in ("gradients", "moved"))
        return (
            relative_error(found, wanted),
            relative_error(gradients, exact.gradients),
            relative_error(moved, exact.moved),
        )


def cases(kit: Kit) -> Iterator[Case]:
    """Yield all margins on both roads of sampling and update, then the variants of one margin."""
    sizes = MINI if kit.mini else Sizes()
    settings = {
        f"{margin}, {'full' if rate == 1 else 'sampled'}, {update}": HeadSetting(
            margin=margin, sample_rate=rate, center_update=update
        )
        for margin in MARGINS
        for rate in (1.0, 0.1)
        for update in ("sparse", "dense")
    }
    fused = FUSED if kit.device == "cuda" else {}
    for name, setting in (settings | VARIANTS | fused).items():
        yield Case(name=f"head {name}", run=partial(compare, setting, sizes, kit.device), seconds=3)
    repeated = {"full": HeadSetting(), "sampled": HeadSetting(sample_rate=0.1)}
    repeated |= {name: FUSED[name] for name in fused if name in ("fused, full", "fused, sampled")}
    for name, setting in repeated.items():
        run = partial(repeat, setting, sizes, kit.device)
        yield Case(name=f"head repeated, {name}", run=run, seconds=3)


def compare(setting: HeadSetting, sizes: Sizes, device: str) -> HeadErrors:
    """Compare a head on the device and on the CPU with one in float64."""
    here = replace(setting, kernel="chunked")
    exact = replace(here, storage_dtype="fp64", compute_dtype="fp32", host_memory=False, prefetch=False)
    wanted = trace(exact, sizes, "cpu", start_dtype=setting.storage_dtype)
    on_device = trace(setting, sizes, device, start_dtype=setting.storage_dtype).errors(wanted)
    on_cpu = trace(here, sizes, "cpu", start_dtype=setting.storage_dtype).errors(wanted)
    return HeadErrors(
        passed=as_good(on_device, on_cpu, setting.floor),
        loss=on_device[0],
        gradient=on_device[1],
        centers=on_device[2],
        cpu_loss=on_cpu[0],
        cpu_gradient=on_cpu[1],
        cpu_centers=on_cpu[2],
    )


def repeat(setting: HeadSetting, sizes: Sizes, device: str) -> Repeatability:
    """Run a head twice on the device: both are equal to the bit, or a resumed run is not the run."""
    first, second = (trace(setting, sizes, device) for _ in range(2))
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    largest = max(float((a - b).abs().max()) if a.numel() else 0.0 for a, b in pairs)
    return Repeatability(passed=largest == 0, largest_difference=largest)


def trace(setting: HeadSetting, sizes: Sizes, device: str, *, start_dtype: str = "fp32") -> Trace:
    """Run a head for two steps on drawn embeddings.

    Args:
        start_dtype: the class centers begin at numbers that this type can hold.
    """
    head = _build(setting, sizes, device)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(sizes.num_classes, sizes.embedding_size, generator=generator) * 0.01
    start = start.to(DTYPES[start_dtype]).to(DTYPES[setting.storage_dtype])
    head.load_centers(start)
    wide = torch.float64 if setting.storage_dtype == "fp64" else torch.float32
    losses, gradients = [], []
    for _ in range(_STEPS):
        for _ in range(setting.losses):
            embeddings, labels = _batch(sizes, generator)
            leaf = embeddings.to(device, wide).requires_grad_()
            there = labels.to(device)
            if setting.prefetch:
                head.prefetch(there)
            loss = head.loss(leaf, there)
            loss.backward()
            assert leaf.grad is not None
            losses.append(loss.detach().double().cpu())
            gradients.append(leaf.grad.double().cpu())
        head.step(_RATE)
    return Trace(
        losses=torch.stack(losses),
        gradients=torch.stack(gradients),
        moved=head.centers.double().cpu() - start.double(),
        statistics=torch.tensor(list(head.margin.state().values()), dtype=torch.float64),
    )


def _build(setting: HeadSetting, sizes: Sizes, device: str) -> PartialFC:
    options = {"scale": setting.scale, "conflict_threshold": setting.conflict_threshold}
    margin = build_margin(setting.margin, **options, **_OPTIONS.get(setting.margin, {}))
    return SameRows(
        sizes.embedding_size,
        sizes.num_classes,
        margin,
        sample_rate=setting.sample_rate,
        center_update=setting.center_update,
        optimizer=setting.optimizer,
        compute_dtype=setting.compute_dtype,
        storage_dtype=setting.storage_dtype,
        kernel=setting.kernel,
        host_memory=setting.host_memory,
        logit_memory=setting.logit_memory,
        device=device,
    )


def _batch(sizes: Sizes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return embeddings of norms around 20, and labels of which some occur twice."""
    embeddings = torch.randn(sizes.batch_size, sizes.embedding_size, generator=generator)
    norms = 10 + 20 * torch.rand(sizes.batch_size, 1, generator=generator)
    labels = torch.randint(sizes.num_classes, (sizes.batch_size,), generator=generator)
    labels[: sizes.batch_size // 4] = labels[-(sizes.batch_size // 4) :]
    return torch.nn.functional.normalize(embeddings) * norms, labels
