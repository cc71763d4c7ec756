"""What the tables of results show."""

from typing import Any

from rayface.stages import shown

PAIRS = {
    "accuracy_mean": 0.9,
    "accuracy_std": 0.01,
    "accuracy_interval": [0.88, 0.92],
    "tar_at_far": {"1e-02": 0.5, "1e-03": None},
    "tar_at_far_interval": {"1e-02": [0.4, 0.6]},
    "threshold_at_far": {"1e-02": 0.25},
    "threshold_at_far_interval": {"1e-02": [0.125, 0.5]},
    "num_pairs": 6000,
    "not_measured": {"tar_at_far.1e-03": "too few pairs"},
}
ROWS = {
    "accuracy": "90.00% ± 1.00%, 95% interval 88.00% to 92.00%",
    "TAR at FAR 1e-02": "50.00%, 95% interval 40.00% to 60.00%",
    "TAR at FAR 1e-03": "not measured",
    "threshold at FAR 1e-02": "0.2500, 95% interval 0.1250 to 0.5000",
    "num_pairs": 6000,
}


def test_shown_evaluation_has_a_row_for_each_figure_with_its_interval_in_percent() -> None:
    counts = {"by_name": None, "by_bytes": {"images": 4, "identities": 2}}
    without = {name: PAIRS[name] for name in ("accuracy_mean", "accuracy_interval")}
    result = {"model": "m", "protocols": {"pairs": PAIRS}, "leaks": {"pairs": {"counts": counts, "without": without}}}
    assert shown.shown_evaluation(result) == {
        "model": "m",
        **ROWS,
        "why not measured": "too few pairs",
        "leaked images": {"by_name": "not examined", "by_bytes": 4},
        "without them: accuracy": "90.00%, 95% interval 88.00% to 92.00%",
    }


def test_figure_whose_interval_has_no_end_is_shown_without_it() -> None:
    figures = {"tar_at_far": {"1e-02": 0.5}, "tar_at_far_interval": {"1e-02": [None, 0.6]}}
    assert shown.shown_evaluation({"protocols": {"pairs": figures}}) == {"TAR at FAR 1e-02": "50.00%"}


def test_shown_evaluation_of_galleries_and_groups_names_each() -> None:
    rates = {"rank": {"1": 0.5, "5": None}, "tpir_at_fpir": {"1e-01": 0.25}}
    own = {"identification": {**rates, "g1": rates}, "groups": {"race": {"x": {"tar_at_far": {"1e-01": 0.75}}}}}
    result = {"protocols": {"templates": own, "bin": {"num_pairs": 2}}}
    assert shown.shown_evaluation(result) == {
        "templates: identification rank 1": "50.00%",
        "templates: identification rank 5": "not measured",
        "templates: identification TPIR at FPIR 1e-01": "25.00%",
        "templates: identification g1 rank 1": "50.00%",
        "templates: identification g1 rank 5": "not measured",
        "templates: identification g1 TPIR at FPIR 1e-01": "25.00%",
        "templates: groups race x TAR at FAR 1e-01": "75.00%",
        "bin: num_pairs": 2,
    }


def test_shown_run_has_intervals_beside_figures_and_no_unset_values() -> None:
    figures = {name: value for name, value in PAIRS.items() if name != "not_measured"}
    result = {"run": "runs/a", "loss": None, **figures, "accuracy_before": 0.5, "tracking": None}
    assert shown.shown_run(result) == {"run": "runs/a", "loss": None, **ROWS, "accuracy_before": "50.00%"}


def test_shown_core_set_has_a_row_for_each_baseline() -> None:
    figures = {"faces": 1240, "mean_cosine": 0.48494, "shared": 0.6125}
    result: dict[str, Any] = {"out": "o", "baselines": {"random": figures, "herding": figures}, "faces_in": 400}
    row = "1,240 images, mean cosine 0.4849, 61.25% shared"
    assert shown.shown_core_set(result) == {"baseline random": row, "baseline herding": row, "images in": 400}
