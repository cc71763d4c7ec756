"""The road of a teacher's cache: embedded once by the embedding job, found by sample, refused for other data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rayface import config as configs
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import read_samples
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.sample_order import SampleOrder
from rayface.models.model_files import load_model, save_model
from rayface.training.builders import build_config_backbone
from rayface.training.distillation import build_distillation
from rayface.training.distributed import World
from rayface.training.teacher_cache import fill_cache

pytestmark = pytest.mark.usefixtures("local_ray")


def test_teacher_cache_filled_once_gives_every_view_the_target_of_its_image(drawn: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    overrides = [f"data.train={drawn}", "backbone.width=0.25", "backbone.embedding_size=16"]
    net = build_config_backbone(configs.load("debug", None, overrides))
    card = {"licence": "", "training_digest": "", "metrics": {}}
    save_model(
        tmp_path / "teacher", net, name="mini", backbone_args={"width": 0.25}, image_size=32, embedding_size=16, **card
    )
    cached = [f"train.teacher={tmp_path / 'teacher'}", f"train.teacher_cache={tmp_path / 'cache'}"]
    config = configs.load("debug", None, [*overrides, *cached, "train.distillation=center", "train.batch_size=24"])
    dataset = open_dataset(drawn)
    fill_cache(config, dataset)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.[np]*") if path.suffix != ".json"}
    assert len(before) == len(dataset.shards) + 2
    fill_cache(config, dataset)
    assert {path: path.stat().st_mtime_ns for path in before} == before

    images, _ = decode_images([s.jpeg for s in read_samples(dataset.shard_paths(), dataset.index)], 32)
    wanted = load_model(tmp_path / "teacher").embed(images)
    sample_order = SampleOrder(num_samples=len(images), batch_size=24, window_images=60)
    rows, step = slice(8, 16), 3
    ids = sample_order.batch(step)[rows]
    labels = torch.from_numpy(dataset.index.label[ids].astype(np.int64))
    batch = Batch(step=step, rows=rows, images=torch.from_numpy(images[ids]), labels=labels, faults=())
    world = World(rank=1, size=3, local_size=3, device=torch.device("cpu"))
    view = torch.zeros(8, 3, 32, 32)  # whatever augmentation made of it
    angular = configs.with_overrides(config, {"train.distillation": "angular"})
    for each in (angular, config):
        distillation = build_distillation(each, sample_order, dataset.num_classes, world)
        targets = distillation.teacher(view, batch, slice(0, 8)).numpy()
        if each is angular:
            np.testing.assert_allclose(targets, wanted[ids], atol=1e-3)  # kept as float16
        else:
            means = np.stack([wanted[dataset.index.label == label].mean(0) for label in labels.tolist()])
            np.testing.assert_allclose(targets, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-3)
    torch.manual_seed(1)
    other = build_config_backbone(configs.load("debug", None, overrides))
    save_model(
        tmp_path / "other", other, name="mini", backbone_args={"width": 0.25}, image_size=32, embedding_size=16, **card
    )
    with pytest.raises(ValueError, match="model_sha256"):
        fill_cache(configs.with_overrides(config, {"train.teacher": str(tmp_path / "other")}), dataset)
