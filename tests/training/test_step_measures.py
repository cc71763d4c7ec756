"""Measures of a step, and that they change nothing."""

import torch

from rayface.training.step_measures import NAMES, measure
from tests.training.plain_training import batches_for, same, training


def test_measure_of_one_direction_is_aligned():
    embeddings = 3.0 * torch.ones(4, 4) * torch.tensor([[1.0], [1.0], [2.0], [2.0]])
    norm, alignment, mean, deviation = measure(embeddings, torch.zeros(4, 3, 2, 2)).tolist()
    assert (norm, alignment, mean, deviation) == (9.0, 1.0, 0.0, 0.0)
    assert len(NAMES) == 4


def test_run_measured_gives_the_same_loss_and_weights(tmp_path):
    runs = []
    for measured in (False, True):
        net = training(tmp_path / str(measured), "head.sample_rate=0.5")
        batches = batches_for(net, stop=3)
        losses = [net.train_step.run(batch, 1.0, measured=measured) for batch in batches(0)]
        runs.append((net, losses))
    (plain, losses), (measured_net, measured_losses) = runs
    assert losses == measured_losses
    assert same(plain, measured_net)
    assert plain.train_step.measures == {}
    measures = measured_net.train_step.measures
    assert set(measures) == {*NAMES, "labels_in_batch", "classes_used"}
    assert 1 <= measures["labels_in_batch"] <= 6
    assert 3 <= measures["classes_used"] <= 6
    assert -1 < measures["pixel_mean"] < 1
