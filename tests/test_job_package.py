"""What is sent to a cluster for a job, and what is kept back."""

from pathlib import Path

import pytest

from rayface import job_package
from rayface.job_package import Package, package
from rayface.tuning.shipped import sweep_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tune_configs").mkdir()
    (tmp_path / "tune_configs" / "lr.yaml").write_text("search: {}")
    (tmp_path / "my_heads.py").write_text("")
    (tmp_path / "faces").mkdir()
    return tmp_path


def packed(folder: Path, *arguments: str, **environment: str) -> Package:
    return package(arguments, folder=folder, environment=environment)


def test_package_sends_the_named_files_and_modules_under_their_paths(folder):
    found = packed(folder, "tune", "tune_configs/lr.yaml", "--import", "my_heads", "sweep.output=/shared/s")
    assert found.entrypoint.endswith("rayface.cli tune tune_configs/lr.yaml --import my_heads sweep.output=/shared/s")
    assert found.files == {
        "tune_configs/lr.yaml": folder / "tune_configs" / "lr.yaml",
        "my_heads.py": folder / "my_heads.py",
    }
    assert packed(folder, "train", "--import=my_heads", "evaluate.pairs=tune_configs/lr.yaml").files.keys() == {
        "my_heads.py",
        "tune_configs/lr.yaml",
    }


def test_package_quotes_arguments_for_the_shell(folder):
    assert packed(folder, "train", "data.train=[/a, /b]").entrypoint == (
        "python -m rayface.cli train 'data.train=[/a, /b]'"
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.train=faces", "data.train=faces: is a folder of this machine: must be a path on a disk that all nodes"),
        ("data.train=s3://me:secret@bucket/set", "has a password, which Ray's dashboard would show"),
        ("tracking.uri=http://h/?password=secret", "has a password"),
        ("../outside.yaml", "is outside"),
    ],
)
def test_package_refuses_what_the_cluster_cannot_read_or_must_not_show(folder, argument, message):
    (folder.parent / "outside.yaml").write_text("")
    with pytest.raises(ValueError, match=message) as caught:
        packed(folder, "train", argument)
    assert "secret" not in str(caught.value)


def test_package_sends_settings_of_the_environment_and_no_secrets(folder):
    found = packed(
        folder,
        "train",
        MLFLOW_TRACKING_URI="http://mlflow:5000",
        MLFLOW_TRACKING_PASSWORD="one",
        OPTUNA_STORAGE="postgresql://me:two@db/optuna",
        RAYFACE_FACES="/faces",
        RAYFACE_FORK_SERVER="/tmp/forks",
        RAYFACE_STORE_PASS="four",
        PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True",
        CUBLAS_WORKSPACE_CONFIG=":4096:8",
        CUDA_LAUNCH_BLOCKING="1",
        CUDA_VISIBLE_DEVICES="0",
        AWS_SECRET_ACCESS_KEY="three",
        HOME="/home/me",
    )
    assert found.environment == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "RAYFACE_FACES": "/faces",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CUDA_LAUNCH_BLOCKING": "1",
    }
    assert found.kept_back == ["MLFLOW_TRACKING_PASSWORD", "OPTUNA_STORAGE", "RAYFACE_STORE_PASS"]


@pytest.fixture
def plug(folder: Path) -> Path:
    """A plugin that is a package of two modules and a table."""
    for name in ("__init__.py", "sub.py", "tables/t.csv", "__pycache__/sub.pyc", ".cache/x"):
        (folder / "plug" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "plug" / name).write_text("")
    return folder / "plug"


@pytest.mark.parametrize("arguments", [("--import", "plug"), ("--import=plug.sub",)])
def test_package_sends_the_whole_package_of_a_plugin(folder, plug, arguments):
    sent = {f"plug/{name}": plug / name for name in ("__init__.py", "sub.py", "tables/t.csv")}
    assert packed(folder, "train", *arguments).files == sent
    (folder / "plug.py").write_text("")
    assert packed(folder, "train", *arguments).files == sent  # which Python imports
    (plug / "leads_out").symlink_to("/etc/hostname")
    assert packed(folder, "train", *arguments).files == sent


@pytest.mark.parametrize(("module", "sent"), [("plug", "plug.py"), ("plug.sub", "plug/sub.py"), ("plug.none", None)])
def test_package_sends_one_module_of_a_folder_that_is_no_package(folder, plug, module, sent):
    """It may hold keys and data."""
    (plug / "__init__.py").unlink()
    (folder / "plug.py").write_text("")
    assert list(packed(folder, "train", "--import", module).files) == ([sent] if sent else [])


@pytest.mark.parametrize("module", ["", "/", "..", ".", "json", "installed.module"])
def test_package_sends_nothing_for_a_module_that_is_not_in_the_folder(folder, module):
    assert packed(folder, "train", f"--import={module}").files == {}


def test_package_refuses_a_plugin_that_is_too_large(folder, plug, monkeypatch):
    monkeypatch.setattr(job_package, "_MAX_BYTES", 3)
    (plug / "sub.py").write_text("1234")
    with pytest.raises(ValueError, match=r"^plug: has 4 bytes: must have at most 3 to be sent"):
        packed(folder, "train", "--import", "plug")


@pytest.mark.parametrize("given", ["partial_fc", "tune_configs/partial_fc.yaml"])
def test_package_sends_the_sweep_file_of_a_name_that_comes_with_rayface(folder, given):
    ((name, shipped),) = packed(folder, "tune", "--preset", "debug", given, "data.train=/shared/faces").files.items()
    assert name == given
    assert shipped.samefile(sweep_file(Path("partial_fc")))
    assert packed(folder, "train", given).files == {}
    (folder / given).write_text("search: {}")
    assert packed(folder, "tune", given).files == {given: folder / given}


def test_package_of_a_value_that_is_too_long_for_a_file_name_sends_none(folder):
    assert packed(folder, "train", "head.options={" + "a" * 300 + ": 1}", "b" * 300).files == {}
