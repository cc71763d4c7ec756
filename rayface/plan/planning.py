"""Plan a run before it starts: memory, time and network traffic of a rank, and the largest C that fits."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rayface.config import Config, load, with_overrides
from rayface.data.streaming.micro_batches import check_pieces
from rayface.data.streaming.sample_order import check_batch_size
from rayface.heads.from_config import check_config_head
from rayface.machine import num_cpus
from rayface.plan.counts import Counts, counts_of
from rayface.plan.memory import Job, host_memory, job_of, memory
from rayface.plan.preflight import MOST_CLASSES, bytes_text, check_fits, largest_num_classes, memory_per_worker
from rayface.plan.this_machine import LINK, measure_rates, runs_here
from rayface.plan.timing import Rates, network_bytes, read_rates, step_seconds, step_total


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Memory, time and network traffic of a run; values are computed on access."""

    config: Config
    job: Job
    counts: Counts
    rates: Rates
    measured: frozenset[str]
    """Names of the rates that are given, not assumed."""
    memory_per_device: int | None
    here: bool = False
    """The workers are CPU processes of this machine, which was measured."""

    @cached_property
    def memory(self) -> dict[str, int]:
        """Bytes on a rank's device by part."""
        return memory(self.job)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of a step by part."""
        return step_seconds(self.job, self.rates)

    @property
    def images_per_second(self) -> float:
        """Images per second of all ranks together."""
        return self.job.batch_size * self.job.images_per_row / step_total(self.seconds)

    @property
    def epoch_hours(self) -> float | None:
        """Hours per epoch of whole steps; None if the number of images is unknown."""
        if self.counts.num_images is None:
            return None
        steps = self.counts.num_images // (self.job.batch_size * self.job.images_per_row)
        return steps * step_total(self.seconds) / 3600

    @property
    def largest_num_classes(self) -> int | None:
        """The largest C that fits; None if the memory of a device is unknown."""
        if self.memory_per_device is None:
            return None
        return largest_num_classes(self.with_classes, self.memory_per_device)

    @cached_property
    def refusal(self) -> str | None:
        """One line with what does not fit and what to change; None if everything fits or the memory is unknown."""
        if self.memory_per_device is None:
            return None
        try:
            check_fits(
                self.config,
                self.counts.num_classes,
                self.memory_per_device,
                gpu=self.job.gpu,
                recompute=self.job.recompute,
            )
        except ValueError as error:
            return str(error)
        return None

    def with_classes(self, num_classes: int) -> Job:
        """Return the job for another number of classes."""
        return replace(self.job, num_classes=num_classes)

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers: bytes, seconds, hours."""
        hours = self.epoch_hours
        return {
            "name": self.config.name,
            **asdict(self.counts),
            "num_workers": self.job.num_workers,
            "device": "gpu" if self.job.gpu else "cpu",
            "batch_size": self.job.batch_size,
            "memory": self.memory,
            "memory_total": sum(self.memory.values()),
            "host_memory": host_memory(self.job),
            "dense_memory_total": sum(memory(self.job, "dense").values()),
            "memory_per_device": self.memory_per_device,
            "fits": None if self.memory_per_device is None else self.refusal is None,
            "refusal": self.refusal,
            "largest_num_classes": self.largest_num_classes,
            "seconds": self.seconds,
            "step_seconds": step_total(self.seconds),
            "images_per_second": self.images_per_second,
            "epoch_hours": hours,
            "run_hours": None if hours is None else hours * self.config.train.epochs,
            "network_bytes": network_bytes(self.job),
            "backbone_macs": self.job.net.macs,
            "rates": asdict(self.rates),
        }

    def _holes(self) -> str:
        present = self.counts.num_classes_with_images
        return "" if present in (None, self.job.num_classes) else f" ({present:,} of them with images)"

    def table(self) -> dict[str, str]:
        """Return the rows of the printed table, by name."""
        job, numbers = self.job, self.as_dict()
        # What takes less than 5 µs would be shown as 0.00 ms.
        step = [f"{name.replace('_', ' ')} {1e3 * value:.2f}" for name, value in self.seconds.items() if value >= 5e-6]
        images = "" if self.counts.num_images is None else f"{self.counts.num_images:,} images, "
        verdict = "no" if self.refusal else "yes"
        rows = {
            "data": f"{job.num_classes:,} classes{self._holes()}, {images}{self.counts.source}",
            "workers": f"{job.num_workers} with {job.images} images each, {'GPU' if job.gpu else 'CPU'}",
            "machine": f"this one, {num_cpus()} CPUs; for GPUs add --gpus N --gpu-memory SIZE" if self.here else "",
            **{name.replace("_", " "): bytes_text(size) for name, size in self.memory.items() if size},
            "memory of a worker": f"{bytes_text(numbers['memory_total'])}, dense with full logits "
            f"{bytes_text(numbers['dense_memory_total'])}",
            "host memory": bytes_text(numbers["host_memory"]) + ", the copies for checkpoints and the mirror included"
            if job.gpu
            else "",
            "fits": "" if self.memory_per_device is None else f"{verdict}, {bytes_text(self.memory_per_device)}",
            "largest C that fits": _largest(numbers["largest_num_classes"]),
            "step": f"{numbers['step_seconds'] * 1e3:,.1f} ms: {', '.join(step)}",
            "network": f"{sum(numbers['network_bytes'].values()) / 1e6:,.1f} MB sent per worker and step",
            "images/s": f"{self.images_per_second:,.0f}",
            "time": _time(numbers["epoch_hours"], numbers["run_hours"]),
            "measured": self._rates_text(self.measured),
            "assumed": self._rates_text(asdict(self.rates).keys() - self.measured),
        }
        return {name: text for name, text in rows.items() if text}

    def _rates_text(self, names: Set[str]) -> str:
        rates = asdict(self.rates).items()
        return ", ".join(_rate_text(name, value) for name, value in rates if name in names)


