"""Benchmark of checkpoints: time that training waits, and time of the write."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from rayface.backbones import build_backbone
from rayface.heads import CosFace, PartialFC
from rayface.training.checkpointing.progress import Progress
from rayface.training.checkpointing.state import whole_state
from rayface.training.checkpointing.writer import CheckpointWriter, WriteTiming
from rayface.training.distributed import World
from rayface.training.trained import Trained

_WARM_UP = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointBench:
    """Settings: a small backbone and a head are trained on noise in this process."""

    num_classes: int
    batch_size: int
    embedding_size: int = 512
    sample_rate: float = 0.1
    checkpoints: int = 3
    """Number of measured checkpoints, after one to warm up; times are means."""
    directory: Path | None = None
    """Folder on the disk to measure; None: the temporary folder."""


@dataclass(frozen=True, kw_only=True)
class CheckpointTimes:
    """Measurements of checkpoints that are written while training continues."""

    num_classes: int
    batch_size: int
    sample_rate: float
    state_bytes: int
    wait_seconds: float
    """Time that the step loop waits for a checkpoint."""
    copy_seconds: float
    """Time of the copy in the background."""
    write_seconds: float
    ratio: float
    """Wait time relative to write time."""
    step_seconds: float
    """Time of a step while nothing is written."""
    step_seconds_writing: float

    def as_dict(self) -> dict[str, int | float]:
        """Return the values by name, for --json."""
        return asdict(self)


def bench_checkpoint(settings: CheckpointBench) -> CheckpointTimes:
    """Save checkpoints while training continues, and measure wait and write times."""
    head = PartialFC(settings.embedding_size, settings.num_classes, CosFace(), sample_rate=settings.sample_rate)
    backbone = build_backbone("mini", embedding_size=settings.embedding_size, image_size=112)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, momentum=0.9)
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=settings.directory) as folder:
        writer = CheckpointWriter(Path(folder), keep=1)
        step = _step_of(settings, backbone, head, optimizer, writer)
        alone = [step() for _ in range(5)][2:]
        beside: list[float] = []
        timings: list[WriteTiming] = []
        for number in range(settings.checkpoints + _WARM_UP):
            state = whole_state(Trained(backbone=backbone, head=head, optimizer=optimizer), world)
            writer.save(state, Progress(step=number))
            while writer.writing:
                beside.append(step())
            writer.wait()
            assert writer.timing is not None
            timings.append(writer.timing)
    measured = timings[_WARM_UP:]
    wait, write = (sum(getattr(t, key) for t in measured) / len(measured) for key in ("wait_seconds", "write_seconds"))
    return CheckpointTimes(
        num_classes=settings.num_classes,
        batch_size=settings.batch_size,
        sample_rate=settings.sample_rate,
        state_bytes=sum(tensor.as_subclass(torch.Tensor).nbytes for tensor in state.values()),
        wait_seconds=wait,
        copy_seconds=sum(timing.copy_seconds for timing in measured) / len(measured),
        write_seconds=write,
        ratio=wait / write,
        step_seconds=sum(alone) / len(alone),
        step_seconds_writing=sum(beside) / len(beside),
    )


def _step_of(
    settings: CheckpointBench,
    backbone: nn.Module,
    head: PartialFC,
    optimizer: torch.optim.Optimizer,
    writer: CheckpointWriter,
) -> Callable[[], float]:
    """Return a function that does one training step and returns its seconds."""
    images = torch.randn(settings.batch_size, 3, 112, 112).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(settings.num_classes, (settings.batch_size,))

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        head.loss(backbone(images), labels).backward()
        writer.wait_until_copied(head.last_rows())
        optimizer.step()
        head.step(0.1)
        return time.perf_counter() - start

    return step
