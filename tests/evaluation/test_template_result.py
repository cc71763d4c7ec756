"""Intervals of template protocols, against identification of repeated probes."""

import numpy as np
import pytest

from rayface.evaluation.identification import FPIRS, RANKS, identify, search
from rayface.evaluation.intervals import IdentityBootstrap
from rayface.evaluation.template_result import _bootstrap, _tpir_replicates, score_templates
from rayface.evaluation.template_set import TemplateSet


@pytest.fixture(scope="module")
def made():
    """40 identities with a gallery template and two probes each, in two galleries."""
    random = np.random.default_rng(0)
    people = random.normal(size=(40, 8))
    identity = np.repeat(np.arange(40), 3)
    features = people[identity] + 0.7 * random.normal(size=(120, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids, names = np.arange(120), np.array([f"p{i}" for i in identity])
    entries, probes = ids[::3], ids[ids % 3 > 0]
    a, b = (each.ravel() for each in np.meshgrid(entries, probes))
    lists = TemplateSet(
        names=(),
        template=ids,
        media=ids,
        pairs=np.column_stack([a, b]),
        is_same=identity[a] == identity[b],
        galleries={"one": (entries[::2], names[entries[::2]]), "two": (entries[1::2], names[entries[1::2]])},
        probes=(probes, names[probes]),
    )
    return features, ids, lists


def test_replicates_of_identification_equal_that_of_repeated_probes(made):
    features, _, lists = made
    probes, names = lists.probes
    entries, entry_names = lists.galleries["one"]
    bootstrap = IdentityBootstrap(names, replicates=20)
    found = search(features[probes], names, features[entries], entry_names)
    tpirs = _tpir_replicates(found, bootstrap)
    ranks = bootstrap.ratios((found.rank[:, None] <= RANKS) & found.is_mated[:, None], found.is_mated)
    for weights, tpir, rank in zip(np.concatenate(list(bootstrap.weights())), tpirs, ranks, strict=True):
        repeated = np.repeat(np.arange(len(probes)), weights.astype(int))
        wanted = identify(features[probes][repeated], names[repeated], features[entries], entry_names, RANKS, FPIRS)
        np.testing.assert_allclose(rank, wanted[0])
        np.testing.assert_allclose(tpir, wanted[1])


def test_score_templates_with_replicates_gives_an_interval_for_every_figure(made):
    features, ids, lists = made
    result = score_templates(features, ids, lists, replicates=200)
    figures = result.figures()
    assert figures["num_identities"] == 40
    for name in ("tar_at_far", "threshold_at_far"):
        measured = {far: value for far, value in figures[name].items() if value is not None}
        assert list(figures[f"{name}_interval"]) == list(measured)
        for far, value in measured.items():
            low, high = figures[f"{name}_interval"][far]
            assert low <= value <= high
    for found in (figures["identification"], figures["identification"]["one"]):
        for name in ("rank", "tpir_at_fpir"):
            for key, value in found[name].items():
                low, high = found[f"{name}_interval"][key]
                if key == "0.01":  # of 40 probes without a mate
                    assert value is low is high is None
                else:
                    assert low <= value <= high
                    assert low < high
    for gallery in ("one", "two"):
        reason = result.not_measured[f"identification.{gallery}.tpir_at_fpir.0.01"]
        assert reason == "40 probes without a mate resolve no FPIR below 2.5e-02"
    without = score_templates(features, ids, lists, replicates=0).figures()
    assert without["tar_at_far"] == figures["tar_at_far"]
    assert "tar_at_far_interval" not in without
    assert "rank_interval" not in without["identification"]


def test_score_templates_without_features_of_some_counts_what_is_left_out_of_each_list(made):
    features, ids, lists = made
    kept = ~np.isin(ids, [0, 4])  # of gallery one, and a probe
    found = score_templates(features[kept], ids[kept], lists, replicates=0)
    assert found.num_pairs == 3200 - 80 - 40 + 1
    assert {name: text for name, text in found.not_measured.items() if "left out" in text} == {
        "pairs": "119 of 3,200 pairs are left out: template 0 has no image that can be used",
        "probes": "1 of 80 probes are left out: template 4 has no image that can be used",
        "one": "1 of 20 entries of one are left out: template 0 has no image that can be used",
    }
    assert not any("left out" in text for text in score_templates(features, ids, lists, replicates=0).not_measured)


def test_rank_interval_without_errors_counts_identities_with_a_mate_only():
    """Of five probes, two have a mate in the gallery: rank rate 1 rests on two trials, not on five."""
    lists = TemplateSet(
        names=(),
        template=np.arange(7),
        media=np.zeros(7, np.int64),
        pairs=np.empty((0, 2), np.int64),
        is_same=np.empty(0, bool),
        galleries={"one": (np.array([0, 1]), np.array(["a", "b"]))},
        probes=(np.arange(2, 7), np.array(["a", "b", "c", "d", "e"])),
    )
    features = np.eye(5)[[0, 1, 0, 1, 2, 3, 4]]
    found = score_templates(features, np.arange(7), lists, replicates=50).figures()["identification"]
    for rates in (found, found["one"]):
        assert rates["rank"]["1"] == 1.0
        assert rates["rank_interval"]["1"] == pytest.approx([0.025**0.5, 1.0])


def test_identities_of_templates_come_from_galleries_and_probes(made):
    _, ids, lists = made
    kept = ids % 40 > 0  # three templates were left out
    places = {template: place for place, template in enumerate(ids[kept].tolist())}
    rows = [k for k, pair in enumerate(lists.pairs.tolist()) if set(pair) <= places.keys()]
    a, b = np.array([[places[t] for t in lists.pairs[k].tolist()] for k in rows]).T
    bootstrap = _bootstrap(lists, ids[kept], a, b, lists.is_same[rows], 50)
    assert bootstrap.num_identities == 40
    # A genuine pair weighs as often as its identity was drawn, so its weights are equal to that of the other probe.
    weights = np.concatenate(list(bootstrap.weights()))
    same = np.flatnonzero(lists.is_same[rows])
    by_entry = [same[a[same] == entry] for entry in np.unique(a[same])]
    assert all((weights[:, pairs] == weights[:, pairs[:1]]).all() for pairs in by_entry)
