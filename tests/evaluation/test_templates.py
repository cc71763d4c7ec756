"""Features of templates, against a loop."""

import numpy as np
import pytest

from rayface.evaluation.templates import template_features


def slow_features(embeddings, templates, medias, weights, keep_norm):
    features = []
    for template in sorted(set(templates)):
        total = np.zeros(embeddings.shape[1])
        for media in {m for t, m in zip(templates, medias, strict=True) if t == template}:
            own = [
                weight * (row if keep_norm else row / np.sqrt((row**2).sum()))
                for row, t, m, weight in zip(embeddings, templates, medias, weights, strict=True)
                if (t, m) == (template, media)
            ]
            total += sum(own) / len(own)
        features.append(total / np.sqrt((total**2).sum()))
    return np.array(features)


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_template_features_of_images_in_any_order_equal_a_loop(keep_norm, weighted):
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(60, 5)) * random.uniform(0.5, 3, (60, 1))
    templates, medias = random.integers(100, 112, 60), random.integers(0, 4, 60)  # media ids recur across templates
    weights = random.uniform(0.1, 1, 60) if weighted else None
    features, ids = template_features(embeddings, templates, medias, face_scores=weights, keep_norm=keep_norm)
    wanted = slow_features(embeddings, templates, medias, np.ones(60) if weights is None else weights, keep_norm)
    np.testing.assert_allclose(features, wanted, rtol=0, atol=1e-13)
    assert ids.tolist() == sorted(set(templates.tolist()))


def test_template_features_of_templates_with_one_medium_id_are_apart():
    embeddings = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    features, ids = template_features(embeddings, [1, 1, 2, 2], [7] * 4)
    np.testing.assert_allclose(features, slow_features(embeddings, [1, 1, 2, 2], [7] * 4, np.ones(4), False))
    assert ids.tolist() == [1, 2]


def test_template_features_of_a_long_video_weigh_it_as_one_photograph():
    photo, frame = [1.0, 0.0], [0.0, 1.0]
    features, _ = template_features([photo, *[frame] * 9], [7] * 10, [1, *[2] * 9])
    np.testing.assert_allclose(features, [[0.5**0.5, 0.5**0.5]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"medias": [1]}, r"must be \(N, D\), \(N,\) and \(N,\)"),
        ({"face_scores": [1.0, np.nan]}, "finite weight"),
        ({"embeddings": [[0.0, 0.0], [1.0, 0.0]]}, "embedding 0 has length 0"),
        ({"embeddings": [[1.0, 0.0], [-1.0, 0.0]]}, "^template 3: its images cancel out, .* leave it out; 1 of 1 do$"),
        ({"embeddings": np.empty((0, 2)), "templates": [], "medias": []}, "at least 1"),
    ],
)
def test_template_features_of_wrong_input_names_it(change, words):
    given = {"embeddings": [[1.0, 0.0], [0.0, 1.0]], "templates": [3, 3], "medias": [1, 2]} | change
    with pytest.raises(ValueError, match=words):
        template_features(**given)
