"""Plots of evaluation.json: labels are the figures, other protocols' plots have their own names."""

import numpy as np

from rayface.evaluation.plots import evaluation_plots
from rayface.report import as_svg

# A thinned curve that passes the labelled rates at other values.
FAR, TAR = [0.0, 0.004, 0.02, 0.3, 1.0], [0.0, 0.5, 0.6, 0.9, 1.0]


def content() -> dict[str, object]:
    roc = {"far": FAR, "tar": TAR}
    groups = {"race": {"x": {"tar_at_far": {"1e-01": 0.9, "1e-02": None}}, "y": {"tar_at_far": {"1e-01": 0.7}}}}
    histogram = {"edges": np.linspace(-1, 1, 5).tolist(), "genuine": [0, 1, 2, 3], "impostor": [4, 2, 0, 0]}
    discard = {"far": 0.01, "rejected": [0.0, 0.5], "fnmr": [0.2, None], "error": [0.1, 0.05]}
    return {
        "protocols": {
            "pairs": {"tar_at_far": {"1e-02": 0.5432, "1e-01": 0.7654}},
            "all_vs_all": {"tar_at_far": {"1e-02": 0.25, "1e-03": None}, "groups": groups},
        },
        "curves": {
            "pairs": {"name": "lfw<b>", "roc": roc, "histogram": histogram, "error_versus_discard": discard},
            "all_vs_all": {"name": "set", "roc": roc},
        },
    }


def test_evaluation_plots_label_the_figures_and_not_the_thinned_curve() -> None:
    plots = {plot.name: plot for plot in evaluation_plots(content(), "at the last step")}
    names = ["roc", "det", "scores", "discard", "all_vs_all-roc", "all_vs_all-det", "all_vs_all-groups-race"]
    assert list(plots) == names
    assert plots["roc"].caption == "ROC of lfw<b> at the last step"
    roc, det = as_svg(plots["roc"]), as_svg(plots["det"])
    assert "54.3%" in roc
    assert "76.5%" in roc
    assert "chance" in roc
    assert "45.7%" in det  # 1 - TAR
    assert "25.0%" in as_svg(plots["all_vs_all-roc"])
    assert "lfw&lt;b&gt;" in roc
    assert "lfw<b>" not in roc


def test_evaluation_plots_of_groups_take_the_lowest_rate_that_all_resolve() -> None:
    bars = {plot.name: plot for plot in evaluation_plots(content())}["all_vs_all-groups-race"]
    assert bars.caption == "TAR at FAR 1e-01 of set by race"
    svg = as_svg(bars)
    assert "90.0%" in svg
    assert "70.0%" in svg


def test_evaluation_plots_of_an_older_run_draw_its_curve() -> None:
    plots = evaluation_plots({"roc": {"far": FAR, "tar": TAR}, "tar_at_far": {"1e-01": 0.7}})
    assert [plot.name for plot in plots] == ["roc", "det"]
    assert evaluation_plots({"accuracy_mean": 0.5}) == []


def test_labels_of_low_rates_stand_left_of_their_points_where_the_curve_is_not() -> None:
    plots = {plot.name: plot for plot in evaluation_plots(content())}
    for name in ("roc", "det", "all_vs_all-roc", "all_vs_all-det"):
        for text in plots[name].figure.axes[0].texts:
            rate, reached = text.xy
            tar = reached if name.endswith("roc") else 1 - reached
            lowest = plots[name].figure.axes[0].get_xlim()[0]
            assert text.get_horizontalalignment() == ("right" if tar < 0.5 and rate > lowest else "left")
