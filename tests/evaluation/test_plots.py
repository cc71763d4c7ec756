"""Plots of evaluation.json: labels are the figures, other protocols' plots have their own names."""

import numpy as np
import pytest
from matplotlib.axes import Axes

from rayface.evaluation import plots
from rayface.evaluation.plots import draw_roc, evaluation_plots
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
    for name in ("roc", "all_vs_all-roc"):
        lowest = plots[name].figure.axes[0].get_xlim()[0]
        for text in plots[name].figure.axes[0].texts:
            rate, tar = text.xy
            assert text.get_horizontalalignment() == ("right" if tar < 0.5 and rate > lowest else "left")


def det_of(tar: list[float], tars: dict[str, float], **own: object) -> Axes | None:
    """Return the axes of a protocol's DET plot."""
    curves = {"pairs": {"roc": {"far": np.geomspace(1e-4, 1, len(tar)).tolist(), "tar": tar}, **own}}
    plots = evaluation_plots({"protocols": {"pairs": {"tar_at_far": tars}}, "curves": curves})
    return next((plot.figure.axes[0] for plot in plots if plot.name == "det"), None)


def histogram_of(num_genuine: int) -> dict[str, object]:
    return {"edges": [-1, 0, 1], "genuine": [0, num_genuine], "impostor": [9, 0]}


def test_histogram_of_a_sample_has_the_numbers_of_all_pairs_in_its_legend() -> None:
    curves = {"pairs": {"histogram": histogram_of(5)}, "all_vs_all": {"histogram": histogram_of(5)}}
    figures = {"all_vs_all": {"num_genuine": 3000, "num_impostor": 19_000}}
    drawn = {plot.name: plot.figure.axes[0] for plot in evaluation_plots({"protocols": figures, "curves": curves})}
    legends = {name: [text.get_text() for text in axes.get_legend().get_texts()] for name, axes in drawn.items()}
    assert legends == {
        "scores": ["genuine: 5", "impostor: 9"],
        "all_vs_all-scores": ["genuine: 3,000", "impostor: 19,000"],
    }


def test_det_of_a_perfect_result_lies_at_half_of_what_its_pairs_resolve() -> None:
    axes = det_of([1.0] * 5, {"1e-03": 1.0}, histogram=histogram_of(3000))
    assert axes is not None
    curve = max(axes.lines, key=lambda line: line.get_linewidth())
    assert np.allclose(curve.get_ydata(), 0.5 / 3000)
    assert [text.get_text() for text in axes.texts] == ["0%"]


def test_det_of_a_perfect_result_of_an_unknown_number_of_pairs_is_not_drawn() -> None:
    assert det_of([1.0] * 5, {"1e-03": 1.0}) is None


def test_det_is_in_percent_with_labels_below_its_falling_curve() -> None:
    tars = {"1e-04": 0.94, "1e-03": 0.981, "1e-02": 0.9941}
    axes = det_of([0.94, 0.981, 0.9941, 0.999, 1.0], tars, histogram=histogram_of(20_000))
    assert axes is not None
    assert axes.yaxis.get_major_formatter()(0.001, 0) == "0.1%"
    assert [text.get_text() for text in axes.texts] == ["6.0%", "1.9%", "0.59%"]
    assert [text.get_horizontalalignment() for text in axes.texts] == ["left", "right", "right"]


def test_roc_of_high_rates_begins_near_the_lowest_one_and_without_chance() -> None:
    far = np.geomspace(1e-6, 1, 50)
    (axes,) = draw_roc(np.append(0, far), np.append(0, np.linspace(0.94, 1, 50)), {"1e-06": 0.94}).axes
    assert 0.9 < axes.get_ylim()[0] < 0.94
    assert axes.get_legend() is None
    (axes,) = draw_roc(np.array(FAR), np.array(TAR), {"1e-02": 0.3}).axes
    assert axes.get_ylim()[0] == 0
    assert axes.get_legend() is not None


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (0.00123, "0.12%"), (0.5, "50.0%"), (0.995, "99.50%"), (0.99996, "99.9960%"), (1, "100.0%")],
)
def test_percent_of_a_share_near_one_differs_from_it(share: float, text: str) -> None:
    assert plots._percent(share) == text
