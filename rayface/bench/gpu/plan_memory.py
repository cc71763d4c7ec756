"""Part f: memory of training steps as measured, against what `rayface plan` says."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from rayface.bench.gpu.case import Case, Kit, Measured
from rayface.bench.gpu.measure import GB, PeakMemory
from rayface.bench.gpu.training_step import LOGIT_MEMORY, StepSetting, TrainingStep
from rayface.data.images import augment
from rayface.plan.backbone_cost import size_of_net
from rayface.plan.memory import HeadFields, Job, memory

TOLERANCE = 0.1  # of the plan, relative
_STEPS = 3
SETTING = StepSetting(net="r50", num_classes=2_059_906, batch_size=128)
MINI = StepSetting(net="mini", num_classes=500, batch_size=8, image_size=32, embedding_size=32, bf16=False)


@dataclass(frozen=True, kw_only=True)
class MemoryFound(Measured):
    """GB on the device; None on a CPU."""

    planned_gb: float
    measured_gb: float | None
    """What is taken of the GPU, CUDA's context and what PyTorch holds in reserve included."""
    error: float | None
    """(planned - measured) / measured."""
    planned_tensors_gb: float
    """Without the plan's overhead."""
    peak_tensors_gb: float | None
    reserved_gb: float | None
    """By PyTorch's allocator."""


def cases(kit: Kit) -> Iterator[Case]:
    """Yield settings whose memory is made up in different ways."""
    if kit.mini:
        yield Case(name="memory of mini", run=partial(compare, MINI, kit.device))
        return
    settings = {
        "r50": SETTING,
        "r50, all classes a step": replace(SETTING, sample_rate=1.0),
        "r100, batch 256": replace(SETTING, net="r100", batch_size=256),
        "r50, 100,000 classes, fp32": replace(SETTING, num_classes=100_000, bf16=False),
        "vit_s": replace(SETTING, net="vit_s"),
        "mbf, batch 512": replace(SETTING, net="mbf", batch_size=512),
        "r50, adamw, bf16 storage": replace(SETTING, optimizer="adamw", storage_dtype="bf16"),
        "r50, host memory": replace(SETTING, host_memory=True),
    }
    for name, setting in settings.items():
        yield Case(name=name, run=partial(compare, setting, kit.device), seconds=10)


def compare(setting: StepSetting, device: str) -> MemoryFound:
    """Train a few steps and compare the memory that they take with the plan's."""
    parts = memory(job_of_setting(setting, gpu=device == "cuda"))
    planned, overhead = sum(parts.values()), parts["overhead"]
    step, peak = TrainingStep(setting, device), PeakMemory(device)
    for number in range(_STEPS):
        _train(step, number)
    measured = _taken() if device == "cuda" else None
    error = None if measured is None else planned / measured - 1
    return MemoryFound(
        passed=error is None or abs(error) <= TOLERANCE,
        note=", ".join(f"{name} {size / GB:.2f}" for name, size in parts.items() if size > 0.01 * planned),
        planned_gb=planned / GB,
        measured_gb=None if measured is None else measured / GB,
        error=error,
        planned_tensors_gb=(planned - overhead) / GB,
        peak_tensors_gb=peak.gb,
        reserved_gb=torch.cuda.max_memory_reserved() / GB if device == "cuda" else None,
    )


def job_of_setting(setting: StepSetting, *, gpu: bool) -> Job:
    """Return what `rayface plan` would make of a config with these values."""
    net = size_of_net(setting.net, setting.image_size, bf16=setting.bf16, embedding_size=setting.embedding_size)
    return Job(
        net=net,
        backbone_bytes=net.weight_bytes,
        image_bytes=4 * 3 * setting.image_size**2,
        head="partial_fc",
        image_size=setting.image_size,
        bf16=setting.bf16,
        recompute=False,
        piece=None,
        mirrors=0,
        num_classes=setting.num_classes,
        num_workers=1,
        batch_size=setting.batch_size,
        embedding_size=setting.embedding_size,
        gpu=gpu,
        **_head_fields(setting, gpu=gpu),
    )


def _head_fields(setting: StepSetting, *, gpu: bool) -> HeadFields:
    return {
        "sample_rate": setting.sample_rate,
        "storage_bytes": 2 if setting.storage_dtype == "bf16" else 4,
        "compute_bytes": 2 if setting.bf16 else 4,
        "moments": 2 if setting.optimizer == "adamw" else 1,
        "logit_memory": LOGIT_MEMORY,
        "masks_conflicts": False,
        "fused": setting.kernel == "fused",
        "updates_all_rows": False,
        "host_memory": setting.host_memory and gpu,
        "fetches_rows": setting.host_memory and setting.sample_rate < 1,
    }


def _train(step: TrainingStep, number: int) -> None:
    """One step from raw images, which the plan counts."""
    setting, generator = step.setting, torch.Generator().manual_seed(number)
    size, count = setting.image_size, setting.batch_size
    raw = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator).to(step.device)
    labels = torch.randint(setting.num_classes, (count,), generator=generator).to(step.device)
    none = {"shift": 0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    images = augment(raw, slice(0, count), count, generator, flip=True, **none)  # type: ignore[arg-type]
    step.run(images.contiguous(memory_format=torch.channels_last), labels)


def _taken() -> int:
    """Return the bytes of the GPU that are taken, by this process or another."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free
