"""Alignment against known transforms, and the documented example on a photograph of a real face."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.evaluation.alignment import TEMPLATE, align, similarity
from tests.small_model import save_small_model

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (25, 0.3), (-170, 4.0), (90, 1.7)])
def test_similarity_of_moved_points_is_the_known_transform(degrees: float, scale: float) -> None:
    angle = np.deg2rad(degrees)
    known = np.array(
        [
            [scale * np.cos(angle), -scale * np.sin(angle), 31.5],
            [scale * np.sin(angle), scale * np.cos(angle), -12.25],
        ]
    )
    found = similarity(TEMPLATE, TEMPLATE @ known[:, :2].T + known[:, 2])
    np.testing.assert_allclose(found, known, atol=1e-6)


def test_similarity_of_noisy_points_is_least_squares_and_never_a_reflection() -> None:
    random = np.random.default_rng(0)
    source, target = random.normal(size=(2, 6, 2))
    # x' = a x - b y + c, y' = b x + a y + d is linear in (a, b, c, d)
    rows = [[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in source]
    a, b, c, d = np.linalg.lstsq(np.reshape(rows, (-1, 4)), target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(similarity(source, target), [[a, -b, c], [b, a, d]], atol=1e-9)
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(similarity(TEMPLATE, mirrored)[:, :2]) > 0


def test_similarity_of_points_without_a_transform_is_refused() -> None:
    for wrong in (np.zeros((5, 2)), np.ones((5, 3)), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="landmarks"):
            similarity(wrong, TEMPLATE)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_align_of_a_moved_and_enlarged_face_cuts_it_out(scale: float) -> None:
    """A smooth image, moved and enlarged, comes back unchanged; outside is black."""
    y, x = np.mgrid[:112, :112] / 112
    picture = np.stack([255 * x, 255 * y, 127 + 100 * np.sin(6 * x) * np.cos(5 * y)], 2).astype(np.uint8)
    matrix = np.array([[scale, 0, 40.0], [0, scale, 25.0]])
    canvas = cv2.warpAffine(picture, matrix, (int(112 * scale) + 80, int(112 * scale) + 60), flags=cv2.INTER_LINEAR)
    found = align(canvas, TEMPLATE @ matrix[:, :2].T + matrix[:, 2])
    assert np.abs(found.astype(int) - picture)[4:-4, 4:-4].max() <= 3
    assert align(canvas, TEMPLATE - 500).max() == 0
    assert align(canvas, TEMPLATE, size=56).shape == (56, 56, 3)


def test_example_of_a_photograph_aligns_and_embeds_it(faces: Path, tmp_path: Path) -> None:
    save_small_model(tmp_path / "model", embedding_size=16, image_size=112)
    dataset = open_dataset(faces / "lfw_pairs")
    (sample,) = read_samples(dataset.shard_paths(), dataset.index.select(np.array([3])))
    face = cv2.imdecode(np.frombuffer(sample.jpeg, np.uint8), cv2.IMREAD_COLOR)
    photographs = []
    for scale, place in ((1.0, (60, 90)), (3.0, (10, 35))):
        canvas = np.full((480, 520, 3), 128, np.uint8)
        large = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        canvas[place[0] : place[0] + len(large), place[1] : place[1] + len(large)] = large
        photographs.append(str(tmp_path / f"{len(photographs)}.png"))
        cv2.imwrite(photographs[-1], canvas)
    detector = next((faces / "weights").glob("*.onnx"))
    command = [sys.executable, "examples/align_and_embed.py", str(tmp_path / "model"), str(detector), *photographs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "16 numbers" in done.stdout
    assert float(done.stdout.split("cosine ")[1]) > 0.95  # the same face at another size and place
    cv2.imwrite(photographs[1], np.full((480, 520, 3), 128, np.uint8))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{photographs[1]}: no face was found")  # and no warning of OpenCV before it
    assert done.stderr.count("\n") == 1
