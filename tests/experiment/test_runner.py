"""Running an experiment: finished stages are skipped, interrupted ones resumed; verbs are fakes that leave a file."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rayface.config import ClusterConfig, Config
from rayface.experiment import runner
from rayface.experiment.runner import prepare, run
from rayface.experiment.spec import load
from rayface.interrupts import Terminated
from rayface.training.recovery.interrupt import TrainingInterruptedError
from tests.experiment.refusals import TRAIN

FOUR = """
stages:
  - name: drawn
    synth: {identities: 4, pairs: 20}
  - name: file
    export: {model: MODEL, external-data: true}
  - name: scores
    evaluate: {model: "${file}", pairs: "${drawn}/pairs.csv", data: "${drawn}", batch_size: 8}
  - evaluate: {model: "${file}", pairs: "${drawn}/pairs.csv", data: "${drawn}"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text('{"sha256": "one"}')
    path = tmp_path / "four.yaml"
    path.write_text(FOUR.replace("MODEL", str(tmp_path / "model")))
    return path


def stages_of(file: Path, fakes: Mapping[str, Any], **options: Any) -> list[tuple[str, bool]]:
    result = run(file, [], out=str(file.parent / "out"), **options)
    return [(stage.name, stage.skipped) for stage in result.stages]


def test_run_again_of_finished_stages_skips_them(
    file: Path,
    fakes: dict[str, Any],
    calls: list[str],
    messages: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["drawn", "file", "scores", "evaluate"]
    released: list[int] = []
    monkeypatch.setattr(runner, "release_gpu_memory", lambda: released.append(len(calls)))
    assert stages_of(file, fakes) == [(name, False) for name in names]
    assert stages_of(file, fakes) == [(name, True) for name in names]
    assert calls == names
    assert released == [1, 2, 3, 4]  # after each stage that ran
    assert messages()[5] == "stage 2 of 4: export file: finished before, skipped"
    out = file.parent / "out"
    (out / "scores" / "evaluation.json").unlink()
    assert stages_of(file, fakes) == [(name, name != "scores") for name in names]
    result = run(file, [], out=str(out))
    assert result.stages[2].result == {"accuracy_mean": 0.5, "model": str(out / "file" / "model.onnx")}


def test_stages_share_the_ray_session_of_the_command_line_else_of_their_config(
    fakes: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = tmp_path / "f.yaml", []
    monkeypatch.setattr(
        runner,
        "ray_session",
        lambda address, *, num_cpus, debug, prometheus: asked.append((address, debug)) or contextlib.nullcontext(),
    )
    fakes["train"].failure = RuntimeError("enough")
    keys = f"preset: debug, data.train: {data}"
    file.write_text(f"config: {{cluster: {{address: f:1}}}}\nstages: [{{train: {{{keys}}}}}]")
    for overrides, given in ((), {}), (["cluster.address=c:1"], {"debug": True}), ((), {"address": "d:1"}):
        with pytest.raises(RuntimeError, match="enough"):
            run(file, overrides, out=str(tmp_path / "out"), cluster=ClusterConfig(**given))
    assert asked == [("f:1", False), ("c:1", True), ("d:1", False)]
    assert [config.cluster.address for config, _ in fakes["train"].configs] == ["f:1", "c:1", "d:1"]
    file.write_text(f"stages: [{{synth: {{}}}}, {{train: {{{keys}, cluster.address: f:1}}}}]")
    with pytest.raises(ValueError, match=r"^stage train: cluster\.address, cluster\.debug: must be those of all"):
        run(file, out=str(tmp_path / "out"))


def test_run_again_after_a_failed_stage_starts_it_over_and_skips_those_before(
    file: Path, fakes: dict[str, Any], calls: list[str]
) -> None:
    fakes["export"].failure = ValueError("no room")
    with pytest.raises(ValueError, match=r"^stage file: no room$"):
        stages_of(file, fakes)
    for failure, code in (
        (TrainingInterruptedError("interrupted", Terminated()), 143),
        (Terminated(), 143),
        (KeyboardInterrupt(), 130),
    ):
        fakes["export"].failure = failure
        again = r"^stage file: interrupted.*: rayface run .*yaml --out .*out$"
        with pytest.raises(TrainingInterruptedError, match=again) as raised:
            stages_of(file, fakes)
        assert raised.value.exit_code == code
    fakes["export"].failure = None
    assert stages_of(file, fakes)[:2] == [("drawn", True), ("file", False)]
    assert calls == ["drawn", *["file"] * 5, "scores", "evaluate"]


def test_run_with_changes_to_a_finished_stage_is_refused_before_anything_starts(
    file: Path, fakes: dict[str, Any], calls: list[str], tmp_path: Path
) -> None:
    stages_of(file, fakes)
    text, done = file.read_text(), list(calls)

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            stages_of(file, fakes)
        assert "\n" not in str(caught.value)
        assert calls == done

    file.write_text(text.replace("batch_size: 8", "batch_size: 9"))
    refused("stage scores: is finished with evaluate.batch_size 8, is now 9: revert it, or delete .*scores to")
    file.write_text(text)
    (tmp_path / "model" / "model.json").write_text('{"sha256": "another"}')
    refused("stage file: is finished, and its input export.model .* has changed or is missing")
    (tmp_path / "model" / "model.json").write_text('{"sha256": "one"}')
    (tmp_path / "out" / "file" / "model.onnx").write_text("another")
    refused("stage file: is finished, and its result in .*file has changed")
    # done again, it is another one, and so what was made of it is refused
    (tmp_path / "out" / "file" / "model.onnx").unlink()
    with pytest.raises(ValueError, match="stage scores: is finished, and its input stage file has changed"):
        stages_of(file, fakes)


def test_run_into_a_folder_of_others_is_refused(file: Path, fakes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thing").touch()
    with pytest.raises(ValueError, match=r"output: .* is not empty"):
        stages_of(file, fakes)
    (tmp_path / "out" / "thing").unlink()
    stages_of(file, fakes)
    file.write_text(file.read_text() + "  - name: more\n    synth: {}\n")
    (tmp_path / "out" / "more").mkdir()
    with pytest.raises(ValueError, match=r"stage more: .*more: exists and is not of this experiment: move it away"):
        stages_of(file, fakes)


def test_run_again_resumes_an_interrupted_training_and_takes_one_that_had_ended(
    data: Path,
    fakes: dict[str, Any],
    messages: Callable[[], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fake leaves what a run leaves: its config at the start, model and result at the end."""
    monkeypatch.setattr(runner, "ray_session", lambda *args, **options: contextlib.nullcontext())
    seen: list[bool] = []
    run_directory = tmp_path / "out" / "a"

    def call(config: Config) -> dict[str, Any]:
        seen.append(fakes["train"].configs[-1][1])
        run_directory.mkdir(exist_ok=True)
        (run_directory / "config.yaml").touch()
        if len(seen) == 1:
            raise TrainingInterruptedError("the last checkpoint is 7", KeyboardInterrupt())
        (run_directory / "model.json").write_text('{"sha256": "s"}')
        (run_directory / "model.safetensors").touch()
        (run_directory / "result.json").write_text('{"steps": 9}')
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {}

    fakes["train"].call = call
    file = tmp_path / "one.yaml"
    file.write_text(f"stages:\n{TRAIN}".replace("DATA", str(data)))
    with pytest.raises(TrainingInterruptedError, match="stage a: interrupted"):
        run(file, [], out=str(tmp_path / "out"))
    with pytest.raises(TrainingInterruptedError):  # between the end of the run and the record of it
        run(file, ["optim.lr=0.01"], out=str(tmp_path / "out"))
    assert seen == [False, True]
    (changes,) = [line for line in messages() if "resumes with" in line]
    assert changes == f"stage a: resumes with optim.lr 0.01 (was 0.1): delete {run_directory} to restart it"
    result = run(file, ["optim.lr=0.01"], out=str(tmp_path / "out"))
    assert result.stages[0].result == {"steps": 9}
    assert result.stages[0].skipped
    more_workers = ["optim.lr=0.01", "train.num_workers=4", "tracking.enabled=false"]
    assert run(file, more_workers, out=str(tmp_path / "out")).stages[0].skipped
    with pytest.raises(ValueError, match=r"stage a: is finished with optim.lr 0.01, is now 0.1"):
        run(file, [], out=str(tmp_path / "out"))
    assert len(seen) == 2


def test_run_again_takes_a_conversion_that_had_ended_but_was_not_recorded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ray_session", lambda *args, **options: contextlib.nullcontext())
    file, out = tmp_path / "f.yaml", tmp_path / "out"
    file.write_text(f"stages: [{{convert: {{src: {data}, from: webdataset, seed: 1}}}}]")

    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runner.Record, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(file, out=str(out))
    written = (out / "convert" / "dataset.json").stat()
    (stage,) = run(file, out=str(out)).stages
    assert (stage.skipped, stage.result["images"], stage.result["identities"]) == (True, 40, 4)
    assert (out / "convert" / "dataset.json").stat() == written
    file.write_text(file.read_text().replace("seed: 1", "seed: 2"))
    with pytest.raises(ValueError, match=r"^stage convert: is finished with convert\.seed 1, is now 2: revert it, or"):
        run(file, out=str(out))


@pytest.mark.parametrize("name", ["generations", "curation"])
def test_prepare_of_the_documented_examples_accepts_every_stage(
    name: str, fakes: dict[str, Any], tmp_path: Path
) -> None:
    experiment = load(Path(__file__).parents[2] / "examples" / f"{name}.yaml", ["train.seed=1"])
    stages = prepare(experiment, tmp_path)
    assert len(stages) == 8
    assert {stage.config.train.seed for stage in stages} == {1}
