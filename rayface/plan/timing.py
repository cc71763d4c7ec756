"""Time model of a step: matrix products, memory traffic and ring collectives at given rates."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from rayface.heads import head_class
from rayface.plan.memory import Job


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Throughput of a rank's device and link.

    The defaults are assumptions in the order of a current data-centre GPU, not measurements.
    """

    gemm_tflops: float = 400.0
    """Large bf16 matrix products, 10^12 operations per second; a multiply-add counts as two."""
    fp32_tflops: float = 40.0
    """Large fp32 matrix products."""
    memory_bandwidth: float = 2000.0
    """Bandwidth of device memory, GB/s."""
    link_bandwidth: float = 50.0
    """Bandwidth per direction of the slowest link in the ring, GB/s."""
    backbone_efficiency: float = 0.25
    """Fraction of the rate of large products that the backbone reaches.

    For comparison: r50's published 5,004 images/s on 8 V100 (published.py) are 23.7 TFLOPS per GPU, a fifth of the
    vendor's peak.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: {value:g}: must be above 0")
        if self.backbone_efficiency > 1:
            raise ValueError(f"backbone_efficiency: {self.backbone_efficiency:g}: must be at most 1")


def read_rates(file: Path) -> dict[str, float]:
    """Return the rates in a file with the output of `rayface bench rates --json`, by field of Rates.

    Raises:
        ValueError: the file is missing or holds no rates; one line.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"rates: {file}: must be the output of `rayface bench rates --json`: {error}") from error
    names = {field.name for field in fields(Rates)}
    rates = {name: value for name, value in found.items() if name in names} if isinstance(found, dict) else {}
    if not rates or not all(isinstance(value, int | float) for value in rates.values()):
        raise ValueError(f"rates: {file}: must hold numbers for at least one of {', '.join(sorted(names))}")
    return rates


def step_seconds(job: Job, rates: Rates) -> dict[str, float]:
    """Return the seconds of a step by part; see `step_total` for overlapping parts.

    Latencies, waiting for data, validation and checkpoints are not modelled.
    """
    link = 1e9 * rates.link_bandwidth
    backbone_rate = rates.gemm_tflops if job.bf16 else rates.fp32_tflops
    head_rate = rates.gemm_tflops if job.compute_bytes == 2 else rates.fp32_tflops
    sent = network_bytes(job)
    gradients = sent.pop("all_reduce_gradients")
    last = 2 * job.ring * job.net.last_bucket
    return {
        "backbone": 2 * backbone_macs(job) / (1e12 * backbone_rate * rates.backbone_efficiency),
        "head_products": 2 * head_macs(job) / (1e12 * head_rate),
        "head_memory": head_traffic(job) / (1e9 * rates.memory_bandwidth),
        "optimizer_memory": backbone_traffic(job) / (1e9 * rates.memory_bandwidth),
        **{name: count / link for name, count in sent.items()},
        "all_reduce_gradients": (gradients - last) / link,
        "all_reduce_last_bucket": last / link,
    }


def step_total(seconds: dict[str, float]) -> float:
    """Return the seconds of a step.

    The gradients' all-reduce overlaps with the backward pass, 2/3 of the backbone, but for the last bucket's, which is
    complete when that pass ends.
    """
    hidden = min(seconds["all_reduce_gradients"], seconds["backbone"] * 2 / 3)
    return sum(seconds.values()) - hidden


def backbone_macs(job: Job) -> int:
    """Return a rank's multiply-adds in a step: 3 passes of the backbone, 4 with recomputation, 1 of another network."""
    trained = (4 if job.recompute else 3) * job.backbone_passes
    return (trained + job.network_passes) * job.net.macs * job.rank_batch


def head_macs(job: Job) -> int:
    """Return the multiply-adds of the head's products."""
    return head_class(job.head).macs(job)


def head_traffic(job: Job) -> int:
    """Return the bytes that the head reads and writes outside of products."""
    return head_class(job.head).traffic(job)


def backbone_traffic(job: Job) -> int:
    """Return the bytes that gradient clipping and the backbone's optimizer read and write, fp32."""
    # The norm reads gradients, clipping reads and writes them; the update reads them and updates weights and moments.
    return 4 * job.net.trainable * (1 + 2 + 1 + 2 * (1 + job.moments))


def network_bytes(job: Job) -> dict[str, float]:
    """Return the bytes that a rank sends in a step by collective, with ring algorithms over W ranks.

    An all-gather or reduce-scatter of n bytes in total sends n (W - 1) / W, an all-reduce twice that.
    """
    gradients = 2 * job.ring * 4 * job.net.trainable
    return {**head_class(job.head).sent(job), "all_reduce_gradients": gradients}
