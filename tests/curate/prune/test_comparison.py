"""What a core set and baselines keep, against pairs written out."""

from collections.abc import Callable

import numpy as np

from rayface.curate.cosines import unit_rows
from rayface.curate.partitions import read_partition
from rayface.curate.prune.comparison import compare
from rayface.curate.prune.methods.face_nms import FaceNMS
from rayface.curate.prune.methods.random import Random
from rayface.curate.prune.selection import Selector


def test_compare_of_two_methods_measures_pairs_and_shared_images(make_selector: Callable[..., Selector]) -> None:
    sizes = [1, 2, 7, 12, 30]
    selector = make_selector(sizes, 10)
    method, baseline = FaceNMS(threshold=0.6), Random(keep=0.5)
    kept = selector.decide(method)
    found = compare(selector, method, {"random": baseline})
    selector.decide(baseline)
    ours, theirs = (
        np.concatenate([table["kept"].to_numpy() for table in selector.decisions(each)]) for each in (method, baseline)
    )
    vectors = np.concatenate([read_partition(each)[0].embeddings for each in selector.stats.partitions.partitions])
    units, labels = unit_rows(vectors, np.arange(len(vectors))), np.repeat(np.arange(len(sizes)), sizes)

    def mean_cosine(mask: np.ndarray) -> float:
        pairs = (labels[:, None] == labels) & mask[:, None] & mask & ~np.eye(len(labels), dtype=bool)
        several = pairs.any(axis=1)
        return float(((units @ units.T * pairs).sum(axis=1)[several] / pairs.sum(axis=1)[several]).mean())

    assert (found.everything.faces, found.core_set.faces, found.baselines["random"].faces) == (52, kept, theirs.sum())
    assert np.isclose(found.everything.mean_cosine, mean_cosine(np.ones(52, bool)))
    assert np.isclose(found.core_set.mean_cosine, mean_cosine(ours))
    assert np.isclose(found.baselines["random"].mean_cosine, mean_cosine(theirs))
    assert found.core_set.shared == 1
    assert found.baselines["random"].shared == np.count_nonzero(ours & theirs) / theirs.sum()
