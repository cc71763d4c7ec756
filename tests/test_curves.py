"""Figures of a run's metrics and of a ROC."""

import math

import cv2
import numpy as np
import pytest

from rayface.curves import draw_curves, smoothed
from rayface.evaluation.plots import evaluation_plots
from rayface.report import write_pngs

ALL = ["loss", "accuracy", "roc", "det", "lr", "throughput"]
ROC = {"roc": {"far": [0, 0, 0.001, 0.01, 0.5, 1.0], "tar": [0, 0.4, 0.6, 0.8, 0.95, 1.0]}}


def series(values):
    return [(10 * i, value, 1e9 + i) for i, value in enumerate(values)]


@pytest.fixture
def metrics():
    return {
        "train/loss": series([9.0, math.nan, 7.0, math.inf, *np.linspace(6, 1, 50)]),
        "train/lr": series(np.linspace(0.1, 0, 54)),
        "train/images_per_second": series([100.0, 600.0, 610.0]),
        "eval/accuracy": series([0.5, 0.7, 0.9]),
        "train/epoch": series([0.0, 1.0]),
    }


def test_draw_curves_of_all_metrics_are_pictures(tmp_path, metrics):
    files = write_pngs(tmp_path, draw_curves(metrics, evaluation_plots(ROC)))
    assert list(files) == ALL
    for name, path in files.items():
        assert path == tmp_path / f"{name}.png"
        picture = cv2.imread(str(path))
        assert picture.shape[1] == (2000 if name == "loss" else 1120)
        assert picture.std() > 5


def test_draw_curves_of_a_schedule_that_follows_the_loss_have_its_figure(tmp_path, metrics):
    values = np.linspace(1, 0, 54)
    followed = {"loss_mean": values, "detector": values[2:], "threshold": [0.3]}
    metrics.update({f"train/{name}": series(points) for name, points in followed.items()})
    files = write_pngs(tmp_path, draw_curves(metrics))
    assert cv2.imread(str(files["schedule"])).shape == (1440, 2000, 3)


def test_draw_curves_of_missing_metrics_are_left_out(tmp_path):
    metrics = {"loss": series([math.nan, math.nan]), "lr": series([0.1, 0.2])}
    assert list(write_pngs(tmp_path, draw_curves(metrics))) == ["lr"]


@pytest.mark.parametrize("count", [1, 2, 60, 200])
def test_smoothed_of_any_length_equals_the_direct_mean(count):
    values = np.random.default_rng(count).random(count)
    values[::7] = math.nan
    half = int(count * 0.04 / 2)
    for i, got in enumerate(smoothed(values)):
        inside = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        assert got == pytest.approx(np.mean(inside)) if inside else math.isnan(got)


@pytest.mark.parametrize(("count", "lines"), [(20, 1), (200, 2)])
def test_loss_of_few_points_is_drawn_once_without_a_mean(count, lines):
    (plot,) = draw_curves({"train/loss": series(np.linspace(9, 1, count) ** 2)})
    (axes,) = plot.figure.axes
    assert len(axes.lines) == lines
    assert (axes.get_legend() is None) == (lines == 1)


def test_a_run_with_one_logged_step_shows_it_as_a_dot():
    one = {f"train/{name}": [(3, 9.6, 1e9)] for name in ("loss", "lr", "images_per_second")}
    (plot,) = draw_curves(one)  # a learning rate and a throughput of one step are no curves
    axes = plot.figure.axes[0]
    assert (plot.name, axes.lines[0].get_marker()) == ("loss", "o")
    assert axes.get_xlim() == (2, 4)


def accuracy_axes(values):
    (plot,) = draw_curves({"eval/accuracy": series(values)}, chance=0.5)
    return plot.figure.axes[0]


def test_accuracy_above_90_percent_leaves_out_chance_and_the_untrained_model():
    axes = accuracy_axes([0.55, 0.9941, 0.9960, 0.9983])
    assert axes.get_ylim()[0] > 0.99
    assert axes.get_legend() is None
    assert axes.texts[0].get_text() == "99.83%"
    ticks = [axes.yaxis.get_major_formatter()(tick, 0) for tick in axes.get_yticks()]
    assert len({*ticks}) == len(ticks)


def test_accuracy_up_to_90_percent_shows_chance_and_the_untrained_model():
    axes = accuracy_axes([0.55, 0.7, 0.89])
    assert axes.get_ylim()[0] < 0.5
    assert axes.get_legend() is not None
    assert accuracy_axes([0.95]).lines  # of the untrained model alone
