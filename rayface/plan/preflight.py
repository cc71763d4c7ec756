"""Check before a run starts that it fits into memory; if not, name settings that make it fit."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

from rayface.config import Config, with_overrides
from rayface.heads.from_config import check_config_head
from rayface.plan.memory import Job, host_memory, job_of, memory

GB = 2**30
MOST_CLASSES = 2**40
Setting: TypeAlias = int | float | str | bool
Overrides: TypeAlias = Mapping[str, Setting]


def check_fits(
    config: Config, num_classes: int, memory_per_device: int, *, gpu: bool = True, recompute: bool = False
) -> None:
    """Refuse a run that needs more memory than a device has.

    Args:
        num_classes: C, size of the joint label space.
        memory_per_device: bytes available to one rank: of its GPU, or its share of a machine's memory.
        gpu: the ranks have GPUs.
        recompute: the backbone recomputes its blocks' activations in the backward pass.

    Raises:
        ValueError: one line: what does not fit, its largest parts, and settings each of which makes it fit.
    """
    parts = memory(job_of(config, num_classes, gpu=gpu, recompute=recompute))
    total = sum(parts.values())
    if total <= memory_per_device:
        return

    def fits(overrides: Overrides) -> bool:
        changed = with_overrides(config, overrides)
        try:
            check_config_head(changed)
            job = job_of(changed, num_classes, gpu=gpu, recompute=recompute)
        except ValueError:  # a head that takes its batch at once, a backbone without `checkpointing`
            return False
        return sum(memory(job).values()) <= memory_per_device

    largest = sorted(parts.items(), key=lambda part: -part[1])[:2]
    named = " and ".join(f"{name.replace('_', ' ')} {bytes_text(size)}" for name, size in largest)
    raise ValueError(
        f"memory: {num_classes:,} classes need {bytes_text(total)} a worker ({named}): must be at most "
        f"{bytes_text(memory_per_device)}: {_remedy(config, fits, gpu=gpu)}"
    )


def check_host_fits(config: Config, num_classes: int, memory_per_worker: int) -> None:
    """Refuse a run on GPUs that needs more host memory than a machine has: checkpoints are copied to the host.

    Args:
        num_classes: C, size of the joint label space.
        memory_per_worker: bytes of host memory available to one rank.

    Raises:
        ValueError: one line.
    """
    needed = host_memory(job_of(config, num_classes, gpu=True))
    if needed > memory_per_worker:
        remedies = ["use a larger train.num_workers on more machines"]
        remedies += ["head.storage_dtype=bf16"] * (config.head.storage_dtype == "fp32")
        remedies += ["head.host_memory=false"] * config.head.host_memory
        remedies += ["train.mirror_every=0"] * (config.train.mirror_every > 0)
        limit = bytes_text(memory_per_worker)
        raise ValueError(
            f"host memory: {num_classes:,} classes need {bytes_text(needed)} a worker, including the copies of the "
            f"state for checkpoints and the mirror: must be at most {limit}: {' or '.join(remedies)}"
        )


def largest_num_classes(job: Callable[[int], Job], memory_per_device: int) -> int:
    """Return the largest C that fits, by bisection, at most MOST_CLASSES; 0 if not even one class does.

    Args:
        job: the job for a number of classes.
    """

    def fits(num_classes: int) -> bool:
        return sum(memory(job(num_classes)).values()) <= memory_per_device

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        if high == MOST_CLASSES:
            return high
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def memory_per_worker(*, gpu: bool, workers_per_machine: int) -> int | None:
    """Return the bytes available to a worker on a machine like this one; None if unknown.

    With GPUs, the memory of this machine's first GPU, also what other jobs have of it now: Ray waits for their end.
    Else the machine's free memory, divided among the workers.
    """
    if gpu:
        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    free = _free_memory()
    return None if free is None else free // max(1, workers_per_machine)


def _remedy(config: Config, fits: Callable[[Overrides], bool], *, gpu: bool) -> str:
    """Return settings each of which makes the run fit; at most three."""
    enough = [_assignment(key, value) for key, value in _candidates(config, fits, gpu=gpu)]
    if enough:
        return f"use {' or '.join(enough[:3])}"
    head: Overrides = {"head.storage_dtype": "bf16", "head.compute_dtype": "bf16", "head.sample_rate": 0.1}
    if not gpu and config.train.mirror_every:
        head = {**head, "train.mirror_every": 0}
    workers, smallest = config.train.min_workers, {"train.max_batch_per_worker": 4}
    # More workers on GPUs with the same batch: they share the images and the class centers.
    more = [{"train.num_workers": n} for n in _doublings(workers, 4096) if config.train.batch_size >= 2 * n and gpu]
    for together in (head, {**head, **smallest}, *({**head, **smallest, **each} for each in more)):
        if fits(together):
            return "no single setting is enough: use " + " with ".join(_assignment(k, v) for k, v in together.items())
    where = "a GPU with more memory" if gpu else "a machine with more memory"
    return f"no setting is enough: use {where}, or a smaller backbone.name or data.image_size"


def _candidates(config: Config, fits: Callable[[Overrides], bool], *, gpu: bool) -> Iterator[tuple[str, Setting]]:
    """Yield settings each of which makes the run fit, a smaller batch and fewer rows last: they are another recipe."""
    head, train = config.head, config.train
    pieces = [n for n in _halvings(-(-train.batch_size // train.min_workers)) if n >= 4]
    tries: list[tuple[str, Sequence[Setting]]] = [
        ("head.storage_dtype", ["bf16"] if head.storage_dtype == "fp32" else []),
        # Workers without GPUs share the memory of their machine: more of them on it need more.
        ("train.num_workers", [n for n in _doublings(train.min_workers, 4096) if gpu and train.batch_size % n == 0]),
        ("backbone.checkpointing", [True]),
        ("train.max_batch_per_worker", pieces),
        ("train.batch_size", [b for b in _halvings(train.batch_size) if b % train.min_workers == 0 and b > 1]),
        ("head.sample_rate", [rate for rate in (0.3, 0.1, 0.05) if rate < head.sample_rate]),
        ("head.logit_memory", _halvings(head.logit_memory)[:6]),
        ("train.mirror_every", [0] if train.mirror_every and not gpu else []),  # the copies are in the same memory
    ]
    tries.insert(1, ("head.host_memory", [] if head.host_memory else [True]))
    for key, values in tries:
        found = next((value for value in values if fits({key: value})), None)
        if found is not None:
            yield key, found


def _assignment(key: str, value: Setting) -> str:
    return f"{key}={str(value).lower()}"


def _doublings(start: int, stop: int) -> list[int]:
    return [start * 2**i for i in range(1, max(1, math.ceil(math.log2(stop / start))))]


def _halvings(start: int) -> list[int]:
    return [start // 2**i for i in range(1, start.bit_length())]


def bytes_text(size: int) -> str:
    """Return a size in GB, or in MB where GB would show nothing."""
    return f"{size / GB:,.2f} GB" if size >= GB / 10 else f"{size / 2**20:,.1f} MB"


def _free_memory() -> int | None:
    """Return the free bytes of this machine or its container."""
    machine = _sizes(Path("/proc/meminfo")).get("MemAvailable:")
    group = Path("/sys/fs/cgroup")
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if machine is None or limit is None or used is None:
        return None if machine is None else machine * 1024
    # The page cache of the container (inactive_file) can be reclaimed.
    return min(machine * 1024, limit - used + _sizes(group / "memory.stat").get("inactive_file", 0))


def _sizes(path: Path) -> dict[str, int]:
    """Return name and number of every line."""
    try:
        return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}
    except OSError:
        return {}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no limit: the file is missing or says "max"
        return None
