"""Models as files: saved, loaded, embedded with; what is refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import rayface
from rayface.backbones import build_backbone
from rayface.models.model_files import load_model, save_model, write_metrics
from tests.models.saved_models import SIZE, random_faces


def test_model_saved_and_loaded_is_equal(run, backbone):
    images = torch.randn(3, 3, SIZE, SIZE)
    for path in (run, run / "model.safetensors"):
        model = load_model(path)
        assert not model.module.training
        assert torch.equal(model.module(images), backbone(images))
    assert sorted(path.name for path in run.iterdir()) == ["model.json", "model.safetensors", "model_card.md"]
    card = (run / "model_card.md").read_text()
    assert "| licence of the training data | research only |" in card
    assert "| digest of the training data | `abc123` |" in card
    assert "| accuracy_mean | 0.9000 |" in card
    assert 'load_model(".")' in card
    info = json.loads((run / "model.json").read_text())
    assert info == model.info.as_dict()
    assert info["normalisation"] == "RGB, x / 127.5 - 1"
    assert (info["backbone"], info["embedding_size"], info["image_size"]) == ("mini", 8, SIZE)
    assert (info["licence"], info["training_digest"]) == ("research only", "abc123")
    assert info["metrics"] == {"accuracy_mean": 0.9}


def test_write_metrics_replaces_metrics_and_thresholds_and_keeps_the_rest(run):
    before = load_model(run).info
    figures = {"accuracy_mean": 0.95, "threshold_at_far": {"1e-02": 0.25}, "tar_at_far": {"1e-02": 0.5}}
    write_metrics(run / "model.safetensors", figures)
    info = load_model(run).info
    assert info.metrics == figures
    assert [(row.far, row.threshold, row.tar) for row in info.thresholds] == [("1e-02", 0.25, 0.5)]
    assert replace(info, metrics=before.metrics, thresholds=()) == before
    assert "| 1e-02 | 0.2500 | 0.5000 |" in (run / "model_card.md").read_text()


@pytest.mark.parametrize("name", ["nowhere", "model.onnx"])
def test_write_metrics_of_a_model_without_a_description_is_refused(tmp_path, name):
    with pytest.raises(
        ValueError, match=f"evaluate.write_card: .*{name}: must be a run directory or model.safetensors"
    ):
        write_metrics(tmp_path / name, {})


def test_load_model_of_a_folder_without_weights_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"^model .*: this folder has no model.safetensors: must be a run directory"):
        load_model(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"is an unfinished run, .* with `rayface train --resume train.output=.*`$"):
        load_model(tmp_path)
    (tmp_path / "checkpoints/step_00000002").mkdir(parents=True)
    (tmp_path / "checkpoints/step_00000002/progress.json").touch()
    with pytest.raises(ValueError, match=r"or write .*`rayface checkpoint export .* --out DIR`$"):
        load_model(tmp_path)
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "config.yaml").touch()
    with pytest.raises(ValueError, match=rf"--resume 'train.output={tmp_path}/a run'`$"):
        load_model(tmp_path / "a run")


def test_save_model_of_a_net_in_training_and_channels_last_leaves_it_as_it_was(tmp_path, backbone, run):
    net = build_backbone("mini", embedding_size=8, image_size=SIZE, width=0.25)
    net.load_state_dict(backbone.state_dict())
    net = net.to(memory_format=torch.channels_last).train()
    save_model(
        tmp_path / "other",
        net,
        name="mini",
        backbone_args={"width": 0.25},
        image_size=SIZE,
        embedding_size=8,
        licence="",
        training_digest="",
        metrics={},
    )
    assert net.training
    images = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(load_model(tmp_path / "other").module(images), backbone(images))


def test_load_model_of_a_published_file_needs_the_name_of_its_net(tmp_path):
    net = build_backbone("mini", width=0.25)
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="set `backbone` too"):
        load_model(tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="do not fit mini"):  # at width 1
        load_model(tmp_path / "backbone.pth", backbone="mini")
    torch.save(build_backbone("mini").state_dict(), tmp_path / "backbone.pth")
    model = load_model(tmp_path / "backbone.pth", backbone="mini")
    assert model.module(torch.zeros(1, 3, 112, 112)).shape == (1, 512)
    assert model.info.image_size == 112
    assert len(model.info.sha256) == 64


def test_load_model_of_a_missing_or_contradicting_model_raises_one_line(run, tmp_path):
    def refused(words, path=run, **arguments):
        with pytest.raises(ValueError, match=words) as caught:
            load_model(path, **arguments)
        assert "\n" not in str(caught.value)

    refused("no such file", tmp_path / "nowhere")
    refused(r"^backbone: r50: .*model.json names mini: leave it out$", backbone="r50")
    description = run / "model.json"
    text = description.read_text()
    description.write_text(text.replace('"sha256": "', '"sha256": "0'))
    refused("is not the one")
    description.write_text(text.replace('"image_size"', '"size"'))
    refused("lacks image_size")
    description.write_text("{")
    refused("must be JSON")
    description.unlink()
    refused("beside it")


def test_embed_by_a_model_that_gives_nan_raises(run):
    model = load_model(run)
    model.module.features.running_mean.fill_(torch.nan)
    with pytest.raises(ValueError, match="returns NaN or infinity for 2 of 2 images, first for image 0"):
        model.embed(random_faces(2))


def test_load_model_of_an_arcface_torch_checkpoint_takes_its_embedding_size(tmp_path):
    net = build_backbone("mini", embedding_size=96)
    weights = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 1, "state_dict_backbone": weights}, tmp_path / "checkpoint_gpu_0.pt")
    model = load_model(tmp_path / "checkpoint_gpu_0.pt", backbone="mini")
    assert model.info.embedding_size == 96
    assert model.module(torch.zeros(2, 3, 112, 112)).shape == (2, 96)


def test_embed_of_images_gives_unit_embeddings_and_of_others_raises(run):
    images = random_faces(3)
    model = rayface.load_model(run)
    embeddings = model.embed(images)
    assert embeddings.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(model.embed(images[:, :, ::-1]), embeddings, atol=1e-5)  # the mirror image is in it
    assert model.embed(images[:0]).shape == (0, 8)
    for wrong in (images[0], images.astype(np.float32), images[:, :8]):
        with pytest.raises(ValueError, match=r"must be uint8 RGB of shape \(N, 32, 32, 3\)"):
            model.embed(wrong)


def test_import_of_rayface_imports_nothing_heavy():
    code = "import sys, rayface; print(*sorted({'torch', 'ray', 'numpy', 'cv2', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
