"""The road synth, check, export, evaluate, compare with every path on an object store: no local folder called `s3:`."""

import re
from dataclasses import replace

import numpy as np
import pytest

from rayface.config import load, with_overrides
from rayface.curate.cluster.cluster import cluster
from rayface.curate.prune.core_set import prune
from rayface.data.check import check
from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.embedding.part_file import write_part
from rayface.evaluation.compare import compare
from rayface.evaluation.evaluate import evaluate
from rayface.experiment.runner import run
from rayface.stages import STAGES
from rayface.storage import DataError, lease, upload
from rayface.training.recovery.interrupt import TrainingInterruptedError
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


EXPERIMENT = """
stages:
  - name: drawn
    synth: {identities: 40, images_per_identity: 3, image_size: 32, pairs: 40}
  - name: scores
    evaluate: {model: MODEL, pairs: "${drawn}/pairs.csv", data: "${drawn}"}
"""


@pytest.mark.long
def test_experiment_in_a_store_that_was_cut_off_resumes_from_an_empty_disk(tmp_path, object_store, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 2.0)  # of a machine under load
    save_small_model(tmp_path / "model", embedding_size=16)
    file, out = tmp_path / "try.yaml", object_store.uri("experiments/try")
    file.write_text(EXPERIMENT.replace("MODEL", str(tmp_path / "model")))

    def cut_off(config, resume):
        with pytest.raises(DataError, match=r"^output: s3://\S+: process \d+ on \S+ owns it") as refused:
            run(file, out=out)  # a second driver
        assert "\n" not in str(refused.value)
        assert object_store.secret not in str(refused.value)
        raise KeyboardInterrupt

    def on_the_empty_disk_of(machine):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / machine))
        monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / machine / "cache"))

    on_the_empty_disk_of("one")
    with monkeypatch.context() as patched:
        patched.setitem(STAGES, "evaluate", replace(STAGES["evaluate"], function=cut_off))
        with pytest.raises(TrainingInterruptedError, match="stage scores: interrupted; resume with: rayface run"):
            run(file, out=out)
    on_the_empty_disk_of("two")
    done = run(file, out=out)
    assert [(stage.name, stage.skipped) for stage in done.stages] == [("drawn", True), ("scores", False)]
    assert done.stages[1].result["num_pairs"] == 40
    assert all(stage.skipped for stage in run(file, out=out).stages)
    files = object_store.files()
    assert {f"experiments/try/{name}" for name in ("experiment.json", "drawn/dataset.json", "scores/report.html")} <= {
        *files
    }
    assert not any(object_store.secret.encode() in content for content in files.values())
    object_store.put("experiments/try/drawn/shard-000000.tar", b"cut")
    with pytest.raises(ValueError, match=r"^stage scores: is finished, and its input stage drawn has changed"):
        run(file, out=out)
    assert list((tmp_path / "here").iterdir()) == []


def embedded(folder: str, data: str) -> None:
    """Write random embeddings of a dataset, by its keys and labels."""
    dataset = open_dataset(data)
    vectors = np.random.default_rng(0).standard_normal((dataset.num_images, 8)).astype(np.float32)
    keys = [key for batch in dataset.key_batches() for key in batch.to_pylist()]
    rows = [(keys, dataset.index.label, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))]
    write_part(f"{folder}/0.parquet", rows, size=8, dtype="fp32", note={})


@pytest.mark.long
@pytest.mark.usefixtures("local_ray")
def test_prune_and_cluster_into_an_object_store_write_what_they_write_on_a_disk(
    tmp_path, object_store, monkeypatch, drawn
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    (tmp_path / "emb").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    embedded(str(tmp_path / "emb"), str(drawn))
    given = {"embeddings": str(tmp_path / "emb"), "data": str(drawn), "write_shards": True, "block_size": 4096}
    quiet = load(overrides={"tracking.enabled": False})

    def made(job, group, out, **more):
        keys = {**given, **more, "out": out}
        return job(with_overrides(quiet, {f"{group}.{key}": value for key, value in keys.items()}))

    for job, group, more in ((prune, "prune", {"keep": 0.6}), (cluster, "clustering", {"threshold": 0.5})):
        local = tmp_path / f"{group}_out"
        made(job, group, str(local), **more)
        uploads = []

        def killed(source, target, uploads=uploads):
            if uploads:
                raise KeyboardInterrupt
            uploads.append(target)
            upload(source, target)

        uri = object_store.uri(f"{group}_out")
        with monkeypatch.context() as patched:
            patched.setattr("rayface.curate.job_output.upload", killed)
            with pytest.raises(KeyboardInterrupt):
                made(job, group, uri, **more)
        assert not {f"{group}_out/{name}" for name in ("prune.json", "cluster.json")} & set(object_store.files())
        result = made(job, group, uri, **more)
        written = {path.relative_to(tmp_path).as_posix() for path in local.rglob("*") if path.is_file()}
        files = {name: content for name, content in object_store.files().items() if name.startswith(f"{group}_out")}
        journal = re.compile(r".*/(journal/.*|\.lock)")
        assert set(files) - {name for name in files if journal.fullmatch(name)} == {
            name for name in written if not journal.fullmatch(name)
        }
        table = "core_set.parquet" if group == "prune" else "labels.parquet"
        assert files[f"{group}_out/{table}"] == (local / table).read_bytes()
        assert len(result.to_pandas()) == open_dataset(str(drawn)).num_images
        assert open_dataset(uri).num_images == open_dataset(str(local)).num_images
        assert made(job, group, uri, **more).as_dict() == {
            key: value for key, value in result.as_dict().items() if not key.startswith("tracking")
        }
    assert list((tmp_path / "here").iterdir()) == []
    assert not [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
