import html.parser
import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from rayface.report import MAX_POINTS, smoothed, training_plots, training_report

ALL = ["loss", "accuracy", "roc", "lr", "throughput"]


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


ROC = ([0, 0, 0.001, 0.01, 0.5, 1.0], [0, 0.4, 0.6, 0.8, 0.95, 1.0])


class Page(html.parser.HTMLParser):
    """The elements of a page, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.fetched, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.fetched.append(value)

    def handle_data(self, data):
        self.words.append(data)


def test_a_report_stands_alone(tmp_path, metrics):
    (tmp_path / "config.yaml").write_text("tracking:\n  uri: http://me:secret@host/\n")
    path = training_report(tmp_path, title="mini-001", metrics=metrics, table=[("accuracy", "90 %")], roc=ROC)
    assert path == tmp_path / "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.fetched == []
    assert "@import" not in text
    assert page.tags.count("svg") == 5
    assert page.tags.index("table") < page.tags.index("svg")
    assert "prefers-color-scheme: dark" in text
    assert "secret" not in text
    assert "mini-001" in page.words
    assert len(page.ids) == len(set(page.ids)), "an id twice, and a curve is cut off by the frame of another"
    for url in re.findall(r"url\(#([^)]+)\)", text):
        assert url in page.ids
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        assert ElementTree.fromstring(svg).get("aria-label")
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set(), "a colour that does not follow the page's mode"
    assert sorted(file.stem for file in (tmp_path / "plots").iterdir()) == sorted(ALL)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "plots", "report.html"]


def test_a_browser_draws_the_report(tmp_path, metrics, browser):
    seen = browser(training_report(tmp_path, title="mini-001", metrics=metrics, table=[], roc=ROC))
    assert seen.console == []
    assert Page(seen.dom).tags.count("svg") == 5


def test_plots_are_pictures(tmp_path, metrics):
    files = training_plots(tmp_path, metrics=metrics, roc=ROC)
    assert list(files) == ALL
    for name, path in files.items():
        assert path == tmp_path / "plots" / f"{name}.png"
        picture = cv2.imread(str(path))
        assert picture.shape[1] == (2000 if name == "loss" else 1120)
        assert picture.std() > 5


def test_a_schedule_that_follows_the_loss_is_drawn_with_it(tmp_path, metrics):
    values = np.linspace(1, 0, 54)
    followed = {"loss_mean": values, "detector": values[2:], "threshold": [0.3]}
    metrics.update({f"train/{name}": series(points) for name, points in followed.items()})
    files = training_plots(tmp_path, metrics=metrics)
    assert "schedule" in files
    assert cv2.imread(str(files["schedule"])).shape == (1440, 2000, 3)
    page = Page(training_report(tmp_path, title="fast", metrics=metrics, table=[]).read_text())
    assert "threshold 0.3" in page.words
    assert len(page.ids) == len(set(page.ids))


def test_what_is_not_there_is_left_out(tmp_path):
    metrics = {"loss": series([math.nan, math.nan]), "lr": series([0.1])}
    assert list(training_plots(tmp_path, metrics=metrics)) == ["lr"]
    path = training_report(tmp_path / "empty", title="nothing", metrics={}, table=[])
    page = Page(path.read_text())
    assert "table" not in page.tags
    assert "svg" not in page.tags


def test_names_are_text_not_markup(tmp_path, metrics):
    evil = "<script>alert(1)</script> & more"
    (tmp_path / "config.yaml").write_text(f"name: {evil}\n")
    page = Page(training_report(tmp_path, title=evil, metrics=metrics, table=[(evil, evil)]).read_text())
    assert "script" not in page.tags
    assert page.words.count(evil) == 3


def test_long_runs_stay_small(tmp_path):
    loss = series(np.random.default_rng(0).random(100_000))
    path = training_report(tmp_path, title="long", metrics={"train/loss": loss}, table=[])
    assert path.stat().st_size < 2 * MAX_POINTS * 60


@pytest.mark.parametrize("count", [1, 2, 60, 200])
def test_smoothed_equals_the_slow_one(count):
    values = np.random.default_rng(count).random(count)
    values[::7] = math.nan
    half = int(count * 0.04 / 2)
    for i, got in enumerate(smoothed(values)):
        inside = [v for v in values[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        assert got == pytest.approx(np.mean(inside)) if inside else math.isnan(got)


def test_pyplot_is_not_touched():
    code = "import sys, rayface.report; sys.exit('matplotlib.pyplot' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
