"""The measurement of embedding runs, takes as many images as it is asked for, and says what it measured."""

from pathlib import Path
from typing import Any

import torch

from rayface.backbones import build_backbone
from rayface.bench.embed import bench_embed
from rayface.config import EmbedConfig
from rayface.data.synth import synthesize
from rayface.models.model_files import save_model


def test_bench_embed_of_a_dataset_measures_an_actor_and_the_bare_model(tmp_path: Path, recorder: Any) -> None:
    """Rounds are counted; the last shard is cut; a bad setting gets one line."""
    synthesize(tmp_path / "faces", identities=4, images_per_identity=5, seed=0, image_size=32, shard_size=30_000)
    net = build_backbone("mini", embedding_size=8, image_size=32, width=0.25)
    save_model(
        tmp_path,
        net,
        name="mini",
        backbone_args={"width": 0.25},
        image_size=32,
        embedding_size=8,
        licence="",
        training_digest="",
        metrics={},
    )
    threads = torch.get_num_threads()
    settings = EmbedConfig(model=str(tmp_path), data=(str(tmp_path / "faces"),))
    found = bench_embed(settings, 13, 1).as_dict()
    assert torch.get_num_threads() == threads
    rounds = [advance for advance in recorder.advances if advance[0] == "measure rounds"]
    assert rounds == [("measure rounds", done, 6) for done in range(1, 7)]
    assert (found["images"], found["threads"], len(found["ratios"])) == (13, 1, 5)
    assert found["ratio"] == sorted(found["ratios"])[2]
    assert found["images_per_second"] > 0
    assert found["bare_images_per_second"] > 0
    assert bench_embed(settings, 100, 1).images == 20
