"""Part c: images a second of whole training steps, against published figures and the project's bars."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from rayface.backbones import build_backbone
from rayface.backbones.counting import count_macs
from rayface.backbones.shapes import shapes_only
from rayface.bench.gpu.case import Case, Kit, Measured
from rayface.bench.gpu.measure import PeakMemory, count_syncs, median_laps
from rayface.bench.gpu.training_step import StepSetting, TrainingStep

WARM_UP, REPEATS, MINI_REPEATS = 3, 12, 2
SETTING = StepSetting(net="r50", num_classes=2_059_906, batch_size=128)
MINI = StepSetting(net="mini", num_classes=500, batch_size=8, image_size=32, embedding_size=32)


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Images a second of one GPU."""

    published: float
    """arcface_torch's figure on an A100."""
    floor: float
    good: float
    excellent: float

    def verdict(self, images_per_second: float) -> str:
        """Return the highest bar that is reached, of one H100, and the ratio to the published figure."""
        reached = [name for name in ("floor", "good", "excellent") if images_per_second >= getattr(self, name)]
        return f"{reached[-1] if reached else 'below'}, {images_per_second / self.published:.2f} x A100"


BARS = {
    "r50": Bars(published=1175, floor=1930, good=2640, excellent=4000),
    "r100": Bars(published=463, floor=760, good=1500, excellent=2200),
}


@dataclass(frozen=True, kw_only=True)
class TrainTimes(Measured):
    """Medians of the measured steps."""

    images_per_s: float
    bar: str
    step_ms: float
    forward_ms: float
    head_loss_ms: float
    backward_ms: float
    update_ms: float
    """Of backbone and head, the check of the gradient included."""
    tflops: float
    """Of the backbone: three times its forward products."""
    first_s: float
    """The first step, with compilation."""
    peak_gb: float | None
    syncs: int | None
    sync_sites: str


def cases(kit: Kit) -> Iterator[Case]:
    """Yield the nets, then what one of them gains by other settings, then the compiled nets."""
    if kit.mini:
        yield _case("mini", MINI, kit)
        return
    for net in ("r50", "r100", "vit_s", "mbf"):
        yield _case(net, replace(SETTING, net=net), kit)
    yield _case("r50, cudnn.benchmark", SETTING, kit, benchmark=True)
    yield _case("r50, all classes", replace(SETTING, sample_rate=1.0), kit)
    if kit.device == "cuda":
        yield _case("r50, all classes, fused", replace(SETTING, sample_rate=1.0, kernel="fused"), kit, seconds=15)
    yield _case("r50, compiled", replace(SETTING, compiled=True), kit, seconds=60)
    yield _case("r50, batch 512", replace(SETTING, batch_size=512), kit)
    yield _case("r50, contiguous", replace(SETTING, channels_last=False), kit)
    yield _case("r100, compiled", replace(SETTING, net="r100", compiled=True), kit, seconds=90)
    yield _case("mbf, compiled", replace(SETTING, net="mbf", compiled=True), kit, seconds=60)
    yield _case("vit_s, compiled", replace(SETTING, net="vit_s", compiled=True), kit, seconds=60)
    yield _case("r50, fp32", replace(SETTING, bf16=False), kit)


def _case(name: str, setting: StepSetting, kit: Kit, *, benchmark: bool = False, seconds: float = 10) -> Case:
    repeats = MINI_REPEATS if kit.mini else REPEATS
    run = partial(measure, setting, kit.device, benchmark=benchmark, repeats=repeats)
    return Case(name=f"{name}, batch {setting.batch_size}" if "batch" not in name else name, run=run, seconds=seconds)


def measure(setting: StepSetting, device: str, *, benchmark: bool = False, repeats: int = REPEATS) -> TrainTimes:
    """Measure training steps on noise in memory; the head has WebFace42M's classes, a tenth of them a step."""
    with _cudnn_benchmark(benchmark):
        step = TrainingStep(setting, device)
        images, labels = step.images()
        start = time.perf_counter()
        step.run(images, labels)
        first = time.perf_counter() - start
        for _ in range(WARM_UP):
            step.run(images, labels)
        peak = PeakMemory(device)
        step.run(images, labels)
        peak_gb, syncs = peak.gb, count_syncs(lambda: step.run(images, labels), device)
        laps = median_laps(lambda laps: step.run(images, labels, laps.mark), device, warm_up=1, repeats=repeats)
    if setting.compiled:
        torch.compiler.reset()  # compiled code keeps the weights of its net
    forward, head_loss, backward, update, _ = laps
    rate = setting.batch_size / sum(laps) * 1e3
    bars = BARS.get(setting.net)
    return TrainTimes(
        images_per_s=rate,
        bar="" if bars is None else bars.verdict(rate),
        step_ms=sum(laps),
        forward_ms=forward,
        head_loss_ms=head_loss,
        backward_ms=backward,
        update_ms=update,
        tflops=6 * _macs(setting) * rate / 1e12,
        first_s=first,
        peak_gb=peak_gb,
        syncs=syncs.count,
        sync_sites=syncs.sites,
    )


def _macs(setting: StepSetting) -> int:
    with shapes_only():
        net = build_backbone(setting.net, embedding_size=setting.embedding_size, image_size=setting.image_size)
    return count_macs(net, setting.image_size)


@contextmanager
def _cudnn_benchmark(wanted: bool) -> Iterator[None]:
    """Let cuDNN try its algorithms for each size of a convolution, inside the context."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
