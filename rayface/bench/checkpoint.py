"""How long training waits for a checkpoint, and how long its write takes, on this machine and disk."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rayface.backbones import build_backbone
from rayface.heads import CosFace, PartialFC
from rayface.training.checkpointing.progress import Progress
from rayface.training.checkpointing.state import whole_state
from rayface.training.checkpointing.writer import CheckpointWriter, WriteTiming
from rayface.training.distributed import World

_WARM_UP = 1


def bench_checkpoint(
    num_classes: int,
    batch_size: int,
    *,
    embedding_size: int = 512,
    sample_rate: float = 0.1,
    checkpoints: int = 3,
    directory: Path | None = None,
) -> dict[str, Any]:
    """Train a small net with a class layer on noise, in this process, and save checkpoints while it goes on.

    Args:
        checkpoints: measured ones, after one to warm up; reported are means.
        directory: on the disk to measure; None: the temporary one.
    Returns:
        state_bytes; wait_seconds of the step loop for a checkpoint, write_seconds, their ratio; copy_seconds in the
        background; step_seconds while nothing is written and step_seconds_writing while one is.
    """
    head = PartialFC(embedding_size, num_classes, CosFace(), sample_rate=sample_rate)
    backbone = build_backbone("mini", embedding_size=embedding_size, image_size=112)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9)
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    images = torch.randn(batch_size, 3, 112, 112).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes, (batch_size,))

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        head.loss(backbone(images), labels).backward()
        writer.wait_until_copied(head.last_rows())
        optimizer.step()
        head.step(0.1)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory(dir=directory) as folder:
        writer = CheckpointWriter(Path(folder), keep=1)
        alone = [step() for _ in range(5)][2:]
        beside: list[float] = []
        timings: list[WriteTiming] = []
        for number in range(checkpoints + _WARM_UP):
            state = whole_state(backbone, head, optimizer, world)
            writer.save(state, Progress(step=number))
            while writer.writing:
                beside.append(step())
            writer.wait()
            assert writer.timing is not None
            timings.append(writer.timing)
    keys = ("wait_seconds", "copy_seconds", "write_seconds")
    mean = {key: sum(getattr(t, key) for t in timings[_WARM_UP:]) / checkpoints for key in keys}
    return {
        "num_classes": num_classes,
        "batch_size": batch_size,
        "sample_rate": sample_rate,
        "state_bytes": sum(tensor.as_subclass(torch.Tensor).nbytes for tensor in state.values()),
        **mean,
        "ratio": mean["wait_seconds"] / mean["write_seconds"],
        "step_seconds": sum(alone) / len(alone),
        "step_seconds_writing": sum(beside) / len(beside),
    }
