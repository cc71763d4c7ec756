"""A run is finished when its result and its model are there."""

import os
from pathlib import Path

import pytest

from rayface import config as configs
from rayface.training.run_directory import RunDirectory
from rayface.training.run_output import check_output, exclusive_run_directory, newest_unfinished, resolve


@pytest.mark.parametrize("lost", ["model.safetensors", "model.json"])
def test_exclusive_run_directory_of_a_run_without_its_model_deletes_its_results(tmp_path: Path, lost: str) -> None:
    """It is finished anew from its last checkpoint; before, --resume called it finished for ever."""
    run = tmp_path / "run"
    run.mkdir()
    config = configs.with_overrides(configs.load("debug"), {"train.output": str(run)})
    configs.dump(config, run / "config.yaml")
    for name in ("result.json", "outcome.json", "model.safetensors", "model.json"):
        (run / name).write_text("{}")
    assert RunDirectory(run).is_finished()
    with pytest.raises(ValueError, match="holds a finished run"):
        check_output(config, resume=True)
    (run / lost).unlink()
    assert not RunDirectory(run).is_finished()
    with exclusive_run_directory(config, resume=True):
        assert not (run / "result.json").exists()
        assert not (run / "outcome.json").exists()


def test_directory_of_a_run_that_was_interrupted_before_its_config_is_used_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in (".lock", "data.json"):
        (run / name).write_text("{}")
    config = configs.with_overrides(configs.load("debug"), {"train.output": str(run)})
    check_output(config, resume=False)
    (run / "checkpoints" / "step_00000001").mkdir()
    with pytest.raises(ValueError, match="is not empty: resume its run with --resume"):
        check_output(config, resume=False)
    with RunDirectory(run).exclusive(), pytest.raises(ValueError, match="another process trains there: choose another"):
        check_output(config, resume=False)


def test_resume_without_an_output_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.output: is not set: must name the run to resume"):
        check_output(configs.load("debug"), resume=True)


def test_resolve_with_resume_auto_takes_the_config_of_a_started_run_or_the_given_one(tmp_path: Path) -> None:
    keys = [f"train.output={tmp_path / 'run'}", "optim.lr=0.3"]
    new = resolve("debug", None, keys, resume="auto")
    assert (new.optim.lr, new.data.image_size) == (0.3, 32)
    (tmp_path / "run").mkdir()
    configs.dump(configs.with_overrides(new, {"optim.lr": 0.7}), tmp_path / "run" / "config.yaml")
    assert resolve(None, None, keys[:1], resume="auto").optim.lr == 0.7
    with pytest.raises(ValueError, match=r"train\.output: must be set with --resume auto"):
        resolve("debug", None, [], resume="auto")


def test_resolve_of_a_run_whose_config_alone_names_a_server_keeps_the_credentials_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages
) -> None:
    uri = "http://evil:5000"
    keys = [f"train.output={tmp_path / 'run'}"]
    (tmp_path / "run").mkdir()
    configs.dump(configs.load("debug", overrides=[*keys, f"tracking.uri={uri}"]), tmp_path / "run" / "config.yaml")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert resolve(None, None, keys, resume=True).tracking.uri == uri
    assert messages() == [f"tracking.uri: {uri}, as the config in {tmp_path / 'run'} says"]
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "pl4nted-t0ken")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine:5000")
    with pytest.raises(
        ValueError, match=r"^tracking\.uri: http://evil:5000: is named by the run directory: .*confirmed"
    ):
        resolve(None, None, keys, resume=True)
    for given in ([f"tracking.uri={uri}"], ["tracking.uri=http://mine:5000"], ["tracking.enabled=false"]):
        resolve(None, None, [*keys, *given], resume=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    resolve(None, None, keys, resume="auto")
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").touch()
    with pytest.raises(ValueError, match="must be confirmed"):
        resolve(None, None, keys, resume=True)


def test_resolve_of_a_run_whose_config_alone_names_a_store_keeps_the_credentials_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(machine: str) -> None:
        monkeypatch.setattr("rayface.storage.servers._known", set())
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / machine))

    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    keys = [f"train.output={tmp_path / 'run'}"]
    uris = ["s3://b/set?endpoint_override=evil:9&scheme=http", "gs://b/pairs.csv?endpoint_override=evil:9"]
    named = [f"data.train=[s3://b/set,{uris[0]}]", f"evaluate.pairs={uris[1]}"]
    config = configs.load("debug", overrides=[*keys, *named, "cluster.address=ray://evil:10001"])
    forget("mine")
    with exclusive_run_directory(config, resume=False):  # of this user's own command
        configs.dump(config, tmp_path / "run" / "config.yaml", groups=("data", "evaluate", "train", "cluster"))
    forget("mine")
    resumed = resolve(None, None, keys, resume=True)
    assert (resumed.data.train[1], resumed.evaluate.pairs, resumed.cluster.address) == (*uris, None)
    for given in (named[1:], []):
        forget(f"other{len(given)}")
        with pytest.raises(
            ValueError, match=r"^data\.train: s3://b/set\?endpoint_override=evil:9.* give data\.train again"
        ):
            resolve(None, None, [*keys, *given], resume=True)
    with pytest.raises(ValueError, match=r"^evaluate\.pairs: gs://.* 'https://evil:9': must be a server that you name"):
        resolve(None, None, [*keys, "data.train=mine"], resume="auto")
    resolve(None, None, [*keys, *named], resume=True)
    forget("other0")  # where the command before was given
    assert resolve(None, None, keys, resume=True) == resumed


def test_output_in_the_working_directory_of_a_ray_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray deletes it with the job."""
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for keys in ({}, {"train.output": "run"}):
        config = configs.with_overrides(configs.load("debug"), keys)
        with pytest.raises(ValueError, match=r"train\.output: .*is in the working directory of a Ray job"):
            check_output(config, resume=False)
    assert list(folder.iterdir()) == []


def test_newest_unfinished_is_the_run_that_was_started_last_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seconds, name in enumerate(("webface-001", "run-002", "webface-003", "run-001")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        configs.dump(configs.load("debug"), folder / "config.yaml")
        os.utime(folder / "config.yaml", (seconds, seconds))
    (tmp_path / "runs" / "empty-004").mkdir()
    finished = RunDirectory(tmp_path / "runs" / "run-001")
    for name in ("result.json", "model.safetensors", "model.json"):
        (finished.path / name).write_text("{}")
    assert newest_unfinished(None).name == "webface-003"
    assert newest_unfinished("run").name == "run-002"
    with pytest.raises(ValueError, match=r"train\.output: no unfinished run empty-\* under runs/ to resume"):
        newest_unfinished("empty")
