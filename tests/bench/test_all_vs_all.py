"""The measurement of all-vs-all says what it measured."""

import numpy as np
import pytest

from rayface.bench.all_vs_all import AllVsAllBench, bench_all_vs_all, drawn_embeddings
from rayface.evaluation.all_vs_all import all_vs_all


def test_bench_all_vs_all_measures_the_rates_of_drawn_embeddings() -> None:
    settings = AllVsAllBench(images=200, embedding_size=8, fars=(1e-3, 0.1))
    found = bench_all_vs_all(settings).as_dict()
    embeddings, labels = drawn_embeddings(settings)
    assert np.bincount(labels).tolist() == [20] * 10
    assert found["tar"] == all_vs_all(embeddings, labels, [1e-3, 0.1])["all"]
    assert found["passes"] == 1
    assert found["pairs_per_second"] * found["seconds"] == pytest.approx(200 * 199 / 2)


def test_bench_all_vs_all_of_too_few_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^images: 39: must be at least 40"):
        bench_all_vs_all(AllVsAllBench(images=39))
