"""Benchmark of one worker's training steps, by phase and operator."""

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from rayface import config as configs
from rayface.config import Config
from rayface.data.dataset import open_dataset
from rayface.data.images import augment
from rayface.data.streaming.batches import Batch, train_batches
from rayface.data.streaming.dealer import deal
from rayface.data.streaming.orders import order_samples
from rayface.data.streaming.shared_samples import share
from rayface.precision import autocast, uses_bf16
from rayface.session import ray_session
from rayface.training.builders import build_config_backbone, build_config_head, data_parallel
from rayface.training.distributed import World
from rayface.training.optim import build_optimizer

WARM_UP = 2
PROFILED = 2  # number of profiled steps
PHASES = ("data_wait", "augment", "forward", "head", "backward", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A PyTorch operator in a step: calls, seconds, and share of the time of all operators."""

    op: str
    calls: float
    seconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class BackboneTimes:
    """Measurements of one backbone; medians over the steps."""

    name: str
    images_per_second: float
    step_seconds: float
    seconds: dict[str, float]
    """Seconds by phase."""
    share: dict[str, float]
    """Share of the total time by phase."""
    ops: list[Operator] | None = None
    """Operators, slowest first; None without a profile."""

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        values = asdict(self)
        return values if self.ops is not None else {key: value for key, value in values.items() if key != "ops"}


@dataclass(frozen=True, kw_only=True)
class TrainTimes:
    """Settings and measurements of training steps."""

    batch_size: int
    image_size: int
    precision: str
    threads: int
    num_classes: int
    data: str | None
    """Name of the dataset; None: noise."""
    steps: int
    backbones: list[BackboneTimes]

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        return {**vars(self), "backbones": [each.as_dict() for each in self.backbones]}


def bench_train(
    names: Sequence[str],
    config: Config,
    *,
    num_classes: int = 10_000,
    steps: int = 10,
    ops: int = 0,
    device: str = "cpu",
) -> TrainTimes:
    """Measure training steps of backbones in this process, with the code of a `rayface train` worker.

    Args:
        names: names of the backbones, measured one after the other.
        config: sizes, precision, head and optimizer; data.train is read by Ray Data as in a run. Without it, images are
            noise in memory.
        num_classes: number of classes of the head without a dataset.
        steps: number of measured steps, after two to warm up.
        ops: number of slowest PyTorch operators to report, from a profile of two more steps.
        device: cpu or cuda.

    Raises:
        ValueError: an unknown name, or an invalid size.
    """
    if steps < 1 or ops < 0:
        raise ValueError(f"steps {steps}, ops {ops}: must be at least 1 and 0")
    data = None
    if config.data.train:
        dataset = open_dataset(config.data.train, join=config.data.join)
        data, num_classes = dataset.name, dataset.num_classes
    world = World(rank=0, size=1, local_size=1, device=torch.device(device))
    bf16 = uses_bf16(config.train.precision, world.device)
    found: list[BackboneTimes] = []
    for name in names:
        named = configs.with_overrides(config, {"backbone.name": name})
        with _batches(named, num_classes, WARM_UP + steps + (PROFILED if ops else 0)) as batches:
            bench = _Bench(named, num_classes, world, bf16)
            seconds = bench.run(itertools.islice(batches, WARM_UP + steps))[WARM_UP:]
            profiled = bench.profile(batches)[:ops] if ops else None
        found.append(_summary(name, seconds, config.train.batch_size, profiled))
    return TrainTimes(
        batch_size=config.train.batch_size,
        image_size=config.data.image_size,
        precision="bf16" if bf16 else "fp32",
        threads=torch.get_num_threads(),
        num_classes=num_classes,
        data=data,
        steps=steps,
        backbones=found,
    )


class _Bench:
    """A training step whose parts are timed separately."""

    def __init__(self, config: Config, num_classes: int, world: World, bf16: bool) -> None:
        torch.manual_seed(config.train.seed)
        self.config, self.device, self.bf16 = config, world.device, bf16
        self.backbone = build_config_backbone(config).to(world.device)
        self.backbone = self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = data_parallel(self.backbone, world, config)
        self.head = build_config_head(config, num_classes, world, self.backbone)
        if self.head.stream != "images":
            raise ValueError(
                f"head.name: {config.head.name}: trains on pairs: bench train takes heads with class centers"
            )
        optim = config.optim
        options = {"lr": optim.lr, "momentum": optim.momentum, "weight_decay": optim.weight_decay}
        self.optimizer = build_optimizer(optim.name, self.backbone, **options)

    def run(self, batches: Iterator[Batch]) -> list[dict[str, float]]:
        """Train on the batches; return the seconds by phase of each step."""
        measured: list[dict[str, float]] = []
        while True:
            clock = _Clock(self.device)
            batch = next(batches, None)
            if batch is None:
                return measured
            clock.lap("data_wait")
            self.step(batch, clock)
            measured.append(clock.seconds)

    def profile(self, batches: Iterator[Batch]) -> list[Operator]:
        """Train on the remaining PROFILED batches under PyTorch's profiler; return the operators, slowest first.

        Time is the operator's own, without the operators that it calls; on a GPU that of its kernels.
        """
        gpu = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
            for batch in batches:
                self.step(batch, _Clock(self.device))
        times = {e.key: e.self_device_time_total if gpu else e.self_cpu_time_total for e in profiler.key_averages()}
        calls = {e.key: e.count for e in profiler.key_averages()}
        whole = sum(times.values())
        return [
            Operator(op=op, calls=calls[op] / PROFILED, seconds=us / 1e6 / PROFILED, share=us / whole)
            for op, us in sorted(times.items(), key=lambda pair: -pair[1])
        ]

    def step(self, batch: Batch, clock: "_Clock") -> None:
        """Run one step; embeddings are detached from the backbone to time the two backward passes separately."""
        images = self._augmented(batch)
        clock.lap("augment")
        with autocast(self.device, self.bf16):
            embeddings = self.forward(images).float()
        clock.lap("forward")
        leaf = embeddings.detach().requires_grad_()
        self.head.loss(leaf, batch.labels.to(self.device)).backward()
        clock.lap("head")
        self.optimizer.zero_grad(set_to_none=True)
        embeddings.backward(leaf.grad)
        clock.lap("backward")
        torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), self.config.optim.clip_norm or math.inf)
        self.optimizer.step()
        clock.lap("optimizer")
        self.head.step(self.config.optim.lr)
        clock.lap("head")

    def _augmented(self, batch: Batch) -> torch.Tensor:
        data = self.config.data
        images = augment(
            batch.images.to(self.device),
            batch.rows,
            self.config.train.batch_size,
            torch.Generator().manual_seed(batch.step),
            flip=data.flip,
            shift=data.shift,
            brightness=data.brightness,
            contrast=data.contrast,
            saturation=data.saturation,
        )
        return images.contiguous(memory_format=torch.channels_last)


class _Clock:
    """Record the seconds by phase since the last lap."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


def _summary(name: str, steps: list[dict[str, float]], batch_size: int, ops: list[Operator] | None) -> BackboneTimes:
    whole = [sum(step.values()) for step in steps]
    seconds = {phase: statistics.median(step[phase] for step in steps) for phase in PHASES}
    share = {phase: sum(step[phase] for step in steps) / sum(whole) for phase in PHASES}
    step_seconds = statistics.median(whole)
    speed = batch_size / step_seconds
    return BackboneTimes(
        name=name, images_per_second=speed, step_seconds=step_seconds, seconds=seconds, share=share, ops=ops
    )


@contextmanager
def _batches(config: Config, num_classes: int, steps: int) -> Iterator[Iterator[Batch]]:
    """Provide the batches of one worker: from the dataset through Ray, else noise."""
    if not config.data.train:
        yield _noise(config, num_classes, steps)
        return
    dataset = open_dataset(config.data.train, join=config.data.join)
    train, data = config.train, config.data
    plan = order_samples(
        dataset,
        batch_size=train.batch_size,
        seed=train.seed,
        chunk_images=data.chunk_images,
        window_images=data.window_images,
    )

    with ray_session():
        dealt = deal(
            share(dataset),
            plan,
            image_size=data.image_size,
            world_size=1,
            start=0,
            stop=steps,
            readers=data.readers,
            reserved={"CPU": float(train.cpus_per_worker)},
            early=False,  # steps would wait for the others of their window
        )
        yield train_batches(dealt, 0)


def _noise(config: Config, num_classes: int, steps: int) -> Iterator[Batch]:
    size, count = config.data.image_size, config.train.batch_size
    generator = torch.Generator().manual_seed(config.train.seed)
    images = torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(num_classes, (count,), generator=generator)
    for step in range(steps):
        yield Batch(step=step, rows=slice(0, count), images=images, labels=labels, faults=())
