"""The command line as a user meets it: exit codes, one line for errors, one line of JSON for results."""

import json
import os
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from rayface import __version__, cli

URI = "s3://bucket/out"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["rayface", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def call(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rayface.data.synth import synthesize

    out = tmp_path_factory.mktemp("small") / "set"
    synthesize(out, identities=4, images_per_identity=10, processes=1)
    return out


def test_version_and_help_name_the_version_and_every_verb(call):
    assert call("--version")[:2] == (0, f"{__version__}\n")
    code, out, _ = call("--help")
    assert code == 0
    assert all(verb in out for verb in ("synth", "convert", "check", "train", "evaluate", "export", "run", "sync"))


def test_backbones_as_a_table_or_json_show_their_size(call):
    code, out, _ = call("backbones", "mini", "r50")
    assert code == 0
    assert "43.591M" in out
    code, out, _ = call("backbones", "mini", "--image-size=56", "--json")
    assert code == 0
    (row,) = json.loads(out)["backbones"]
    assert (row["name"], row["image_size"], row["embedding_size"]) == ("mini", 56, 512)


def test_synth_of_a_set_is_checked_and_not_overwritten(call, tmp_path):
    out_dir = tmp_path / "set"
    code, out, _ = call("synth", out_dir, "--identities=3", "--images-per-identity=4", "--json")
    assert code == 0
    counts = {"images": 12, "identities": 3, "label_space": 3, "shards": 1, "faults": 0}
    assert json.loads(out) == {"dataset": str(out_dir), **counts}
    code, out, _ = call("check", out_dir, "--deep")
    assert code == 0
    assert "12" in out
    code, _, err = call("synth", out_dir)
    assert code == 2
    assert err.count("\n") == 1


def test_check_of_a_truncated_shard_names_it_and_ends_with_1(call, small, tmp_path):
    shard = next(small.glob("*.tar"))
    copy = tmp_path / shard.name
    copy.write_bytes(shard.read_bytes()[:100_000])
    code, _, err = call("check", tmp_path)
    assert code == 1
    assert shard.name in err
    assert "at byte" in err


def test_convert_from_a_folder_writes_an_image_and_a_label_each(call, tmp_path):
    for person in ("ann", "bob"):
        (tmp_path / "src" / person).mkdir(parents=True)
        for i in range(3):
            image = np.full((120, 100, 3), 40 * i + 20, np.uint8)
            cv2.imwrite(str(tmp_path / "src" / person / f"{i}.jpg"), image)
    code, out, _ = call("convert", tmp_path / "src", tmp_path / "out", "--from=folder", "--json")
    assert code == 0
    assert json.loads(out)["images"] == 6
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        assert len(tar.getnames()) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "data.train: is not set"),
        (["train", "data.train=/nowhere"], "data.train: /nowhere: no such dataset folder: `rayface convert` makes one"),
        (["plan", "data.train=/nowhere"], "data.train: /nowhere: no such dataset folder"),
        (["embed", "--model=m", "--data=/nowhere", "--out=o"], "embed.data: /nowhere: no such dataset folder"),
        (["register", "/nowhere"], "train.output: /nowhere: is not a run directory"),
        (["train", "--epochs", "3"], "--epochs: config keys are given without dashes: train.epochs=VALUE"),
        (["train", "--train.lr=1"], "No such option: --train.lr"),
        (["train", "--optim.lr=1"], "config keys are given without dashes: optim.lr=VALUE"),
        (["train", "--preset=minni"], "did you mean mini"),
        (["train", "head.sample_rat=1"], "did you mean head.sample_rate"),
        (["train", "lr=1"], "lr: is not a config key: did you mean optim.lr"),
        (["train", "train.momentum=1"], "train.momentum: is not a config key: did you mean optim.momentum"),
        (["train", "--resume=auto"], "Write --resume auto"),
        (["train", "--resume"], "train.output: no unfinished run"),
        (["check", "/nowhere"], "/nowhere"),
        (["convert", "/nowhere", "out", "--from=folder"], "/nowhere"),
        (["convert", ".", "out", "--from=zip"], "convert.kind: 'zip': must be one of"),
        (["synth", "out", "--shard-size=big"], "size 'big'"),
        (["synth", "out", "--identities=0"], "identities"),
        (["evaluate", "--model=/nowhere", "--pairs=p.csv", "--data=d", "--out=o"], "/nowhere"),
        (["export", "--model=/nowhere", "--onnx=m.onnx"], "/nowhere"),
        (["backbones", "r19"], "did you mean 'r18'"),
        (["bench", "train", "-b", "r19"], "did you mean 'r18'"),
        (["sync", "/nowhere"], "/nowhere"),
        (["run", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["benchmark", "make"], "Missing argument 'DATASET'. See rayface benchmark make --help."),
        (["nosuchverb"], "nosuchverb"),
    ],
)
def test_verb_with_wrong_input_is_one_line_and_exit_code_2(call, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_train_on_a_truncated_shard_or_a_label_out_of_range_is_refused(call, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    truncated = shutil.copytree(small, tmp_path / "truncated")
    shard = next(truncated.glob("*.tar"))
    os.truncate(shard, shard.stat().st_size // 2)
    code, _, err = call("train", "--preset=debug", f"data.train={truncated}")
    assert code == 2
    assert err.count("\n") == 1
    assert shard.name in err
    assert "truncated" in err
    wrong = shutil.copytree(small, tmp_path / "wrong")
    for name in ("index.parquet", "identities.parquet"):
        (wrong / name).unlink()
    manifest = json.loads((wrong / "dataset.json").read_text())
    (wrong / "dataset.json").write_text(json.dumps({**manifest, "num_classes": 2}))
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    code, _, err = call("train", "--preset=debug", f"data.train={wrong}")
    assert code == 2
    *phases, error = err.splitlines()
    assert all(line.startswith("scan shards: ") for line in phases)
    assert error.startswith("rayface: ")
    assert "label" in error
    assert not (tmp_path / "runs").exists()


def test_verb_with_debug_shows_the_traceback_and_ends_with_the_same_code(call):
    code, _, err = call("check", "/nowhere", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.endswith(
        "rayface: /nowhere: no such dataset folder: `rayface convert` makes one of your images, "
        "`rayface synth` of drawn ones\n"
    )


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_verb_that_is_interrupted_is_one_line_and_its_own_exit_code(call, monkeypatch, number, code, said):
    def interrupted(*args: object, **options: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(30)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what runs in the background
    for verb, function in (
        (["synth", "out"], "rayface.data.synth.synthesize"),
        (["check", "dir"], "rayface.data.check.check"),
        (
            ["evaluate", "--model=m", "--pairs=p", "--data=d", "--out=o"],
            "rayface.evaluation.evaluate.evaluate",
        ),
        (["embed", "--model=m", "--data=d", "--out=o"], "rayface.embedding.embed.embed"),
        (["prune", "--embeddings=e", "--keep=.5", "--out=o"], "rayface.stages.proxy.prune"),
    ):
        monkeypatch.setattr(function, interrupted)
        line = f"rayface: {said}: run the same command again to resume or to start over\n"
        assert call(*verb) == (code, "", line)
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "--proxy-fraction=.1", "--data=d", "--keep=.5", f"--out={URI}"],
        ["checkpoint", "reshard", "run", f"--out={URI}"],
        ["plan", "--gpus=1", f"--plot={URI}.png"],
        ["bench", "prune", f"--directory={URI}"],
        ["bench", "checkpoint", f"--directory={URI}"],
    ],
)
def test_output_that_must_be_on_a_disk_is_refused_where_it_is_a_uri(call, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, err = call(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{URI}" in err
    assert "must be a path on a disk that all nodes share, not a URI: mount the storage" in err
    assert sorted(tmp_path.iterdir()) == before
