"""The verb compare."""

import json
import re

import pytest

from rayface.cli.compare import _rate
from rayface.evaluation.pair_scores import write_pair_scores
from tests.evaluation.test_pair_scores import some_scores


@pytest.fixture
def runs(tmp_path):
    for name, scores in (("a", some_scores()), ("b", some_scores(seed=1)), ("c", some_scores(100))):
        (tmp_path / name).mkdir()
        write_pair_scores(str(tmp_path / name), {"pairs": scores})
    return [str(tmp_path / name) for name in "abc"]


def test_compare_prints_a_table_and_the_flips(call, runs, tmp_path):
    code, out, err = call("compare", *runs[:2], "--replicates=50", f"--out={tmp_path / 'out'}")
    assert code == 0
    assert "200 pairs of 20 identities" in out
    assert f"{runs[1]}, compared with {runs[0]}" in out.replace("\n", "")
    assert len(re.findall(r"^accuracy +[\d.]+% \[[\d., ]+\]", out, re.M)) == 2
    assert all(len(line) <= 80 for line in out.splitlines() if line.startswith(("accuracy", "TAR")))
    assert re.search(r"^accuracy: \d+ pairs gained, \d+ lost, McNemar p [\d.e-]+$", out, re.M)
    assert "tar_at_far" not in out
    assert "pairs flipped, the first:" in err
    assert (tmp_path / "out" / "flips.csv").exists()


def test_compare_with_json_prints_one_line(call, runs):
    code, out, _ = call("compare", *runs[:2], "--replicates=50", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["protocols"] == {"pairs": {"pairs": 200, "identities": 20}}
    assert {row["run"] for row in found["comparison"]} == set(runs[:2])


def test_compare_of_other_pairs_exits_with_2_and_one_line(call, runs):
    code, out, err = call("compare", runs[0], runs[2])
    assert (code, out, err.count("\n")) == (2, "", 0)
    assert "must be measured on the same pairs" in err


def test_compare_prints_a_difference_of_a_rounding_error_without_a_minus():
    assert _rate(-1e-17, -0.01, 0.02, "+") == "+0.00% [-1.00, +2.00]"
    assert _rate(0.5, 0.25, 1.0) == "50.00% [25.00, 100.00]"
