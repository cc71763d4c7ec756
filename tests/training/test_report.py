"""The page that a run leaves."""

import html.parser
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rayface.curves import MAX_POINTS
from rayface.training.report import write_report
from rayface.training.run_directory import RunDirectory

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


def report_of(path, **content):
    run = RunDirectory(path)
    write_report(run, **content)
    return run.report


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


def test_write_report_page_needs_no_other_file(tmp_path, metrics):
    folder = tmp_path / "mini-001"
    folder.mkdir()
    (folder / "config.yaml").write_text("tracking:\n  uri: http://me:secret@host/\n")
    path = report_of(folder, metrics=metrics, table=[("accuracy", "90 %")], evaluation=ROC)
    assert path == folder / "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.fetched == []
    assert "@import" not in text
    assert page.tags.count("svg") == 6
    assert page.tags.index("table") < page.tags.index("svg")
    assert "prefers-color-scheme: dark" in text
    assert "secret" not in text
    assert f"{tmp_path.name}/mini-001" in page.words
    assert len(page.ids) == len(set(page.ids)), "an id twice, and a curve is cut off by the frame of another"
    for url in re.findall(r"url\(#([^)]+)\)", text):
        assert url in page.ids
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        assert ElementTree.fromstring(svg).get("aria-label")
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set(), "a colour that does not follow the page's mode"
    assert sorted(file.stem for file in (folder / "plots").iterdir()) == sorted(ALL)
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "plots", "report.html"]


def test_write_report_page_in_a_browser_is_drawn(tmp_path, metrics, browser):
    seen = browser(report_of(tmp_path / "mini-001", metrics=metrics, table=[], evaluation=ROC))
    assert seen.console == []
    assert Page(seen.dom).tags.count("svg") == 6


def test_write_report_of_pairs_names_their_set_and_draws_chance(tmp_path, metrics):
    named = {"name": "lfw", **ROC}
    content = {"protocols": {"pairs": {"accuracy_mean": 0.9, "tar_at_far": {}}}, "curves": {"pairs": named}}
    words = Page(report_of(tmp_path, metrics=metrics, table=[], evaluation=content).read_text()).words
    assert "Accuracy on lfw" in words
    assert "ROC of lfw at the last step" in words
    assert "chance 50%" in words
    content["protocols"] = {"templates": {"tar_at_far": {}}}
    page = report_of(tmp_path, metrics=metrics, table=[], evaluation=content)
    assert "chance 50%" not in Page(page.read_text()).words


def test_write_report_of_a_schedule_that_follows_the_loss_draws_it(tmp_path, metrics):
    values = np.linspace(1, 0, 54)
    followed = {"loss_mean": values, "detector": values[2:], "threshold": [0.3]}
    metrics.update({f"train/{name}": series(points) for name, points in followed.items()})
    page = Page(report_of(tmp_path, metrics=metrics, table=[]).read_text())
    assert "threshold 0.3" in page.words
    assert len(page.ids) == len(set(page.ids))


def test_write_report_without_metrics_leaves_figures_out(tmp_path):
    path = report_of(tmp_path, metrics={}, table=[])
    page = Page(path.read_text())
    assert "table" not in page.tags
    assert "svg" not in page.tags


def test_write_report_of_markup_in_names_escapes_it(tmp_path, metrics):
    evil = "<script>alert(1) & more"
    folder = tmp_path / evil
    folder.mkdir()
    (folder / "config.yaml").write_text(f"name: {evil}\n")
    page = Page(report_of(folder, metrics=metrics, table=[(evil, evil)]).read_text())
    assert "script" not in page.tags
    assert page.words.count(evil) == 2
    assert page.words.count(f"{tmp_path.name}/{evil}") == 1


def test_write_report_of_a_long_run_stays_small(tmp_path):
    loss = series(np.random.default_rng(0).random(100_000))
    path = report_of(tmp_path, metrics={"train/loss": loss}, table=[])
    assert path.stat().st_size < 2 * MAX_POINTS * 60
