"""Runs that are wrong in eight known ways: the diagnosis names the key; a healthy run gets no advice."""

import numpy as np
import pytest

from rayface.training.doctor.diagnosis import diagnose_directory
from rayface.training.run_directory import RunDirectory
from tests.training.doctor.faulty_runs import train_faulty

SEEDS = (0, 1, 2)
FAULTS = {
    "rate 10x": ("optim.lr", "learning rate", ["optim.lr=1.0"], {"steps": 20}),
    "labels shuffled": ("data.train", "loss", [], {"labels": lambda labels, draw: draw.permutation(labels)}),
    "scale 1": ("head.scale", "scale of the logits", ["head.scale=1"], {"steps": 20}),
    "margin too large": ("head.margin_value", "margin", ["head.margin_value=1.0"], {"steps": 20}),
    "frozen batch norm": ("backbone.name", "norm of the embeddings", [], {"freeze": True}),
    "wrong normalisation": ("data.train", "pixels", [], {"steps": 20, "stored": lambda images: images // 255}),
    "one class": ("data.train", "labels", [], {"steps": 20, "labels": lambda labels, draw: np.zeros_like(labels)}),
    "sample_rate too low": (
        "head.sample_rate",
        "classes in the softmax",
        ["head.sample_rate=0.02", "train.batch_size=4"],
        {"steps": 20},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_diagnosis_of_a_run_with_a_known_fault_names_its_key(tmp_path, fault, seed):
    key, name, overrides, options = FAULTS[fault]
    run = train_faulty(tmp_path / "run", *overrides, seed=seed, **options)
    diagnosis = diagnose_directory(run)
    assert diagnosis.advised is not None, diagnosis.table()
    assert (diagnosis.advised.key, diagnosis.advised.name) == (key, name)
    assert diagnosis.advice.startswith(f"{key}: ")
    assert "\n" not in diagnosis.advice


@pytest.mark.parametrize("seed", SEEDS)
def test_diagnosis_of_a_healthy_run_gives_no_advice(tmp_path, seed):
    diagnosis = diagnose_directory(train_faulty(tmp_path / "run", seed=seed))
    assert diagnosis.advice is None, diagnosis.table()
    assert {check.verdict for check in diagnosis.checks} == {"ok"}


def test_diagnosis_of_a_directory_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="is not a run directory"):
        diagnose_directory(RunDirectory(tmp_path))
