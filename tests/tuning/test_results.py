"""What a sweep leaves, from studies made by hand: heat maps, the page, the pictures, best.yaml."""

import html.parser
import json
import math
from pathlib import Path

import cv2
import numpy as np
import optuna
import pytest

from rayface import config as configs
from rayface.tuning import spec as specs
from rayface.tuning.figures import heat_map
from rayface.tuning.results import write_results
from rayface.tuning.search_space import Parameter, suggest

CONFIGS = Path(__file__).parents[2] / "tune_configs"
PLACES = ["data.train=faces", "evaluate.pairs=pairs.csv", "evaluate.data=faces"]


def done(value, **params):
    return optuna.trial.create_trial(
        value=value,
        params=params,
        distributions={
            key: optuna.distributions.CategoricalDistribution((item,))
            if isinstance(item, str)
            else optuna.distributions.FloatDistribution(0.01, 100)
            for key, item in params.items()
        },
    )


def test_heat_map_means_and_counts():
    space = {"lr": Parameter(low=0.01, high=1000.0, log=True), "name": Parameter(choices=("a", "b"))}
    trials = [
        done(1.0, lr=0.02, name="a"),
        done(3.0, lr=0.05, name="a"),
        done(5.0, lr=100.0, name="b"),
        done(9.0, lr=1.0),
    ]
    drawn = heat_map(trials, space, "lr", "name")
    assert drawn.x_labels == ["0.01 to 0.1", "0.1 to 1", "1 to 10", "10 to 1e+02", "1e+02 to 1e+03"]
    assert drawn.y_labels == ["a", "b"]
    assert drawn.counts.tolist() == [[2, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert drawn.means[0, 0] == 2.0
    assert drawn.means[1, 4] == 5.0
    assert np.isnan(drawn.means).sum() == 8


class Page(html.parser.HTMLParser):
    """The tags of a page, its text outside of scripts, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] != "script":
            self.words.append(data)


def searched(file, *overrides):
    spec, base = specs.load(CONFIGS / file, [*PLACES, *overrides])
    study = optuna.create_study(
        directions=[f"{objective.mode}imize" for objective in spec.objectives],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    for number in range(12):
        trial = study.ask()
        values = suggest(spec.search, trial)
        found = [0.8 - 0.1 * abs(math.log(values.get("optim.lr", 0.1) / 0.1)), 10.0 + number][: len(spec.objectives)]
        if number == 3:
            trial.set_user_attr("reason", "ValueError: <b>bold</b>")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif number == 4 and len(found) == 1:
            trial.report(0.5, 10)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, found)
    return spec, base, study


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder of a sweep that has ended, its result, its study."""
    folder = tmp_path_factory.mktemp("sweep")
    spec, base, study = searched("fastface.yaml")
    return folder, write_results(spec, base, folder, study, seconds=5.0), study


def test_a_sweep_leaves_a_page_pictures_and_the_best_config(left):
    folder, result, study = left
    assert (result["trials"], result["complete"], result["pruned"], result["fail"]) == (12, 10, 1, 1)
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["best"]["accuracy_mean"] == study.best_value
    best = configs.load(file=folder / "best.yaml")
    assert best.optim.lr == study.best_params["optim.lr"]
    assert best.schedule.name == "fastface"
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert page.tags.count("figure") == text.count('class="plotly-graph-div"') == 6
    assert page.tags.count("tr") >= 12 + 1 + len(result["best"]["params"])
    assert "ValueError: <b>bold</b>" in page.words
    assert "b" not in page.tags
    names = {"history", "importance", "parallel_coordinates"}
    names |= {"heatmap_optim_lr_schedule_decay", "heatmap_schedule_lambda_total_schedule_tolerance"}
    assert {path.stem for path in (folder / "plots").iterdir()} == names
    for path in (folder / "plots").iterdir():
        assert cv2.imread(str(path)).std() > 5


def test_the_page_is_drawn_in_a_browser(left, browser):
    page = browser(left[0] / "report.html")
    assert page.console == []
    assert page.dom.count('class="plotly-graph-div js-plotly-plot"') == 6
    assert page.dom.count('class="trace bars"') == 1
    assert page.dom.count('class="hm"') == 2
    for label in ("lambda_total", "restart_factor"):  # of parallel coordinates, not cut
        assert f">{label}</text>" in page.dom


def test_several_objectives_and_a_prune_stage(tmp_path):
    spec, base, study = searched("face_nms.yaml", "prune.embeddings=emb")
    result = write_results(spec, base, tmp_path, study, seconds=5.0)
    assert set(result["best"]) == {"trial", "accuracy_mean", "seconds", "params"}
    best = tmp_path / "trials" / f"{result['best']['trial']:04d}_core_set"
    assert configs.load(file=tmp_path / "best.yaml").data.train == (str(best),)
    assert "Pareto front" in Page((tmp_path / "report.html").read_text()).words


@pytest.mark.parametrize("trials", [0, 1])
def test_a_sweep_of_hardly_any_trials(tmp_path, trials):
    spec, base = specs.load(CONFIGS / "partial_fc.yaml", PLACES)
    study = optuna.create_study()
    for _ in range(trials):
        trial = study.ask()
        suggest(spec.search, trial)
        study.tell(trial, 0.5)
    result = write_results(spec, base, tmp_path, study, seconds=1.0)
    assert ("best" in result) == bool(trials)
    assert (tmp_path / "best.yaml").exists() == bool(trials)
