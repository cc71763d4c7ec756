"""The road synth, check, export, evaluate, compare with every path on an object store: no local folder called `s3:`."""

from rayface.config import load
from rayface.data.check import check
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.evaluation.compare import compare
from rayface.evaluation.evaluate import evaluate
from rayface.stages import STAGES
from tests.small_model import save_small_model


def test_synth_check_export_evaluate_and_compare_on_an_object_store_write_no_local_file(
    tmp_path, object_store, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    data = object_store.uri("set")
    synthesize(data, identities=40, images_per_identity=3, image_size=32, processes=1, pairs=40)
    shard = object_store.files()["set/shard-000000.tar"]
    assert open_dataset(data).num_images == 120
    copy = object_store.uri("bare")
    object_store.put("bare/a.tar", shard)
    assert check(copy, write_manifest=True).ok
    assert {"bare/dataset.json", "bare/index.parquet"} <= set(object_store.files())

    save_small_model(tmp_path / "model", embedding_size=16)
    model = object_store.uri("hub")
    exported = STAGES["export"].run(load(overrides={"export.model": str(tmp_path / "model"), "export.hub": model}))
    assert exported["hub"] == model
    outs = [object_store.uri("scores"), object_store.uri("again")]
    for out in outs:
        given = {"model": model, "pairs": object_store.uri("set/pairs.csv"), "data": data, "out": out}
        result = evaluate(load(overrides={f"evaluate.{key}": value for key, value in given.items()}))
        assert result.as_dict()["num_pairs"] == 40
    compare(outs, replicates=20).write(object_store.uri("compared"))
    files = object_store.files()
    assert files["compared/comparison.csv"].startswith(b"protocol,run,figure")
    assert files["scores/plots/roc.png"].startswith(b"\x89PNG")
    assert b'"num_pairs": 40' in files["scores/evaluation.json"]
    assert list(here.iterdir()) == []
