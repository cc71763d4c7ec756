"""Threshold card: cosine thresholds by false acceptance rate, with intervals, from the figures of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rayface.markdown import plain

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class ThresholdRow:
    """The threshold of one false acceptance rate; a pair is accepted if its cosine is above it.

    Attributes:
        protocol: protocol that it was measured by; "" if there is only one.
        group: group of people or images that it was measured on, such as race=asian; "all" for all of them.
        far: false acceptance rate, as text: 1e-03.
        threshold: cosine.
        threshold_interval: 95 % interval of the threshold (low, high); None if unknown.
        tar: true acceptance rate at the threshold; None if unknown.
        tar_interval: its 95 % interval.
    """

    protocol: str = ""
    group: str = ALL
    far: str
    threshold: float
    threshold_interval: tuple[float, float] | None = None
    tar: float | None = None
    tar_interval: tuple[float, float] | None = None


def threshold_rows(figures: Mapping[str, object]) -> tuple[ThresholdRow, ...]:
    """Return the thresholds in the figures of an evaluation; none if it measures none.

    Args:
        figures: `threshold_at_far` and `tar_at_far` {far: value}, and these names with _interval {far: [low, high]};
            `groups` {column: {group: figures of the same names}}; or `protocols` {protocol: such figures}.
    """
    protocols = _mapping(figures, "protocols")
    if not protocols:
        return tuple(_of_protocol("", figures))
    return tuple(row for name, own in protocols.items() for row in _of_protocol(name, own))


def _of_protocol(protocol: str, figures: Mapping[str, object]) -> list[ThresholdRow]:
    rows = _rows(figures, protocol=protocol, group=ALL)
    for column, groups in _mapping(figures, "groups").items():
        for name, own in groups.items():
            rows += _rows(own, protocol=protocol, group=f"{column}={name}")
    return rows


def _mapping(figures: Mapping[str, object], name: str) -> Mapping[str, Any]:
    value = figures.get(name)
    return value if isinstance(value, Mapping) else {}


def _rows(figures: Mapping[str, object], *, protocol: str, group: str) -> list[ThresholdRow]:
    return [
        ThresholdRow(
            protocol=protocol,
            group=group,
            far=far,
            threshold=float(threshold),
            threshold_interval=_pair(_mapping(figures, "threshold_at_far_interval").get(far)),
            tar=_mapping(figures, "tar_at_far").get(far),
            tar_interval=_pair(_mapping(figures, "tar_at_far_interval").get(far)),
        )
        for far, threshold in _mapping(figures, "threshold_at_far").items()
        if _is_finite(threshold)
    ]


def _pair(value: object) -> tuple[float, float] | None:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_finite(each) for each in value):
        return None
    return float(value[0]), float(value[1])


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def threshold_table(rows: Sequence[ThresholdRow]) -> list[str]:
    """Return the rows as lines of a Markdown table."""
    extra = [
        name
        for name, default in (("protocol", ""), ("group", ALL))
        if any(getattr(row, name) != default for row in rows)
    ]
    header = [*extra, "FAR", "accept above cosine", "TAR"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        cells = [
            *(plain(getattr(row, name)) for name in extra),
            plain(row.far),
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
            protocol=str(row.get("protocol", "")),
            group=str(row.get("group", ALL)),
            far=str(row["far"]),
            threshold=float(row["threshold"]),
            threshold_interval=_pair(row.get("threshold_interval")),
            tar=row.get("tar"),
            tar_interval=_pair(row.get("tar_interval")),
        )
        for row in rows
    )
