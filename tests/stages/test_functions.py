"""What stages do: which settings of a config reach the library, and what of its results is told."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayface.config import load
from rayface.data.shards.samples import Fault
from rayface.stages import functions, shown
from tests.data.scanned_tars import picture


def test_draw_of_settings_makes_a_dataset_and_returns_its_facts(tmp_path: Path) -> None:
    keys = {"out": tmp_path / "set", "identities": 3, "images_per_identity": 2, "image_size": 32, "seed": 5}
    config = load(overrides={f"synth.{key}": str(value) for key, value in keys.items()})
    found = functions.draw(config, False)
    assert found == {
        "dataset": str(tmp_path / "set"),
        "images": 6,
        "identities": 3,
        "label_space": 3,
        "shards": 1,
        "faults": 0,
    }


def test_draw_hands_over_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def synthesize(out: str, **settings: Any) -> SimpleNamespace:
        given.update(settings, out=out)
        return SimpleNamespace(num_images=6, num_classes_with_images=2, num_classes=3, shards=[1], faults=[])

    monkeypatch.setattr("rayface.data.synth.synthesize", synthesize)
    keys = {"out": "/s", "identities": 3, "images_per_identity": 2, "seed": 5, "pairs": 20, "image_size": 32}
    keys["shard_size"] = 9000
    found = functions.draw(load(overrides={f"synth.{key}": str(value) for key, value in keys.items()}), False)
    assert given == keys
    assert (found["identities"], found["label_space"]) == (2, 3)


def test_convert_source_warns_of_each_fault_and_counts_them_by_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in" / "ann").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "in" / "ann" / f"{number}.jpg").write_bytes(picture(number, "jpg") if number else b"text")
    keys = {"source": tmp_path / "in", "kind": "folder", "out": tmp_path / "out", "seed": 3}
    config = load(overrides={f"convert.{key}": str(value) for key, value in keys.items()})
    with caplog.at_level(logging.WARNING):
        found = functions.convert_source(config, False)
    assert (found["images"], found["faults"], found["left_out"]) == (2, 1, {"unreadable": 1})
    assert "ann/0.jpg" in caplog.text
    faults = [
        Fault(shard="a.tar", member=None, offset=0, reason="corrupt", kind=k, num_lost=2) for k in ("a", "b", "a")
    ]
    assert functions._with_faults({"images": 2}, faults) == {"images": 2, "faults": 6, "left_out": {"a": 4, "b": 2}}


def test_embed_dataset_warns_of_faults_and_shows_their_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("model", "data", "num_rows", "num_classes", "embedding_size", "flip", "parts_skipped", "seconds")
    result = {**dict.fromkeys(names, 1), "faults": ["a.tar: k.jpg at byte 0: corrupt"], "parts": []}
    monkeypatch.setattr("rayface.embedding.embed.embed", lambda config: SimpleNamespace(as_dict=lambda: result))
    with caplog.at_level(logging.WARNING):
        found = functions.embed_dataset(load(overrides=["embed.out=/e"]), False)
    assert found == {"out": "/e", **result}
    assert caplog.messages == result["faults"]
    assert shown.shown_embeddings(found) == {**dict.fromkeys(names, 1), "faults": 1}


def test_select_core_set_shows_all_but_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"keep": 0.5, "config": {"seed": 0}, "created_by": "rayface"}
    monkeypatch.setattr("rayface.stages.proxy.prune", lambda config: SimpleNamespace(as_dict=lambda: result))
    found = functions.select_core_set(load(overrides=["prune.out=/p"]), False)
    assert found["out"] == "/p"
    assert shown.shown_core_set(found) == {"keep": 0.5}


@pytest.mark.parametrize("resume", [True, False])
def test_train_model_hands_over_whether_to_resume_and_the_cluster(
    monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def train(config: Any, **options: Any) -> SimpleNamespace:
        asked.append(options)
        return SimpleNamespace(as_dict=lambda: {"steps": 7})

    monkeypatch.setattr("rayface.training.trainer.train", train)
    config = load(overrides=["cluster.address=c:1", "cluster.debug=true"])
    assert functions.train_model(config, resume) == {"steps": 7}
    assert asked == [{"resume": resume, "address": "c:1", "debug": True}]


def test_export_model_to_a_hub_folder_alone_writes_no_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rayface.models.model_files.load_model", lambda path, backbone: (path, backbone))
    monkeypatch.setattr("rayface.models.hub_folder.export_hub", lambda model, folder: {"model": model[0]})
    monkeypatch.setattr("rayface.models.onnx_export.export_onnx", None)
    found = functions.export_model(load(overrides=["export.model=/m", f"export.hub={tmp_path}"]), False)
    assert found == {"hub": str(tmp_path), "model": "/m"}
    with pytest.raises(ValueError, match=r"^export.onnx, export.hub: neither is set: give --onnx"):
        functions.export_model(load(overrides=["export.model=/m"]), False)
    with pytest.raises(ValueError, match=r"^export.external_data: True: has no effect: must be with export.onnx"):
        functions.export_model(load(overrides=["export.model=/m", "export.hub=h", "export.external_data=true"]), False)


def test_export_model_into_a_folder_that_a_job_deletes_is_refused_before_a_model_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rayface.models.model_files.load_model", None)  # would fail
    folder = "/tmp/ray/session_1/runtime_resources/working_dir_files/job"
    with pytest.raises(ValueError, match=rf"^export.onnx: {folder}: is in the working directory of a Ray job"):
        functions.export_model(load(overrides=["export.model=/m", f"export.onnx={folder}/m.onnx"]), False)


def test_cluster_images_tells_counts_and_scores_and_shows_the_main_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"images": 9, "clusters": 3, "noise": 1, "largest": 4}
    told = {"method": "cohesive", "threshold": 0.4, "threshold_from": "estimate", "counts": counts}
    told |= {"scores": {"pairwise_f": 0.9, "bcubed_f": 0.8, "nmi": 0.7, "purity": 1.0}, "job": {"seconds": 2.0}}
    result = SimpleNamespace(as_dict=lambda: told)
    monkeypatch.setattr("rayface.curate.cluster.cluster.cluster", lambda config: result)
    found = functions.cluster_images(load(overrides=["clustering.out=/o"]), False)
    assert found == {"out": "/o", **counts, **told}
    table = shown.shown_clusters(found)
    assert (table["clusters"], table["pairwise_f"], table["seconds"]) == (3, 0.9, 2.0)
    assert "purity" not in table
