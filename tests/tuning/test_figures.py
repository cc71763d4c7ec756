"""Figures of a study: cells of heat maps, what is drawn on the page, what is written as pictures."""

import re

import cv2
import optuna
import pytest

from rayface.report import PALETTE
from rayface.tuning.figures import draw, write_pngs
from rayface.tuning.search_space import Parameter
from rayface.tuning.spec import Objective, Spec
from tests.tuning.searched_studies import ended_trial


@pytest.fixture
def trials():
    return [
        ended_trial(value, **{"optim.lr": lr, "head.scale": 8.0}) for value, lr in ((0.5, 0.1), (0.9, 0.2), (0.7, 0.3))
    ]


def spec_of(*objectives, **more):
    search = {"optim.lr": Parameter(low=0.01, high=1.0), "head.scale": Parameter(low=1.0, high=64.0)}
    return Spec(search=search, objectives=objectives or (Objective(),), **more)


def study_of(trials, *directions):
    study = optuna.create_study(directions=directions or ["maximize"])
    study.add_trials(trials)
    return study


def test_draw_of_complete_trials_has_history_importance_coordinates_and_heat_maps(trials):
    spec = spec_of(heatmaps=(("optim.lr", "head.scale"),))
    drawn = draw(study_of(trials), spec)
    captions = ["History", "Parameter importance", "Parallel coordinates", "optim.lr and head.scale"]
    assert [figure["caption"] for figure in drawn] == captions
    assert [figure["wide"] for figure in drawn] == [True, True, True, False]
    assert [figure["pixels"] for figure in drawn] == [0, 0, 270, 0]
    assert all("plotly-graph-div" in figure["html"] and "<html" not in figure["html"] for figure in drawn)


def test_draw_of_fewer_than_two_complete_trials_has_no_figure(trials):
    for given in ([], trials[:1]):
        assert draw(study_of(given), spec_of()) == []


def test_draw_of_parameters_and_values_that_do_not_vary_leaves_out_what_cannot_be_explained(trials):
    same = [trials[0], trials[0]]
    assert [figure["caption"] for figure in draw(study_of(same), spec_of())] == ["History"]
    equal = [ended_trial(0.5, lr=lr) for lr in (0.1, 0.2)]  # parameters vary, the objective does not
    captions = [figure["caption"] for figure in draw(study_of(equal), spec_of())]
    assert captions == ["History", "Parallel coordinates"]


def test_draw_with_two_objectives_shows_the_front_and_the_history_of_the_first():
    study = optuna.create_study(directions=["maximize", "minimize"])
    for value, seconds, lr in ((0.5, 9.0, 0.1), (0.9, 20.0, 0.2)):
        distributions = {"lr": optuna.distributions.FloatDistribution(0, 1)}
        study.add_trial(
            optuna.trial.create_trial(values=[value, seconds], params={"lr": lr}, distributions=distributions)
        )
    spec = spec_of(Objective(), Objective(metric="seconds", mode="min"))
    captions = [figure["caption"] for figure in draw(study, spec)]
    assert captions[:2] == ["Pareto front", "History"]


def test_draw_of_trials_that_reported_on_the_way_shows_their_curves(trials):
    study = study_of(trials)
    trial = study.ask()
    trial.report(0.3, 10)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert draw(study, spec_of())[-1]["caption"] == "Intermediate values"


def test_write_pngs_of_complete_trials_writes_what_the_page_shows(trials, tmp_path):
    write_pngs(study_of(trials), spec_of(heatmaps=(("optim.lr", "head.scale"),)), tmp_path / "plots")
    names = {"history", "importance", "parallel_coordinates", "heatmap_optim_lr_head_scale"}
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == names
    assert all(cv2.imread(str(path)).std() > 5 for path in (tmp_path / "plots").iterdir())


def test_write_pngs_of_one_trial_writes_none(trials, tmp_path):
    write_pngs(study_of(trials[:1]), spec_of(), tmp_path / "plots")
    assert list((tmp_path / "plots").iterdir()) == []


def test_draw_of_the_worst_trial_can_be_seen(trials):
    drawn = {figure["caption"]: str(figure["html"]) for figure in draw(study_of(trials), spec_of())}
    lines = re.findall(r'"line":\{"color":"rgb\((\d+), (\d+), (\d+)\)', drawn["Parallel coordinates"])
    assert len(lines) == 3
    assert all(min(map(int, line)) < 200 for line in lines)  # on white, and inverted on black


def test_draw_of_few_trials_has_whole_numbers_on_the_axis(trials):
    drawn = {figure["caption"]: str(figure["html"]) for figure in draw(study_of(trials), spec_of())}
    assert '"dtick":1' in drawn["History"]


def test_draw_of_cells_without_trials_leaves_the_page_show_through(trials):
    drawn = draw(study_of(trials), spec_of(heatmaps=(("optim.lr", "head.scale"),)))[-1]["html"]
    assert '"plot_bgcolor":"rgba(0,0,0,0)"' in drawn
    assert "\\u003cbr\\u003eto " in drawn  # the label of a bin takes two lines


def test_history_of_the_page_is_a_step_in_the_colours_of_the_page(trials):
    drawn = {figure["caption"]: str(figure["html"]) for figure in draw(study_of(trials), spec_of())}
    assert '"shape":"hv"' in drawn["History"]
    assert PALETTE["orange"] in drawn["History"]
    assert "best so far" in drawn["History"]


def test_figures_of_the_page_have_grids_for_light_and_dark_and_no_colour_bar(trials):
    for figure in draw(study_of(trials), spec_of(heatmaps=(("optim.lr", "head.scale"),))):
        html = str(figure["html"])
        assert '"gridcolor":"rgba(128, 128, 128, 0.25)"' in html
        if figure["caption"] in ("Parallel coordinates", "optim.lr and head.scale"):
            assert '"showscale":false' in html
