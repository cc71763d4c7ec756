"""Pruning by proxy: what its job file holds, and what is refused before the proxy is trained."""

import json

import numpy as np
import pytest

from rayface import config as configs
from rayface.config import PruneConfig
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.stages import proxy


class Reached(Exception):  # noqa: N818
    """Raised where the proxy's training set would be written: all checks are behind it."""


@pytest.fixture
def begin(tmp_path, monkeypatch):
    synthesize(tmp_path / "faces", identities=2, images_per_identity=2, processes=1, image_size=32)
    monkeypatch.setattr(proxy, "ray_session", lambda *args, **options: pytest.raises(Reached))

    def reached(*args):
        raise Reached

    monkeypatch.setattr(proxy, "_sample_identities", reached)

    def begin(*overrides):
        out = tmp_path / "out" / "core"
        own = ["prune.keep=0.5", "prune.proxy_fraction=0.5", f"prune.data={tmp_path / 'faces'}", f"prune.out={out}"]
        proxy.prune(configs.load("mini", overrides=[*own, *overrides]))
        return (out / "proxy" / "proxy.json").read_text()

    return begin


def test_proxy_job_holds_no_password_and_resumes_with_other_tracking(begin, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@server")
    job = begin()
    assert "secret" not in job
    digest = open_dataset(tmp_path / "faces").digest
    assert json.loads(job) | {"fraction": 0.5, "seed": 0, "dataset_digest": digest} == json.loads(job)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert begin("tracking.enabled=false", "data.train=[elsewhere]") == job
    with pytest.raises(
        ValueError, match=r"prune\.out: .*was started with optim.lr 0.* this job has 0.7: choose another"
    ):
        begin("optim.lr=0.7")


def test_proxy_that_starts_from_other_weights_under_the_same_path_is_refused(begin, tmp_path):
    weights = tmp_path / "start.pt"
    weights.write_bytes(b"one")
    begin(f"backbone.weights={weights}")
    begin(f"backbone.weights={weights}")
    weights.write_bytes(b"two")
    with pytest.raises(ValueError, match=r"^prune\.out: .* was started with backbone.weights sha256 .* choose another"):
        begin(f"backbone.weights={weights}")


def test_proxy_of_an_earlier_version_resumes_with_the_default_that_was_another(begin, tmp_path):
    job = json.loads(begin())
    file = tmp_path / "out" / "core" / "proxy" / "proxy.json"
    file.write_text(json.dumps({**job, "head.compute_dtype": "fp32"}))
    (tmp_path / "out" / "core" / "parts").mkdir()  # of the pruning, which was cut off
    assert json.loads(begin()) == job


@pytest.mark.parametrize(("fraction", "count"), [(0.4, 4), (0.05, 2)])
def test_proxy_is_trained_on_all_images_of_a_random_part_of_the_identities(tmp_path, fraction, count):
    synthesize(tmp_path / "faces", identities=10, images_per_identity=2, processes=1, image_size=32)
    dataset, out = open_dataset(tmp_path / "faces"), tmp_path / "data"
    proxy._sample_identities(out, PruneConfig(proxy_fraction=fraction, seed=3), dataset)
    chosen = np.sort(np.random.default_rng(3).permutation(10)[:count])
    wanted = [key for key, label in zip(dataset.keys(), dataset.index.label, strict=True) if label in chosen]
    assert sorted(open_dataset(out).keys()) == sorted(wanted)
    assert len(wanted) == 2 * count
    before = (out / "dataset.json").read_bytes()
    proxy._sample_identities(out, PruneConfig(proxy_fraction=0.9, seed=0), dataset)  # of the run before
    assert (out / "dataset.json").read_bytes() == before


def test_prune_by_proxy_into_a_folder_with_foreign_files_is_refused_before_training(begin, tmp_path):
    (tmp_path / "out" / "core").mkdir(parents=True)
    (tmp_path / "out" / "core" / "notes").touch()
    with pytest.raises(ValueError, match=r"prune\.out: .*core: is not empty \(notes\)"):
        begin()
    assert not (tmp_path / "out" / "core" / "proxy").exists()


def test_prune_by_proxy_with_half_of_a_test_set_is_refused_before_training(begin, tmp_path):
    for given in ("clean.exclude=test", "clean.above=0.5"):
        with pytest.raises(ValueError, match=r"clean.exclude, clean.above: must be given together"):
            begin(given)
    with pytest.raises(ValueError, match="nowhere"):
        begin(f"clean.exclude={tmp_path / 'nowhere'}", "clean.above=0.5")
    assert not (tmp_path / "out").exists()
