"""Verification pairs are scored; degenerate sets say so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rayface.config import EvaluateConfig
from rayface.evaluation.pair_set import PairSet
from rayface.evaluation.pairs import BinProtocol, evaluate_pairs
from rayface.evaluation.verification import pair_scores
from tests.data.sources.bin_files import bin_file


def test_evaluate_pairs_of_a_set_gives_accuracy_and_rates_it_can_resolve():
    random = np.random.default_rng(0)
    num_pairs = 400
    people = random.normal(size=(num_pairs, 8))
    is_same = np.arange(num_pairs) % 2 == 0
    other = np.where(
        is_same[:, None], people + 0.3 * random.normal(size=people.shape), random.normal(size=people.shape)
    )
    embeddings = np.concatenate([people, other]).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    order = np.arange(num_pairs)
    pairs = PairSet(
        name="made up",
        images=np.zeros((0, 1, 1, 3), np.uint8),
        a=order,
        b=order + num_pairs,
        is_same=is_same,
        fold=order // 40,
    )
    result = evaluate_pairs(embeddings, pairs).figures()
    assert list(result)[:4] == ["accuracy_mean", "accuracy_std", "tar_at_far", "num_pairs"]
    assert result["num_pairs"] == 400
    assert 0.9 < result["accuracy_mean"] < 1
    assert list(result["tar_at_far"]) == ["1e-01", "1e-02"]  # 200 impostor pairs cannot resolve 1e-03
    assert 0 < result["tar_at_far"]["1e-02"] <= result["tar_at_far"]["1e-01"] <= 1
    score = pair_scores(embeddings, pairs.a, pairs.b)[1]
    for far, threshold in result["threshold_at_far"].items():
        assert np.mean(score[is_same] > threshold) == result["tar_at_far"][far]
        assert np.mean(score[~is_same] > threshold) <= float(far)
    right = [np.mean((score > t) == is_same) for t in [*score, -2]]
    assert np.mean((score > result["best_threshold"]) == is_same) == max(right)
    reasons = evaluate_pairs(embeddings, pairs).not_measured
    assert list(reasons) == [*(f"tar_at_far.1e-0{digit}" for digit in (3, 4, 5, 6)), "error_versus_discard"]
    assert reasons["tar_at_far.1e-03"] == "200 impostor pairs resolve no FAR below 5.0e-03"


def test_evaluate_pairs_with_replicates_gives_intervals_and_the_outcome_of_every_pair():
    random = np.random.default_rng(0)
    people = np.repeat(random.normal(size=(40, 8)), 5, axis=0)
    embeddings = (people + 0.5 * random.normal(size=people.shape)).astype(np.float32)
    a, b = random.integers(0, 200, (2, 600))
    b[::2] = a[::2] // 5 * 5 + (a[::2] + 1) % 5
    pairs = PairSet(
        name="made up",
        images=np.zeros((200, 1, 1, 3), np.uint8),
        members=tuple(f"{i}.jpg" for i in range(200)),
        a=a,
        b=b,
        is_same=a // 5 == b // 5,
        fold=np.arange(600) // 60,
    )
    norms = np.linspace(1, 2, 200).astype(np.float32)
    found = evaluate_pairs(embeddings, pairs, norms=norms, replicates=200)
    figures = found.figures()
    low, high = figures["accuracy_interval"]
    assert low < figures["accuracy_mean"] < high
    for name in ("tar_at_far", "threshold_at_far"):
        assert list(figures[f"{name}_interval"]) == list(figures[name]) == ["1e-01", "1e-02"]
        for far, value in figures[name].items():
            low, high = figures[f"{name}_interval"][far]
            assert low <= value <= high
    scores = found.pair_scores
    assert np.mean([scores.is_right[pairs.fold == k].mean() for k in range(10)]) == figures["accuracy_mean"]
    assert (scores.path_a[3], scores.path_b[3]) == (f"{a[3]}.jpg", f"{b[3]}.jpg")
    assert ((scores.identity_a == scores.identity_b) == pairs.is_same).all()
    assert figures["num_identities"] == len(np.unique([scores.identity_a, scores.identity_b]))
    assert (scores.quality == np.minimum(norms[a], norms[b])).all()
    assert found.curves()["error_versus_discard"]["error"][0] == pytest.approx(1 - scores.is_right.mean())
    without = evaluate_pairs(embeddings, pairs, replicates=0).figures()
    assert without == {name: value for name, value in figures.items() if name in without}
    assert "accuracy_interval" not in without


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_same": np.ones(4, bool)}, "all 4 pairs are genuine"),
        ({"is_same": np.zeros(4, bool)}, "all 4 pairs are impostor"),
        ({"fold": np.zeros(4, int)}, "the 4 pairs are in 1 fold"),
        ({"b": np.arange(4)}, "all 4 pairs have the score 1.000000"),
        ({"embeddings": np.diag([1, np.nan, 1, 1])}, "1 of 4 embeddings are NaN"),
        ({"embeddings": np.diag([1, 1, 0, 1])}, "1 of 4 images have no embedding"),
    ],
)
def test_evaluate_pairs_of_a_degenerate_set_says_so_instead_of_a_figure(change, reason):
    given = {"a": np.arange(4), "b": np.array([0, 1, 0, 1]), "is_same": np.arange(4) < 2, "fold": np.arange(4) % 2}
    embeddings = np.asarray(change.get("embeddings", np.eye(4)), np.float32)
    given |= {key: value for key, value in change.items() if key != "embeddings"}
    images = np.zeros((4, 1, 1, 3), np.uint8)
    result = evaluate_pairs(embeddings, PairSet(name="made up", images=images, **given))
    figures = result.figures()
    assert (figures["accuracy_mean"], figures["tar_at_far"], figures["num_pairs"]) == (None, {}, 4)
    assert result.not_measured["accuracy_mean"].startswith(reason)
    assert np.isnan(result.main_figure)
    assert result.curves() == {}


def test_bin_protocol_of_several_files_is_scored_by_file(tmp_path: Path) -> None:
    jpegs = [simplejpeg.encode_jpeg(np.full((32, 32, 3), 10 * i, np.uint8)) for i in range(4)]
    for name in ("lfw", "cfp_fp"):
        (tmp_path / f"{name}.bin").write_bytes(bin_file(jpegs, [True, False]))
    paths = [str(tmp_path / f"{name}.bin") for name in ("lfw", "cfp_fp")]
    settings = BinProtocol.settings_of(EvaluateConfig(bin=paths))
    opened = BinProtocol.open_each("bin", settings, image_size=32)
    assert list(opened) == ["lfw", "cfp_fp"]
    assert [protocol.num_images for protocol in opened.values()] == [4, 4]
    assert opened["lfw"].digest == opened["cfp_fp"].digest != ""  # equal images are embedded once
    with pytest.raises(ValueError, match=r"^evaluate.bin: .*another file has the name lfw"):
        BinProtocol.open_each("bin", replace(settings, bin=(paths[0], paths[0])), image_size=32)
