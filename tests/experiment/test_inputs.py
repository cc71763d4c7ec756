"""Inputs of stages and their fingerprints: a changed input is refused; verbs are fakes that leave a file."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rayface import config as configs
from rayface.config import Config
from rayface.experiment import checks, runner
from rayface.experiment.inputs import fingerprint
from rayface.experiment.record import Record
from rayface.experiment.runner import _inputs, run
from rayface.models.model_files import write_metrics
from rayface.stages import fingerprints
from rayface.training.recovery.interrupt import TrainingInterruptedError
from tests.experiment.prepared import prepared_of
from tests.small_model import save_small_model


@pytest.fixture
def trainings(fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, bool]]:
    """Configs, and whether to resume, of a training that leaves its config and is interrupted."""
    monkeypatch.setattr(runner, "ray_session", lambda *args, **options: contextlib.nullcontext())

    def call(config: Config) -> dict[str, Any]:
        (tmp_path / "out" / "a").mkdir(exist_ok=True)
        (tmp_path / "out" / "a" / "config.yaml").touch()
        raise TrainingInterruptedError("the last checkpoint is 7", KeyboardInterrupt())

    fakes["train"].call = call
    return fakes["train"].configs


def test_training_whose_input_stage_ran_again_is_not_resumed(
    fakes: dict[str, Any], trainings: list[tuple[Config, bool]], data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "f.yaml"
    train = f"train: {{preset: debug, data.train: {data}, evaluate: {{pairs: '${{s}}/pairs.csv', data: '${{s}}'}}}}"
    file.write_text(f"stages:\n- name: s\n  synth: {{}}\n- name: a\n  {train}\n")

    def go() -> None:
        run(file, ["train.epochs=3"], out=str(tmp_path / "out"))

    interrupted = r"stage a: interrupted; resume with: rayface run .*f.yaml train.epochs=3 --out .*out$"
    for _ in range(2):
        with pytest.raises(TrainingInterruptedError, match=interrupted):
            go()
    begun = Record(tmp_path / "out").inputs("a")
    (tmp_path / "out" / "s" / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"stage a: was started, and its input stage s has changed.*delete .*/a to"):
        go()
    assert len(trainings) == 2
    assert Record(tmp_path / "out").inputs("a") == begun
    (tmp_path / "out" / "a" / "config.yaml").unlink()  # never got so far: begun anew, of what is there now
    with pytest.raises(TrainingInterruptedError):
        go()
    assert not trainings[-1][1]
    assert Record(tmp_path / "out").inputs("a") != begun


def test_training_resumed_without_a_key_takes_its_default(
    fakes: dict[str, Any], trainings: list[tuple[Config, bool]], data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "f.yaml"
    keys = f"data.train: {data}, train.batch_size: 8, evaluate.every: 5"
    for more in (", optim.lr: 0.01, optim.clip_norm: 1.0", ", optim.clip_norm: null"):
        file.write_text(f"stages: [{{name: a, train: {{{keys}{more}}}}}]")
        with pytest.raises(TrainingInterruptedError):
            run(file, [], out=str(tmp_path / "out"))
    (own, _), (again, resume) = trainings
    assert resume
    assert (own.optim.lr, again.optim.lr, again.optim.clip_norm) == (0.01, 0.1, None)
    wanted = {"data.train": [str(data)], "train.batch_size": 8, "evaluate.every": 5, "optim.clip_norm": None}
    assert again == configs.load(overrides={**wanted, "train.output": str(tmp_path / "out" / "a")})


def test_settings_of_a_teacher_cache_hold_whether_there_is_one_and_not_where(
    fakes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    def settings(cache: str) -> dict[str, Any]:
        keys = f"preset: debug, data.train: {data}"
        student = f"{keys}, train.teacher: '${{a}}', train.teacher_cache: {cache}"
        text = f"stages:\n- name: a\n  train: {{{keys}}}\n- name: b\n  train: {{{student}}}\n"
        return prepared_of(text, fakes, tmp_path)[1].settings

    assert settings("here") == settings("there") != settings("null")


def test_settings_of_a_proxy_hold_all_keys_of_its_training_and_its_cpus(
    fakes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    def proxy(keys: str) -> runner.Prepared:
        stage = f"{{prune: {{data: {data}, proxy_fraction: 0.5, keep: 0.6{keys}}}}}"
        return prepared_of(f"stages: [{stage}]", fakes, tmp_path)[0]

    plain = proxy("")
    assert plain.settings["train.epochs"] == configs.load("mini").train.epochs
    assert proxy(", train.epochs: 3").settings["train.epochs"] == 3
    more = proxy(", train.num_workers: 3, train.cpus_per_worker: 2, tracking.enabled: false")
    assert more.settings == plain.settings
    assert (plain.cpus, more.cpus) == (configs.load("mini").train.max_workers, 6)


def test_inputs_of_no_stage_change_their_fingerprints(fakes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    pairs, folder, foreign, photos = (tmp_path / name for name in ("p.csv", "emb", "foreign", "photos"))
    pairs.write_text("a,b,1\n")
    for path in (folder, foreign, photos / "ann"):
        path.mkdir(parents=True)
    (foreign / "part.parquet").write_bytes(b"1")
    (photos / "ann" / "1.jpg").write_bytes(b"1")
    says = {"model_sha256": "m", "dataset_digest": "d", "flip": True, "precision": "fp32", "dtype": "fp16"}

    def embedded(**more: Any) -> None:
        (folder / "embeddings.json").write_text(json.dumps({**says, "parts": [], "num_rows": 3, **more}))

    text = (
        f"stages:\n- synth: {{}}\n- evaluate: {{model: MODEL, pairs: {pairs}, data: ['${{synth}}', {data}]}}\n"
        f"- prune: {{embeddings: {folder}, keep: 0.6}}\n- embed: {{model: MODEL, data: '[${{synth}},{data}]'}}\n"
        f"- name: c\n  convert: {{src: {photos}, from: folder}}\n"
        f"- name: f\n  prune: {{embeddings: {foreign}, exclude: {foreign}, above: 0.5, keep: 0.6}}\n"
    ).replace("MODEL", str(data))
    embedded(seconds=1)

    def marks() -> dict[str, str | None]:
        prepared = prepared_of(text, fakes, tmp_path)
        return {
            f"{each.stage.name} {key}": mark
            for each in prepared
            for key, mark in _inputs(each, prepared).items()
            if key != "stage synth"
        }

    def changed() -> set[str]:
        nonlocal before
        now, was = marks(), before
        before = now
        assert now.keys() == was.keys()
        return {key for key, mark in now.items() if mark != was[key]}

    before = marks()
    assert None not in before.values()
    assert f"embed embed.data {data}" in before
    assert changed() == set()
    embedded(seconds=2)
    assert changed() == set()
    embedded(num_rows=4)
    assert changed() == {f"prune prune.embeddings {folder}"}
    pairs.write_text("a,b,0\n")
    assert changed() == {f"evaluate evaluate.pairs {pairs}"}
    (foreign / "more.parquet").write_bytes(b"1")
    assert changed() == {f"f prune.embeddings {foreign}", f"f clean.exclude {foreign}"}
    for change in (
        lambda: (photos / "ann" / "2.jpg").write_bytes(b"1"),
        lambda: (photos / "ann" / "2.jpg").rename(photos / "ann" / "3.jpg"),
        lambda: os.utime(photos / "ann" / "1.jpg", (1, 1)),  # another picture of the same size
        lambda: (photos / "bob").symlink_to(photos / "ann"),
    ):
        change()
        assert changed() == {f"c convert.source {photos}"}
    (photos / ".DS_Store").touch()
    (photos / "@eaDir").mkdir()
    (photos / "@eaDir" / "1.jpg").touch()
    assert changed() == set()


def test_convert_stage_is_not_skipped_where_photographs_were_added(fakes: dict[str, Any], tmp_path: Path) -> None:
    photos, file = tmp_path / "photos" / "ann", tmp_path / "f.yaml"
    photos.mkdir(parents=True)
    (photos / "1.jpg").touch()
    file.write_text(f"stages: [{{convert: {{src: {photos.parent}, from: folder}}}}]")

    def skipped() -> bool:
        return bool(run(file, [], out=str(tmp_path / "out")).stages[0].skipped)

    assert [skipped(), skipped()] == [False, True]
    (photos / "2.jpg").touch()
    with pytest.raises(
        ValueError, match=r"stage convert: is finished, and its input convert.source .*photos has changed"
    ):
        skipped()


def test_inputs_of_several_paths_have_a_fingerprint_of_each(fakes: dict[str, Any], tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"1")
    paths = [str(tmp_path / name) for name in "ab"]
    text = (
        f"stages:\n- convert: {{src: '[{','.join(paths)}]', from: folder}}\n"
        f"- evaluate: {{model: {paths[0]}, bin: ['{paths[0]}/1.jpg', '{paths[1]}/1.jpg']}}\n"
    )
    converted, evaluated = (each.inputs for each in prepared_of(text, fakes, tmp_path))
    key = f"convert.source {', '.join(paths)}"
    assert converted == {key: ",".join(fingerprint("convert.source", [path]) for path in paths)}
    (tmp_path / "b" / "2.jpg").write_bytes(b"1")
    changed = prepared_of(text, fakes, tmp_path)[0].inputs
    same = [now == was for now, was in zip(changed[key].split(","), converted[key].split(","), strict=True)]
    assert same == [True, False]
    assert len(evaluated[f"evaluate.bin {paths[0]}/1.jpg, {paths[1]}/1.jpg"].split(",")) == 2


def test_evaluation_that_writes_a_model_card_can_be_repeated(fakes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    model, file = tmp_path / "model", tmp_path / "f.yaml"
    save_small_model(model)
    file.write_text(f"stages: [{{evaluate: {{model: {model}, all_vs_all: {data}, write_card: true}}}}]")

    def skipped() -> bool:
        return bool(run(file, [], out=str(tmp_path / "out")).stages[0].skipped)

    def evaluate(config: Config) -> dict[str, Any]:
        write_metrics(model, {"accuracy_mean": 0.5})
        Path(str(config.evaluate.out)).mkdir(exist_ok=True)
        (Path(str(config.evaluate.out)) / "evaluation.json").write_text("{}")
        return {}

    fakes["evaluate"].call = evaluate
    assert [skipped(), skipped()] == [False, True]
    save_small_model(model, fill=0.5)
    with pytest.raises(ValueError, match=r"stage evaluate: is finished, and its input evaluate.model .* has changed"):
        skipped()


def test_inputs_of_a_training_from_a_file_have_fingerprints(
    fakes: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_check_train", lambda *args: None)  # would read the pairs
    pairs = tmp_path / "p.csv"
    pairs.write_text("a,b,1\n")
    (tmp_path / "own.yaml").write_text(f"data: {{train: {data}}}\n")
    keys = f"config: {tmp_path / 'own.yaml'}, evaluate: {{pairs: {pairs}, data: {data}}}"
    prepared = prepared_of(f"stages: [{{train: {{{keys}}}}}]", fakes, tmp_path)
    marks = _inputs(prepared[0], prepared)
    names = [f"data.train {data}", f"evaluate.pairs {pairs}", f"evaluate.data {data}"]
    assert all(marks[name] is not None for name in names)
    assert set(marks) == set(names)


def test_fingerprint_of_a_model_is_of_its_weights_or_of_its_whole_description(tmp_path: Path) -> None:
    def described(**content: Any) -> str:
        (tmp_path / "model.json").write_text(json.dumps(content))
        return fingerprint("evaluate.model", [str(tmp_path)])

    assert described(sha256="a", metrics={}) == described(sha256="a", metrics={"accuracy": 0.9})
    assert described(sha256="a") != described(sha256="b")
    written_by_hand = described(backbone="r50")
    assert written_by_hand == fingerprints.of_file("model.json")(tmp_path) != described(backbone="r18")


def test_fingerprint_of_an_onnx_file_covers_the_weights_beside_it(tmp_path: Path) -> None:
    path, found = tmp_path / "a.onnx", set()
    path.write_bytes(b"graph")
    found.add(fingerprint("embed.model", [str(path)]))
    for weights in (b"one", b"two"):
        (tmp_path / "a.onnx.data").write_bytes(weights)
        found.add(fingerprint("embed.model", [str(path)]))
    assert len(found) == 3
