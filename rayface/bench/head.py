"""How long a step of the class layer takes on this machine, against its three bare matrix products."""

import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rayface.bench.processes import check_device, in_processes, now
from rayface.heads import CosFace, PartialFC

WARM_UP = 2


def bench_head(
    num_classes: int,
    batch_size: int,
    sample_rate: float = 0.1,
    dtype: str = "fp32",
    workers: int = 1,
    steps: int = 5,
    *,
    embedding_size: int = 512,
    storage_dtype: str = "fp32",
    logit_memory: int = 512_000_000,
    straightforward: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure steps of PartialFC (CosFace, SGD with momentum) in fresh processes, one per worker.

    Args:
        batch_size: global batch, divisible by workers.
        dtype: of the matrix products, "fp32" or "bf16".
        steps: measured ones, after two to warm up; reported is the median.
        straightforward: measure the plain way beside it, in one more process: gathered rows, full logits, dense
            gradient, torch's SGD. Its peak is about three times the storage.
        device: "cpu", or "cuda" with one GPU per worker.
    Returns:
        sizes and settings as given; "step_seconds", "loss_seconds" (with the embeddings' gradient), "update_seconds";
        "products_seconds" of logits, embedding gradient and center gradient alone at a worker's sizes, run in turn with
        the steps; "ratio" of the two; "peak_bytes" of a worker (resident memory, or GPU memory), "state_bytes" of its
        centers and momentum; "straightforward": its "step_seconds" and "peak_bytes", or None.
    Raises:
        ValueError: counts that cannot be, a batch that workers cannot share, a device that is not there.
    """
    if workers < 1 or steps < 1:
        raise ValueError(f"workers {workers} and steps {steps} must be at least 1")
    if batch_size < workers or batch_size % workers:
        raise ValueError(f"batch_size {batch_size} must be a multiple of workers {workers}")
    check_device(device, workers)
    settings = {
        "num_classes": num_classes,
        "batch_size": batch_size,
        "sample_rate": sample_rate,
        "dtype": dtype,
        "workers": workers,
        "steps": steps,
        "embedding_size": embedding_size,
        "storage_dtype": storage_dtype,
        "logit_memory": logit_memory,
        "device": device,
    }
    # bad settings are said here, in one line, not in a worker
    PartialFC(1, num_classes, CosFace(), sample_rate=sample_rate, compute_dtype=dtype, storage_dtype=storage_dtype)
    measured = in_processes(_measure_ours, workers, settings)
    plain = in_processes(_measure_straightforward, 1, settings | {"workers": 1}) if straightforward else None
    return {**settings, **measured, "straightforward": plain}


def bench_scaling(
    classes: Sequence[int], batch_size: int, *, sampled_rows: int, **options: Any
) -> list[dict[str, Any]]:
    """Return what `bench_head` measures for each number of classes, sampled_rows of them used in every step.

    Args:
        options: of `bench_head`.
    Raises:
        ValueError: as `bench_head`; more sampled rows than classes.
    """
    if not 0 < sampled_rows <= min(classes):
        raise ValueError(f"--sampled-rows: {sampled_rows}: must be from 1 to the fewest --classes, {min(classes)}")
    # a hair more, so that int(rate * count) does not fall short of the rows asked for
    return [bench_head(count, batch_size, min(1.0, (sampled_rows + 1e-3) / count), **options) for count in classes]


def as_table(results: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return what to show a person of several results."""
    return [
        {
            "classes": f"{found['num_classes']:,}",
            "rows": f"{int(found['sample_rate'] * found['num_classes']):,}",
            "step s": f"{found['step_seconds']:.3f}",
            "products s": f"{found['products_seconds']:.3f}",
            "ratio": f"{found['ratio']:.2f}",
            "peak GB": f"{found['peak_bytes'] / 1e9:.2f}",
            "state GB": f"{found['state_bytes'] / 1e9:.2f}",
        }
        for found in results
    ]


def _measure_ours(settings: dict[str, Any]) -> dict[str, Any]:
    head = PartialFC(
        settings["embedding_size"],
        settings["num_classes"],
        CosFace(),
        sample_rate=settings["sample_rate"],
        compute_dtype=settings["dtype"],
        storage_dtype=settings["storage_dtype"],
        logit_memory=settings["logit_memory"],
        device=settings["device"],
    )

    def step() -> tuple[float, float]:
        embeddings, labels = _batch(settings)
        start = now(settings["device"])
        head.loss(embeddings, labels).backward()
        middle = now(settings["device"])
        head.step(0.1)
        return middle - start, now(settings["device"]) - middle

    for _ in range(WARM_UP):
        step()
    peak = _peak_bytes(settings)  # before the products below take memory of their own
    products = _bare_products(head, settings)
    times, bare = [], []
    for _ in range(settings["steps"]):
        times.append(step())
        start = now(settings["device"])
        products()
        bare.append(now(settings["device"]) - start)
    seconds = [sum(pair) for pair in times]
    state = [v for v in head.state().values() if isinstance(v, Tensor)]
    return {
        "step_seconds": statistics.median(seconds),
        "loss_seconds": statistics.median(loss for loss, _ in times),
        "update_seconds": statistics.median(update for _, update in times),
        "products_seconds": statistics.median(bare),
        "ratio": statistics.median(seconds) / statistics.median(bare),
        "peak_bytes": peak,
        "state_bytes": sum(v.numel() * v.element_size() for v in state),
    }


def _batch(settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return this worker's random embeddings and labels."""
    shape = (settings["batch_size"] // settings["workers"], settings["embedding_size"])
    embeddings = torch.randn(shape, device=settings["device"]).requires_grad_()
    return embeddings, torch.randint(settings["num_classes"], shape[:1], device=settings["device"])


def _bare_products(head: PartialFC, settings: dict[str, Any]) -> Callable[[], None]:
    """Return the three products at a worker's sizes, with all memory touched beforehand."""
    dtype = torch.bfloat16 if settings["dtype"] == "bf16" else torch.float32
    count = max(1, int(len(head.centers) * settings["sample_rate"]))
    centers = head.centers[:count].to(dtype)
    embeddings = torch.randn(settings["batch_size"], centers.shape[1], device=centers.device).to(dtype)
    logits = torch.zeros(len(embeddings), count, dtype=dtype, device=centers.device)
    by_embedding, by_center = torch.zeros_like(embeddings), torch.zeros_like(centers)

    def run() -> None:
        torch.mm(embeddings, centers.T, out=logits)
        torch.mm(logits, centers, out=by_embedding)
        torch.mm(logits.T, embeddings, out=by_center)

    run()
    return run


def _measure_straightforward(settings: dict[str, Any]) -> dict[str, Any]:
    centers = torch.randn(settings["num_classes"], settings["embedding_size"], device=settings["device"])
    centers = centers.mul_(0.01).requires_grad_()
    optimizer = torch.optim.SGD([centers], lr=0.1, momentum=0.9, weight_decay=5e-4)
    margin, count = CosFace(), int(settings["sample_rate"] * settings["num_classes"])
    times = []
    for _ in range(WARM_UP + settings["steps"]):
        embeddings, labels = _batch(settings)
        start = now(settings["device"])
        rows, places = None, labels
        if settings["sample_rate"] < 1:
            scores = torch.rand(len(centers), device=centers.device)
            scores[labels] = 2
            rows = scores.topk(count).indices.sort().values
            places = torch.searchsorted(rows, labels)
        with torch.autocast(settings["device"], torch.bfloat16, enabled=settings["dtype"] == "bf16"):
            used = centers if rows is None else centers[rows]
            cosine = F.linear(F.normalize(embeddings), F.normalize(used))
        loss = F.cross_entropy(margin.logits(cosine.float(), places), places)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(now(settings["device"]) - start)
    return {"step_seconds": statistics.median(times[WARM_UP:]), "peak_bytes": _peak_bytes(settings)}


def _peak_bytes(settings: dict[str, Any]) -> int:
    if settings["device"] == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
