"""Threshold card: cosine thresholds by false acceptance rate, with intervals, from the figures of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class ThresholdRow:
    """The threshold of one false acceptance rate; a pair is accepted if its cosine is above it.

    Attributes:
        group: group of people or images that it was measured on, "all" for all of them.
        far: false acceptance rate, as text: 1e-03.
        threshold: cosine.
        threshold_interval: 95 % interval of the threshold (low, high); None if unknown.
        tar: true acceptance rate at the threshold; None if unknown.
        tar_interval: its 95 % interval.
    """

    group: str = ALL
    far: str
    threshold: float
    threshold_interval: tuple[float, float] | None = None
    tar: float | None = None
    tar_interval: tuple[float, float] | None = None


def threshold_rows(figures: Mapping[str, Any]) -> tuple[ThresholdRow, ...]:
    """Return the thresholds in the figures of a protocol; none if it measures none.

    Args:
        figures: `threshold_at_far` and `tar_at_far` {far: value}, and these names with _interval {far: [low, high]};
            `groups` {group: figures of the same names}.
    """
    rows = [*_rows(ALL, figures)]
    groups = figures.get("groups")
    if isinstance(groups, Mapping):
        rows += [row for group, own in groups.items() if isinstance(own, Mapping) for row in _rows(str(group), own)]
    return tuple(rows)


def _rows(group: str, figures: Mapping[str, Any]) -> list[ThresholdRow]:
    def found(name: str) -> Mapping[str, Any]:
        value = figures.get(name)
        return value if isinstance(value, Mapping) else {}

    return [
        ThresholdRow(
            group=group,
            far=far,
            threshold=float(threshold),
            threshold_interval=_pair(found("threshold_at_far_interval").get(far)),
            tar=found("tar_at_far").get(far),
            tar_interval=_pair(found("tar_at_far_interval").get(far)),
        )
        for far, threshold in found("threshold_at_far").items()
        if _is_finite(threshold)
    ]


def _pair(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_finite(each) for each in value):
        return None
    return float(value[0]), float(value[1])


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def threshold_table(rows: Sequence[ThresholdRow]) -> list[str]:
    """Return the rows as lines of a Markdown table."""
    grouped = any(row.group != ALL for row in rows)
    header = ["FAR", *(["group"] if grouped else []), "accept above cosine", "TAR"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        cells = [
            row.far,
            *([row.group] if grouped else []),
            _value(row.threshold, row.threshold_interval),
            "-" if row.tar is None else _value(row.tar, row.tar_interval),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _value(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.4f}" + ("" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]")


def as_json(rows: Sequence[ThresholdRow]) -> str:
    """Return the rows as JSON text, for the metadata of an ONNX file."""
    return json.dumps([asdict(row) for row in rows])


def read_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[ThresholdRow, ...]:
    """Return the rows of JSON objects, as model.json and ONNX files hold them."""
    return tuple(
        ThresholdRow(
            group=str(row.get("group", ALL)),
            far=str(row["far"]),
            threshold=float(row["threshold"]),
            threshold_interval=_pair(row.get("threshold_interval")),
            tar=row.get("tar"),
            tar_interval=_pair(row.get("tar_interval")),
        )
        for row in rows
    )
