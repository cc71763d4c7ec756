"""Comparison of models on the same pairs."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from rayface.evaluation.compare import accuracy_differences, compare, mcnemar
from rayface.evaluation.pair_scores import write_pair_scores
from rayface.storage import DataError
from tests.evaluation.test_pair_scores import some_scores


@pytest.fixture
def written(tmp_path):
    """Write pair scores into a folder; return its path."""

    def write(name, scores):
        (tmp_path / name).mkdir()
        write_pair_scores(str(tmp_path / name), {"pairs": scores})
        return str(tmp_path / name)

    return write


def row_of(found, run, figure="accuracy_mean"):
    return next(row for row in found.as_dict()["comparison"] if (row["run"], row["figure"]) == (run, figure))


def test_compare_of_a_run_with_itself_is_refused(written, tmp_path, monkeypatch):
    first = written("first", some_scores())
    (tmp_path / "link").symlink_to(first)
    monkeypatch.chdir(tmp_path)
    for same in (first, "first", "./first/", tmp_path / "link"):
        with pytest.raises(DataError, match=r"^RUN: /.*: is given twice.*: leave one of them out$"):
            compare([first, same])


def test_compare_of_paths_equals_that_of_their_texts(written, tmp_path):
    first, other = written("first", some_scores()), written("other", some_scores(seed=1))
    found = compare([Path(first), Path(other)], replicates=10)
    assert found.as_dict() == compare([first, other], replicates=10).as_dict()
    found.write(tmp_path / "out")
    assert (tmp_path / "out" / "comparison.csv").is_file()


def test_compare_of_a_better_model_finds_the_difference(written):
    first, better = written("first", some_scores(2000, 0.8)), written("better", some_scores(2000, 0.4, seed=1))
    row = row_of(compare([first, better], replicates=300), better)
    assert row["difference"] == pytest.approx(row["value"] - row_of(compare([first, better]), first)["value"])
    assert 0 < row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["p_value"] < 0.01
    assert row["mcnemar_p"] < 1e-6
    assert row["gained"] > row["lost"] > 0
    tar = row_of(compare([first, better], replicates=300), better, "tar_at_far 1e-02")
    assert tar["difference_low"] > 0
    assert tar["gained"] is None


def test_compare_of_genuine_pairs_of_one_identity_has_no_interval_of_tar(written):
    """One person's pairs say nothing about others, however many other people the impostor pairs have."""
    scores = [some_scores(seed=seed) for seed in (0, 1)]
    person = np.where(scores[0].is_same, 0, scores[0].identity_a)
    other = np.where(scores[0].is_same, 0, scores[0].identity_b)
    paths = [
        written(name, replace(each, identity_a=person, identity_b=other))
        for name, each in zip(("first", "other"), scores, strict=True)
    ]
    found = compare(paths, replicates=100)
    tar, accuracy = row_of(found, paths[1], "tar_at_far 1e-01"), row_of(found, paths[1])
    names = ("low", "high", "difference_low", "difference_high", "p_value")
    assert [tar[name] for name in names] == [None] * 5
    assert tar["difference"] == tar["value"] - row_of(found, paths[0], "tar_at_far 1e-01")["value"]
    assert None not in [accuracy[name] for name in names]


def test_compare_of_equal_models_finds_no_difference(written):
    first, same = written("first", some_scores()), written("same", some_scores())
    found = compare([first, same], replicates=100)
    row = row_of(found, same)
    assert (row["difference"], row["p_value"], row["mcnemar_p"]) == (0, 1, 1)
    assert (row["difference_low"], row["difference_high"], row["gained"], row["lost"]) == (0, 0, 0, 0)
    assert len(found.flips) == 0


def test_accuracy_differences_equal_those_of_compare_and_leave_out_what_cannot_be_compared(written, tmp_path):
    first, other, fewer = written("a", some_scores()), written("b", some_scores(seed=1)), written("c", some_scores(100))
    found = accuracy_differences(first, {1: other, 2: fewer, 3: str(tmp_path / "nowhere")}, replicates=50)
    row = row_of(compare([first, other], replicates=50), other)
    assert list(found) == [1]
    assert (found[1].value, *found[1].interval) == (row["difference"], row["difference_low"], row["difference_high"])
    assert accuracy_differences(str(tmp_path / "nowhere"), {1: first}) == {}


def test_compare_of_two_seeds_of_one_model_rarely_claims_a_difference(written):
    """15 pairs of equally good models: a claim at the 5 % level is false."""
    runs = [written(f"seed{k}", some_scores(400, seed=k)) for k in range(16)]
    p_values = [row_of(compare([a, b], replicates=100), b)["p_value"] for a, b in pairwise(runs)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.1


def test_compare_lists_the_pairs_that_flipped(written, tmp_path):
    scores = some_scores()
    accepted, paths = scores.accepted.copy(), list(scores.path_a)
    accepted[[3, 8]] = ~accepted[[3, 8]]
    paths[3] = "=1+1"  # a formula of a spreadsheet
    scores = replace(scores, path_a=paths)
    found = compare([written("first", scores), written("other", replace(scores, accepted=accepted))])
    flips = found.as_dict()["flips"]
    assert [flip["pair"] for flip in flips] == [3, 8]
    assert [flip["flip"] for flip in flips] == ["gained" if right else "lost" for right in ~scores.is_right[[3, 8]]]
    assert (flips[0]["path_a"], flips[0]["is_same"]) == (scores.path_a[3], False)
    found.write(str(tmp_path / "out"))
    text = (tmp_path / "out" / "flips.csv").read_text()
    assert (text.count("\n"), ",'=1+1," in text, ",=1+1" in text) == (3, True, False)
    assert (tmp_path / "out" / "comparison.csv").read_text().startswith("protocol,run,figure,value,low,high,difference")
    json.dumps(found.as_dict())


def test_compare_of_other_pairs_is_refused_and_names_the_difference(written, tmp_path):
    scores = some_scores()
    first = written("first", scores)
    fewer, other = written("fewer", some_scores(100)), written("other", replace(scores, path_b=scores.path_b[::-1]))
    with pytest.raises(ValueError, match=r"fewer: has 100 pairs, .*first has 200: must be measured on the same pairs"):
        compare([first, fewer])
    with pytest.raises(ValueError, match=r"other: path_b of pair 0 is .*: must be measured on the same pairs"):
        compare([first, other])
    (tmp_path / "lfw").mkdir()
    write_pair_scores(str(tmp_path / "lfw"), {"lfw": scores})
    with pytest.raises(ValueError, match=r"no protocol is common to the runs \(.*first by pairs; .*lfw by lfw\)"):
        compare([first, str(tmp_path / "lfw")])
    with pytest.raises(ValueError, match="at least two runs"):
        compare([first])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (20, 20), (50, 20)])
def test_mcnemar_equals_the_sum_of_binomial_terms_that_are_not_more_likely(gained, lost):
    n = gained + lost
    terms = [binom.pmf(k, n, 0.5) for k in range(n + 1)]
    assert mcnemar(gained, lost) == pytest.approx(sum(t for t in terms if t <= terms[gained] * (1 + 1e-9)))
