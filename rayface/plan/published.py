"""Validation of the memory model of a straightforward head on arcface_torch's published table.

Source: docs/speed_benchmark.md and the README of insightface's arcface_torch; 8 V100 of 32 GB, r50, mixed precision,
memory of one GPU by gpustat. The table does not state its batch; we assume 64 images per GPU, because with 128 the
activations and weights of r50 alone exceed its smallest rows. Two figures of the same page, at 3 million classes and
the stated batch of 1024, are held out.

Two constants are fitted, each to one row: GPU_OVERHEAD to model parallel at 125,000 classes, and DENSE_LOGIT_COPIES, an
integer, to model parallel at 4 million. DENSE_ROW_COPIES was counted, but it and the batch were chosen with the table
known.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rayface.config import load
from rayface.plan.memory import DENSE_LOGIT_COPIES, GPU_OVERHEAD, Job, Variant, job_of, memory

_CLASSES = (125_000, 250_000, 500_000, 1_000_000, 1_400_000, 2_000_000, 4_000_000, 5_500_000)
_PARTIAL_ONLY = (8_000_000, 16_000_000, 29_000_000)
PUBLISHED_MIB: dict[str, dict[int, int]] = {
    "data parallel": dict(zip(_CLASSES, (7358, 9940, 14220, 23708, 32252), strict=False)),
    "model parallel": dict(zip(_CLASSES, (5306, 5826, 7114, 9966, 11178, 13978, 23238, 32188), strict=True)),
    "partial fc 0.1": dict(
        zip(
            _CLASSES + _PARTIAL_ONLY,
            (4868, 5004, 5202, 5620, 6056, 6472, 8284, 9854, 12310, 19950, 32324),
            strict=True,
        )
    ),
}
HELD_OUT_MIB = {"model parallel": {3_000_000: 28868}, "partial fc 0.1": {3_000_000: 10340}}
HELD_OUT_BATCH, TABLE_BATCH = 1024, 512
FITTED_ROWS = {("model parallel", 125_000): "GPU_OVERHEAD", ("model parallel", 4_000_000): "DENSE_LOGIT_COPIES"}


@dataclass(frozen=True)
class Row:
    """A figure of the table and that of the model."""

    method: str
    num_classes: int
    batch_size: int
    published_mib: float
    modelled_mib: float
    fitted: str | None
    """Name of the constant that was fitted to this row."""

    @property
    def error(self) -> float:
        """Relative error, positive if the model's figure is larger."""
        return self.modelled_mib / self.published_mib - 1


def table_rows() -> list[Row]:
    """Return the rows of the published table and the two held-out ones, with the model's figures."""
    rows = []
    for batch_size, table in ((TABLE_BATCH, PUBLISHED_MIB), (HELD_OUT_BATCH, HELD_OUT_MIB)):
        for method, figures in table.items():
            for num_classes, published in figures.items():
                modelled = sum(memory(*_setting(method, num_classes, batch_size)).values()) / 2**20
                fitted = FITTED_ROWS.get((method, num_classes)) if batch_size == TABLE_BATCH else None
                rows.append(Row(method, num_classes, batch_size, published, modelled, fitted))
    return rows


def as_dicts(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return all numbers of the rows."""
    return [{**asdict(row), "error": row.error} for row in rows]


def as_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the rows as a printed table, memory in MiB."""
    return [
        {
            "method": row.method,
            "classes": f"{row.num_classes:,}",
            "batch": f"{row.batch_size:,}",
            "published": f"{row.published_mib:,.0f}",
            "model": f"{row.modelled_mib:,.0f}",
            "error": f"{100 * row.error:+.1f} %",
            "fitted": row.fitted or "",
        }
        for row in rows
    ]


def fit() -> tuple[int, int]:
    """Return GPU_OVERHEAD (bytes) and DENSE_LOGIT_COPIES, fitted to the two rows named above."""
    figures = PUBLISHED_MIB["model parallel"]
    small, large = 125_000, 4_000_000
    jobs = {count: _setting("model parallel", count, TABLE_BATCH)[0] for count in (small, large)}
    parts = {count: memory(job, "dense") for count, job in jobs.items()}
    one_copy = {count: parts[count]["logits"] / DENSE_LOGIT_COPIES for count in jobs}
    # Residual of the two rows after the model without both constants.
    rest = {c: figures[c] * 2**20 - sum(parts[c].values()) + parts[c]["logits"] + GPU_OVERHEAD for c in jobs}
    copies = round((rest[large] - rest[small]) / (one_copy[large] - one_copy[small]))
    return round(rest[small] - copies * one_copy[small]), copies


def _setting(method: str, num_classes: int, batch_size: int) -> tuple[Job, Variant]:
    overrides = {
        "train.num_workers": 8,
        "train.batch_size": batch_size,
        "head.compute_dtype": "fp32",
        "head.sample_rate": 0.1 if method == "partial fc 0.1" else 1.0,
    }
    job = job_of(load(None, None, overrides), num_classes, gpu=True)
    return job, "data_parallel" if method == "data parallel" else "dense"
