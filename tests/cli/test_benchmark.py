"""The verb benchmark make."""

import json

from rayface.data.synth import synthesize


def test_benchmark_make_writes_a_benchmark_and_prints_its_counts(call, tmp_path):
    synthesize(tmp_path / "set", identities=12, images_per_identity=3, image_size=16, processes=1)
    options = ("--identities=8", "--folds=2", "--pairs=20", "--seed=1")
    code, out, _ = call("benchmark", "make", tmp_path / "set", tmp_path / "out", *options, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["settings"]["seed"] == 1
    assert found["pairs"] == {"genuine": 10, "impostor": 10, "hard_impostor": 0}
    code, out, err = call("benchmark", "make", tmp_path / "set", tmp_path / "out", *options)
    assert (code, out) == (2, "")
    assert "is not empty" in err
    code, out, err = call("benchmark", "make", tmp_path / "set", tmp_path / "second", *options)
    assert code == 0
    assert "raise --identities" not in err
    assert "gallery_1 4, gallery_2 4, probes 8" in " ".join(out.split())


def test_benchmark_make_of_identities_with_too_few_pairs_says_so(call, tmp_path):
    synthesize(tmp_path / "set", identities=6, images_per_identity=2, image_size=16, processes=1)
    options = ("--identities=4", "--folds=2", "--pairs=20")
    code, _, err = call("benchmark", "make", tmp_path / "set", tmp_path / "out", *options)
    assert code == 0
    assert "8 of 20 pairs: these identities have 4 genuine pairs within the folds: raise --identities" in err
