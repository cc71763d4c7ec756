"""How long a step of the class layer takes on this machine, against its three bare matrix products."""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F

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
        ValueError: counts that cannot be; a batch that workers cannot share.
    """
    if workers < 1 or steps < 1:
        raise ValueError(f"workers {workers} and steps {steps} must be at least 1")
    if batch_size < workers or batch_size % workers:
        raise ValueError(f"batch_size {batch_size} must be a multiple of workers {workers}")
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
    measured = _in_processes(_measure_ours, workers, settings)
    plain = _in_processes(_measure_straightforward, 1, settings | {"workers": 1}) if straightforward else None
    return {**settings, **measured, "straightforward": plain}


def _in_processes(work: Callable[[dict[str, Any]], dict[str, Any]], count: int, settings: dict[str, Any]) -> dict:
    """Run work in fresh processes of one group; return what rank 0 found."""
    context = mp.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        threads = max(1, torch.get_num_threads() // count)
        mp.spawn(_worker, (count, f"{folder}/meet", threads, work, settings, answers), nprocs=count)
    return answers.get()


def _worker(
    rank: int,
    count: int,
    meeting: str,
    threads: int,
    work: Callable[[dict[str, Any]], dict[str, Any]],
    settings: dict[str, Any],
    answers: Any,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(rank)
    if settings["device"] == "cuda":
        torch.cuda.set_device(rank)
    if count > 1:
        backend = "nccl" if settings["device"] == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=Path(meeting).as_uri(), rank=rank, world_size=count)
    found = work(settings)
    if rank == 0:
        answers.put(found)
    if count > 1:
        dist.destroy_process_group()


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
        start = _now(settings)
        head.loss(embeddings, labels).backward()
        middle = _now(settings)
        head.step(0.1)
        return middle - start, _now(settings) - middle

    for _ in range(WARM_UP):
        step()
    peak = _peak_bytes(settings)  # before the products below take memory of their own
    products = _bare_products(head, settings)
    times, bare = [], []
    for _ in range(settings["steps"]):
        times.append(step())
        start = _now(settings)
        products()
        bare.append(_now(settings) - start)
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
        start = _now(settings)
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
        times.append(_now(settings) - start)
    return {"step_seconds": statistics.median(times[WARM_UP:]), "peak_bytes": _peak_bytes(settings)}


def _now(settings: dict[str, Any]) -> float:
    if settings["device"] == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_bytes(settings: dict[str, Any]) -> int:
    if settings["device"] == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
