"""A model as one function of images: of length 1, the mirror image added, non-finite embeddings refused."""

from pathlib import Path

import numpy as np
import pytest

from rayface.embedding.embedder import default_batch, load_embedder
from rayface.models.forward import embed_images
from tests.small_model import save_small_model

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("flip", [True, False])
def test_embedder_of_a_saved_model_embeds_as_its_net_in_batches(tmp_path: Path, flip: bool) -> None:
    net = save_small_model(tmp_path)
    embedder = load_embedder(tmp_path, flip=flip, batch_size=2)
    assert (embedder.image_size, embedder.embedding_size, len(embedder.digest)) == (32, 8, 64)
    found = embedder(IMAGES)
    np.testing.assert_allclose(found, embed_images(net, IMAGES, flip=flip), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_embedder_in_bf16_is_near_that_in_fp32_and_returns_float32(tmp_path: Path) -> None:
    save_small_model(tmp_path)
    exact, rough = (load_embedder(tmp_path, precision=precision)(IMAGES) for precision in ("fp32", "bf16"))
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.05


def test_embedder_of_a_model_that_overflows_is_refused_at_its_first_images(tmp_path: Path) -> None:
    save_small_model(tmp_path, fill=3e38)
    embedder = load_embedder(tmp_path)
    with pytest.raises(
        ValueError, match=r"^model: returns NaN or infinity for 5 of 5 images, first for image 0: "
    ) as e:
        embedder(IMAGES)
    assert "\n" not in str(e.value)


def test_embedder_of_a_missing_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model .*nowhere must be a run directory, .*; there is no such file") as e:
        load_embedder(tmp_path / "nowhere")
    assert "\n" not in str(e.value)


def test_embedder_on_a_cpu_embeds_64_images_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = save_small_model(tmp_path)
    sizes = []
    monkeypatch.setattr(type(net), "forward", lambda self, x: (sizes.append(len(x)), x.flatten(1)[:, :8])[1])
    load_embedder(tmp_path, flip=False)(np.resize(IMAGES, (150, 32, 32, 3)))
    assert sizes == [64, 64, 22]


@pytest.mark.parametrize(("device", "images"), [("cpu", 64), ("cuda", 256), ("cuda:1", 256)])
def test_default_batch_is_small_on_a_cpu(device: str, images: int) -> None:
    assert default_batch(device) == images