def make_plan(
    config: Config,
    *,
    preset: str | None = None,
    num_classes: int | None = None,
    num_images: int | None = None,
    memory_per_device: int | None = None,
    rates: Mapping[str, float] | None = None,
    recompute: bool = False,
    here: bool = False,
) -> Plan:
    """Plan a run of train.num_workers ranks.

    Args:
        preset: its published counts are used if neither data.train nor the counts are given.
        num_classes, num_images: counts of a dataset that does not exist yet.
        rates: known fields of Rates, by name; the others are assumed.
        memory_per_device: bytes of a GPU, or of a CPU worker's share; None: nothing is refused.
        recompute: the backbone recomputes its blocks' activations in the backward pass.
        here: the ranks are CPU processes of this machine: measure their rates and memory. Otherwise each rank has a
            GPU unless train.device=cpu.

    Raises:
        ValueError: missing or conflicting counts, or invalid settings; one line.
    """
    train = config.train
    check_pieces(train)
    check_config_head(config)  # refuse invalid settings as training does
    counts = counts_of(config, preset, num_classes, num_images)
    job = job_of(config, counts.num_classes, gpu=train.device != "cpu" and not here, recompute=recompute)
    if counts.num_images is not None:
        check_batch_size(train.batch_size, counts.num_images, job.images_per_row)
    known, assumed = dict(rates or {}), {}
    if here:
        known = {**measure_rates(config, job), **known}
        assumed = {"link_bandwidth": LINK}
        memory_per_device = memory_per_worker(gpu=False, workers_per_machine=job.num_workers)
    return Plan(
        config=config,
        job=job,
        counts=counts,
        rates=Rates(**{**assumed, **known}),
        measured=frozenset(known),
        memory_per_device=memory_per_device,
        here=here,
    )


def plan_run(
    preset: str | None,
    file: Path | None,
    overrides: Sequence[str],
    *,
    num_workers: int | None,
    num_classes: int | None = None,
    num_images: int | None = None,
    memory_per_device: int | None = None,
    rates: Mapping[str, float | None],
    rates_file: Path | None = None,
    recompute: bool = False,
    plot: Path | None,
) -> Plan:
    """Plan the run that `rayface train` would start with these arguments.

    With data.train and nothing said about GPUs on a machine without one, that is a run on its CPUs; see `make_plan`.

    Args:
        preset, file, overrides: see `config.load`.
        num_workers: replaces train.num_workers; None: as configured.
        rates: fields of Rates by name; None: the value in rates_file, else the default.
        rates_file: output of `rayface bench rates --json`.
        plot: PNG file to draw, or None.
        num_classes, num_images, memory_per_device, recompute: see `make_plan`.

    Raises:
        ValueError: bad input; one line.
    """
    config = load(preset, file, overrides)
    if num_workers is not None:
        config = with_overrides(config, {"train.num_workers": num_workers})
    known = {} if rates_file is None else read_rates(rates_file)
    known |= {name: value for name, value in rates.items() if value is not None}
    about_gpus = num_workers is not None or memory_per_device is not None or bool(known)
    plan = make_plan(
        config,
        preset=preset,
        num_classes=num_classes,
        num_images=num_images,
        memory_per_device=memory_per_device,
        rates=known,
        recompute=recompute,
        here=bool(config.data.train) and not about_gpus and runs_here(config),
    )
    if plot is not None:
        from rayface.plan.figure import draw_plan  # matplotlib takes a second to import

        draw_plan(plan, plot)
    return plan


def _rate_text(name: str, value: float) -> str:
    unit = " TFLOP/s" if name.endswith("_tflops") else " GB/s" if name.endswith("_bandwidth") else ""
    return f"{name.removesuffix('_tflops').replace('_', ' ')} {value:,.4g}{unit}"


def _largest(num_classes: int | None) -> str:
    if num_classes is None:
        return ""
    return "any: nothing grows with C" if num_classes >= MOST_CLASSES else f"{num_classes:,}"


def _time(epoch_hours: float | None, run_hours: float | None) -> str:
    if epoch_hours is None or run_hours is None:
        return "unknown: give --num-images N"
    return f"{_duration(epoch_hours)} per epoch, {_duration(run_hours)} per run"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"
