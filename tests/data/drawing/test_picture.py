"""Drawn faces: the same for a seed, aligned, steady within a person."""

import hashlib

import numpy as np
import pytest

from rayface.data.drawing import Identity, View, draw_face, landmarks, sample_identity, sample_view


def recorded(parameters: Identity | View) -> str:
    """Return a digest of all numbers, rounded, and names."""
    values = [value for group in vars(parameters).values() for value in vars(group).values()]
    text = ";".join(v if isinstance(v, str) else ",".join(f"{x:.6f}" for x in np.ravel(v)) for v in values)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("size", [56, 112, 224])
def test_draw_face_at_any_size_has_that_size_and_contrast(size):
    image = draw_face(sample_identity(0, 0), sample_view(0, 0, 0), size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.std() > 15


def test_draw_face_of_equal_numbers_repeats_and_of_others_differs():
    def draw(seed, number, index):
        return draw_face(sample_identity(seed, number), sample_view(seed, number, index))

    first = draw(0, 3, 5)
    assert np.array_equal(first, draw(0, 3, 5))
    for other in ((1, 3, 5), (0, 4, 5), (0, 3, 6)):
        assert np.abs(first.astype(int) - draw(*other)).mean() > 5


def test_draw_face_has_its_eyes_where_an_aligned_crop_has_them():
    points = np.stack(
        [landmarks(sample_identity(0, i), sample_view(0, i, k)) for i in range(60) for k in range(4)]
    ).mean(0)
    assert np.abs(points[:2] - ((38.3, 51.7), (73.5, 51.5))).max() < 2.5
    assert np.abs(points[2:] - ((56.0, 71.7), (41.5, 92.4), (70.7, 92.2))).max() < 4.5


def test_landmarks_at_another_size_scale_with_it():
    identity, view = sample_identity(0, 1), sample_view(0, 1, 0)
    assert np.allclose(landmarks(identity, view, 224), 2 * landmarks(identity, view, 112))


def test_proportions_vary_less_within_a_person_than_between_people():
    def proportion(number, index):
        eye, other, _, left, right = landmarks(sample_identity(0, number), sample_view(0, number, index))
        eyes, mouth = (eye + other) / 2, (left + right) / 2
        return np.linalg.norm(other - eye) / np.linalg.norm(mouth - eyes)

    table = np.array([[proportion(i, k) for k in range(8)] for i in range(60)])
    assert table.mean(1).std() > 1.2 * table.std(1).mean()


def test_draw_face_leaves_at_most_a_third_of_images_burnt_out_or_black():
    images = np.stack([draw_face(sample_identity(5, i), sample_view(5, i, 0), 56) for i in range(60)])
    middle = images[:, 14:42, 14:42].mean((1, 2, 3))
    assert ((middle > 235) | (middle < 20)).mean() < 1 / 3


def test_parameters_of_a_seed_are_the_recorded_ones() -> None:
    """Every draw in its order: another order would draw other people for every seed."""
    identity, view = sample_identity(3, 7), sample_view(3, 7, 1)
    assert recorded(identity) == "afb8de97904740e8"
    assert recorded(view) == "d19817c998158e53"
