"""Leak certificates of an evaluation, and the figures without leaked images."""

import json

import numpy as np
import pytest

from rayface.config import EvaluateConfig, load
from rayface.data.dataset import open_dataset
from rayface.data.selection import select, write_selection
from rayface.data.shards.random_access import read_samples
from rayface.data.synth import synthesize
from rayface.embedding.part_file import write_part
from rayface.evaluation.evaluate import evaluate
from rayface.evaluation.leak_check import LeakCheck
from rayface.evaluation.pairs import PairsProtocol, PairsSettings
from rayface.models.embedded import Embedded
from rayface.models.model_info import ModelInfo
from tests.data.sources.bin_files import bin_file
from tests.small_model import save_small_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small model, a drawn test set with pairs, and as training set 3 of its 40 identities."""
    folder = tmp_path_factory.mktemp("inputs")
    synthesize(folder / "set", identities=40, images_per_identity=3, image_size=32, processes=1, pairs=80)
    test = open_dataset(folder / "set")
    (folder / "training").mkdir()
    write_selection(str(folder / "training"), select(test, np.flatnonzero(test.index.label < 3)), name="leaked")
    save_small_model(folder / "model")
    return folder


def keys_of(inputs, **changes):
    keys = {"pairs": str(inputs / "set" / "pairs.csv"), "data": str(inputs / "set"), **changes}
    return {f"evaluate.{key}": value for key, value in keys.items()}


def opened(inputs):
    settings = PairsSettings(pairs=str(inputs / "set" / "pairs.csv"), data=(str(inputs / "set"),), replicates=0)
    return PairsProtocol.open(settings, image_size=32)


def certify(settings, protocol, embedded):
    check = LeakCheck(settings, {"pairs": protocol}, embedding_size=embedded.embeddings.shape[1])
    return check("pairs", protocol, embedded)


def test_evaluate_with_a_leak_check_certifies_and_measures_without_the_leaked_images(inputs, tmp_path):
    out = {"model": str(inputs / "model"), "out": str(tmp_path / "out"), "leak_check": str(inputs / "training")}
    result = evaluate(load(overrides=keys_of(inputs, **out))).as_dict()
    found = result["leaks"]["pairs"]
    protocol = opened(inputs)
    leaked = protocol.source.dataset.index.label[protocol.source.rows] < 3
    images = {"images": int(leaked.sum()), "identities": 3}
    assert found["counts"] == {"by_name": images, "by_bytes": images, "by_embedding": None, "any": images}
    assert found["num_images"] == len(leaked)
    kept = ~(leaked[protocol.pairs.a] | leaked[protocol.pairs.b])
    assert found["without"]["num_pairs"] == kept.sum() < result["num_pairs"] == 80
    assert found["without"]["accuracy_mean"] != result["accuracy_mean"]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["leaks"] == json.loads(
        json.dumps(result["leaks"])
    )


def test_leak_check_by_embedding_lists_the_most_similar_images(inputs, tmp_path):
    protocol = opened(inputs)
    n = protocol.num_images
    vectors = np.eye(n, 130, dtype=np.float32)
    part = (["copy", "other"], np.zeros(2, np.int64), np.stack([vectors[5], np.eye(1, 130, 129)[0]]))
    write_part(str(tmp_path / "emb.parquet"), [part], size=130, dtype="fp32", note={})
    settings = EvaluateConfig(leak_check=str(inputs / "training"), leak_embeddings=str(tmp_path / "emb.parquet"))
    found = certify(settings, protocol, Embedded(vectors, np.ones(n, np.float32)))
    assert found.counts["by_embedding"] == {"images": 1, "identities": 1}
    key = protocol.pairs.members[5].removesuffix(".jpg")
    assert found.examples == ({"test": key, "training": "copy", "cosine": 1.0},)


def test_leak_check_without_leaks_has_no_second_result(inputs, tmp_path):
    synthesize(tmp_path / "clean", identities=4, images_per_identity=2, image_size=32, processes=1, seed=9)
    (tmp_path / "clean" / "identities.parquet").unlink()
    protocol = opened(inputs)
    vectors = np.eye(protocol.num_images, 130, dtype=np.float32)
    settings = EvaluateConfig(leak_check=str(tmp_path / "clean"))
    found = certify(settings, protocol, Embedded(vectors, np.ones(len(vectors), np.float32)))
    assert (found.without, found.counts["any"]) == (None, {"images": 0, "identities": 0})


def test_leak_check_with_contradicting_inputs_is_refused_in_one_line(inputs, tmp_path):
    with pytest.raises(ValueError, match=r"^evaluate.leak_embeddings: requires evaluate.leak_check"):
        LeakCheck(EvaluateConfig(leak_embeddings="emb"), {}, embedding_size=8)
    with pytest.raises(ValueError, match=r"^evaluate.leak_above: 0.8: has no effect: must be with evaluate.leak_embed"):
        LeakCheck(EvaluateConfig(leak_check="set", leak_above=0.8), {}, embedding_size=8)
    write_part(
        str(tmp_path / "0.parquet"), [(["k"], np.zeros(1, np.int64), np.ones((1, 8)))], size=8, dtype="fp32", note={}
    )
    manifest = {"model_sha256": "abc", "parts": [{"path": "0.parquet", "num_rows": 1}]}
    (tmp_path / "embeddings.json").write_text(json.dumps(manifest))
    settings = EvaluateConfig(leak_check=str(inputs / "training"), leak_embeddings=str(tmp_path))
    with pytest.raises(ValueError, match=r"were embedded by the model abc, this one is def: embed the training set"):
        LeakCheck(settings, {}, weights="def", embedding_size=8)
    with pytest.raises(ValueError, match=r"leak_embeddings: have 8 dimensions, the model has 9: must be of the same"):
        LeakCheck(settings, {}, weights="abc", embedding_size=9)
    assert LeakCheck(settings, {}, weights="abc", embedding_size=8) is not None


@pytest.mark.parametrize("key", ["leak_check", "embeddings"])
def test_evaluate_of_images_of_no_dataset_where_one_is_needed_is_refused_before_any_work(
    inputs, tmp_path, monkeypatch, key
):
    dataset = open_dataset(inputs / "set")
    jpegs = [sample.jpeg for sample in read_samples(dataset.shard_paths(), dataset.index.select(slice(0, 4)))]
    (tmp_path / "own.bin").write_bytes(bin_file(jpegs, [True, False]))
    monkeypatch.setattr(PairsProtocol, "score", lambda *given: pytest.fail("a score"))
    keys = {"bin": str(tmp_path / "own.bin"), "out": str(tmp_path / "out")}
    if key == "leak_check":
        keys |= {"model": str(inputs / "model"), "leak_check": str(inputs / "training")}
    else:
        part = (["k"], np.zeros(1, np.int64), np.ones((1, 8), np.float32))
        write_part(str(tmp_path / "emb.parquet"), [part], size=8, dtype="fp32", note={})
        keys |= {"embeddings": str(tmp_path / "emb.parquet")}
    with pytest.raises(ValueError, match=rf"^evaluate.{key}: protocol own: has images of no dataset: "):
        evaluate(load(overrides=keys_of(inputs, **keys)))
    assert not (tmp_path / "out").exists()


def test_evaluate_with_write_card_writes_the_thresholds_into_the_model(inputs, tmp_path):
    save_small_model(tmp_path / "model")
    keys = keys_of(inputs, model=str(tmp_path / "model"), out=str(tmp_path / "out"), write_card=True)
    result = evaluate(load(overrides=keys)).as_dict()
    info = ModelInfo.read(tmp_path / "model" / "model.json")
    assert info.metrics["accuracy_mean"] == result["accuracy_mean"]
    assert [(row.far, row.threshold) for row in info.thresholds] == list(result["threshold_at_far"].items())
    assert all(row.threshold_interval is not None for row in info.thresholds)
    assert "## Thresholds" in (tmp_path / "model" / "model_card.md").read_text()
    keys = keys_of(inputs, model=str(tmp_path / "nowhere.onnx"), out=str(tmp_path / "other"), write_card=True)
    with pytest.raises(ValueError, match=r"nowhere.onnx"):
        evaluate(load(overrides=keys))
