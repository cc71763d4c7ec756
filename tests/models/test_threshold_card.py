"""Thresholds of a model by false acceptance rate, from the figures of an evaluation."""

import json
import math
from dataclasses import replace

from rayface.models.threshold_card import ThresholdRow, as_json, read_rows, threshold_rows, threshold_table

FIGURES = {
    "accuracy_mean": 0.9,
    "tar_at_far": {"1e-02": 0.7, "1e-03": 0.5},
    "tar_at_far_interval": {"1e-02": [0.6, 0.8]},
    "threshold_at_far": {"1e-02": 0.31, "1e-03": 0.4, "1e-04": None, "1e-05": -math.inf},
    "threshold_at_far_interval": {"1e-02": [0.3, 0.33], "1e-03": [None, 0.5]},
}
ROWS = (
    ThresholdRow(far="1e-02", threshold=0.31, threshold_interval=(0.3, 0.33), tar=0.7, tar_interval=(0.6, 0.8)),
    ThresholdRow(far="1e-03", threshold=0.4, tar=0.5),
)


def test_thresholds_of_figures_leave_out_rates_without_one() -> None:
    assert threshold_rows(FIGURES) == ROWS
    assert threshold_rows({"accuracy_mean": 0.9, "tar_at_far": {"1e-02": 0.7}, "groups": 3}) == ()


def test_thresholds_by_group_follow_those_of_all() -> None:
    rows = threshold_rows({**FIGURES, "groups": {"mask": {"yes": {"threshold_at_far": {"1e-02": 0.5}}}}})
    assert rows == (*ROWS, ThresholdRow(group="mask=yes", far="1e-02", threshold=0.5))
    table = threshold_table(rows)
    assert table[0] == "| group | FAR | accept above cosine | TAR |"
    assert table[-1] == "| mask=yes | 1e-02 | 0.5000 | - |"


def test_thresholds_of_several_protocols_are_named_by_protocol() -> None:
    other = {"threshold_at_far": {"1e-06": 0.6}, "tar_at_far": {"1e-06": 0.9}}
    rows = threshold_rows({**FIGURES, "protocols": {"pairs": FIGURES, "all_vs_all": other}})
    assert rows == (
        *(replace(row, protocol="pairs") for row in ROWS),
        ThresholdRow(protocol="all_vs_all", far="1e-06", threshold=0.6, tar=0.9),
    )
    assert threshold_table(rows)[0] == "| protocol | FAR | accept above cosine | TAR |"
    assert threshold_table(rows)[-1] == "| all_vs_all | 1e-06 | 0.6000 | 0.9000 |"


def test_threshold_table_shows_intervals_beside_values() -> None:
    assert threshold_table(ROWS)[2:] == [
        "| 1e-02 | 0.3100 [0.3000, 0.3300] | 0.7000 [0.6000, 0.8000] |",
        "| 1e-03 | 0.4000 | 0.5000 |",
    ]


def test_thresholds_as_json_are_read_back() -> None:
    assert read_rows(json.loads(as_json(ROWS))) == ROWS
