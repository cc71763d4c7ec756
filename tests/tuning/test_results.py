"""The results of a sweep: the page, the pictures, best.yaml."""

import html.parser
import json
import re
from dataclasses import replace

import cv2
import optuna
import pytest

from rayface import config as configs
from rayface.evaluation.pair_scores import write_pair_scores
from rayface.tracking.job import Tracked
from rayface.tuning import spec as specs
from rayface.tuning.results import ended_line, write_results
from rayface.tuning.search_space import suggest
from tests.evaluation.test_pair_scores import some_scores
from tests.tuning.searched_studies import CONFIGS, PLACES, searched_study


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


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder of a sweep that has ended, its result, its study."""
    folder = tmp_path_factory.mktemp("sweep")
    spec, base, study = searched_study("fastface.yaml")
    return folder, write_results(spec, base, folder, study, seconds=5.0), study


def test_results_of_a_sweep_are_a_page_pictures_and_the_best_config(left):
    folder, ended, study = left
    result = ended.as_dict()
    assert (result["trials"], result["complete"], result["pruned"], result["fail"]) == (12, 10, 1, 1)
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["best"]["accuracy_mean"] == study.best_value
    tracked = Tracked(uri="sqlite:///x", delivered=True, link="http://x")
    assert replace(ended, tracked=tracked).as_dict() == {**result, **tracked.as_dict()}
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


def test_page_in_a_browser_draws_every_figure(left, browser):
    page = browser(left[0] / "report.html")
    assert page.console == []
    assert page.dom.count('class="plotly-graph-div js-plotly-plot"') == 6
    assert page.dom.count('class="trace bars"') == 1
    assert page.dom.count('class="hm"') == 2
    for label in ("lambda_total", "restart_factor"):  # of parallel coordinates, not cut
        assert f">{label}</text>" in page.dom


def test_results_of_trials_with_pair_scores_say_how_far_they_are_from_the_best(tmp_path):
    spec, base, study = searched_study("fastface.yaml")
    best = study.best_trial.number
    other = next(t.number for t in study.trials if t.state.is_finished() and t.number != best)
    for number, seed in ((best, 0), (other, 1)):
        folder = tmp_path / "trials" / f"{number:04d}"
        folder.mkdir(parents=True)
        write_pair_scores(str(folder), {"pairs": some_scores(seed=seed)})
    write_results(spec, base, tmp_path, study, seconds=5.0)
    words = Page((tmp_path / "report.html").read_text()).words
    assert "accuracy minus best" in words
    found = [word for word in words if re.fullmatch(r"[+-]\d+\.\d\d% \[[+-][\d.]+%, [+-][\d.]+%\], p [\d.]+", word)]
    assert len(found) == 1


def test_results_with_several_objectives_and_a_prune_stage_name_the_front_and_the_core_set(tmp_path):
    spec, base, study = searched_study("face_nms.yaml", "prune.embeddings=emb")
    result = write_results(spec, base, tmp_path, study, seconds=5.0).as_dict()
    assert set(result["best"]) == {"trial", "accuracy_mean", "seconds", "params"}
    best = tmp_path / "trials" / f"{result['best']['trial']:04d}_core_set"
    assert configs.load(file=tmp_path / "best.yaml").data.train == (str(best),)
    assert "Pareto front" in Page((tmp_path / "report.html").read_text()).words


@pytest.mark.parametrize("trials", [0, 1])
def test_results_of_no_or_one_trial_are_written(tmp_path, trials):
    spec, base = specs.load(CONFIGS / "partial_fc.yaml", PLACES)
    study = optuna.create_study()
    for _ in range(trials):
        trial = study.ask()
        suggest(spec.search, trial)
        study.tell(trial, 0.5)
    result = write_results(spec, base, tmp_path, study, seconds=1.0).as_dict()
    assert ("best" in result) == bool(trials)
    assert (tmp_path / "best.yaml").exists() == bool(trials)


def test_trials_as_a_data_frame_are_a_row_for_each_finished_trial(left):
    _, ended, study = left
    frame = ended.to_pandas()
    assert list(frame.columns)[:3] == ["trial", "state", "accuracy_mean"]
    assert frame["state"].value_counts().to_dict() == {"complete": 10, "pruned": 1, "fail": 1}
    best = frame.loc[frame["accuracy_mean"].idxmax()]
    assert (best["trial"], best["accuracy_mean"]) == (study.best_trial.number, study.best_value)
    assert {key: best[key] for key in study.best_params} == study.best_params
    assert "bold" in frame["reason"][frame["state"] == "fail"].item()


def test_line_of_an_ended_trial_has_its_number_and_how_many_have_ended(left):
    study = left[2]
    trial = next(trial for trial in study.trials if trial.state.name == "COMPLETE")
    text = ended_line(trial, ["accuracy_mean"], [study.best_trial], 3, 12)
    assert text.startswith(f"trial {trial.number} (3 of 12): complete accuracy_mean {trial.value:.4g}")


def test_line_of_a_trial_that_did_not_complete_has_its_reason_and_the_best_trial(left):
    study = left[2]
    best = study.best_trial
    pruned, failed, own = (ended_line(t, ["accuracy_mean"], [best], 5, 12) for t in (*study.trials[4:2:-1], best))
    assert pruned.startswith("trial 4 (5 of 12): pruned ")
    assert "accuracy_mean" not in pruned
    assert failed.startswith("trial 3 (5 of 12): fail ValueError: <b>bold</b> (best ")
    assert f"(best {best.value:.4g}, trial {best.number})" in pruned
    assert "(best" not in own
