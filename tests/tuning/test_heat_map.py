"""Bins, labels, means and counts of heat maps."""

import numpy as np

from rayface.tuning.heat_map import heat_map
from rayface.tuning.search_space import Parameter
from tests.tuning.searched_studies import ended_trial


def test_heat_map_of_choices_and_a_log_range_has_means_and_counts_of_its_cells():
    space = {"lr": Parameter(low=0.01, high=1000.0, log=True), "name": Parameter(choices=("a", "b"))}
    trials = [
        ended_trial(1.0, lr=0.02, name="a"),
        ended_trial(3.0, lr=0.05, name="a"),
        ended_trial(5.0, lr=100.0, name="b"),
        ended_trial(9.0, lr=1.0),
    ]
    drawn = heat_map(trials, space, "lr", "name")
    assert drawn.x_labels == ["0.01 to 0.1", "0.1 to 1", "1 to 10", "10 to 1e+02", "1e+02 to 1e+03"]
    assert drawn.y_labels == ["a", "b"]
    assert drawn.counts.tolist() == [[2, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert drawn.means[0, 0] == 2.0
    assert drawn.means[1, 4] == 5.0
    assert np.isnan(drawn.means).sum() == 8


def test_heat_map_of_a_stepped_range_has_a_cell_for_each_value_and_takes_the_nearest():
    space = {"a": Parameter(low=0.1, high=0.3, step=0.1), "b": Parameter(low=1, high=100)}
    drawn = heat_map([ended_trial(2.0, a=0.1 + 0.2, b=100.0)], space, "a", "b")
    assert drawn.x_labels == ["0.1", "0.2", "0.3"]
    assert len(drawn.y_labels) == 5
    assert drawn.counts[-1].tolist() == [0, 0, 1]


def test_heat_map_of_up_to_ten_steps_has_a_cell_for_each():
    space = {"a": Parameter(low=1, high=10), "b": Parameter(low=1, high=11)}
    drawn = heat_map([ended_trial(2.0, a=10, b=11)], space, "a", "b")
    assert (len(drawn.x_labels), len(drawn.y_labels)) == (10, 5)
    assert drawn.counts[4, 9] == 1


def test_heat_map_without_trials_has_no_means():
    space = {"a": Parameter(choices=(1, 2)), "b": Parameter(choices=("x",))}
    drawn = heat_map([], space, "a", "b")
    assert drawn.counts.tolist() == [[0, 0]]
    assert np.isnan(drawn.means).all()


def test_heat_map_of_a_narrow_range_has_labels_that_differ():
    space = {"a": Parameter(low=0.1, high=0.101), "b": Parameter(choices=("x",))}
    labels = heat_map([], space, "a", "b").x_labels
    assert labels == ["0.1 to 0.1002", "0.1002 to 0.1004", "0.1004 to 0.1006", "0.1006 to 0.1008", "0.1008 to 0.101"]
