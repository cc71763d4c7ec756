"""Every path option of the command line and the config works on a URI, or refuses it in one line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from rayface.cli.command_line import _outcome, app
from rayface.config import Config, flat, load
from rayface.credentials import mask
from rayface.training.builders import load_start
from rayface.training.distillation import check_distillation
from tests.small_model import save_small_model

TABLE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text().partition("## What may live where")[2]
ROWS = re.findall(r"^\| (`.*?) \| (read|written|refused|-) \|", TABLE.partition("\n## ")[0], re.MULTILINE)
WHERE = {path: kind for paths, kind in ROWS for path in re.findall(r"`([^`]+)`", paths)}
MODELS = {"embed.model", "evaluate.model", "export.model"}  # text, as a model may be OUTPUT of a file
KEYS = set(flat(Config()))


def path_keys() -> set[str]:
    """The config keys whose type is a path, by the validator of the type."""
    found = set()
    for key in KEYS:
        group, _, name = key.rpartition(".")
        owner = type(getattr(Config(), group)) if group else Config
        if "absolute" in repr(get_type_hints(owner, include_extras=True)[name]):
            found.add(key)
    return found | MODELS


def path_options() -> set[str]:
    """The options and arguments of verbs that take a path by their type, as VERB OPTION."""
    found = set()

    def walk(command: Any, verb: str) -> None:
        for name, own in getattr(command, "commands", {}).items():
            walk(own, f"{verb} {name}".strip())
        for part in getattr(command, "params", []):
            if part.metavar in ("PATH", "FILE", "DIR", "RUN", "EXPERIMENT.yaml"):
                found.add(f"{verb} {part.opts[0] if part.opts[0].startswith('-') else part.metavar}")

    walk(typer.main.get_command(app), "")
    return found


def test_every_path_setting_and_option_is_in_the_table_of_what_may_live_where() -> None:
    assert len(WHERE) == sum(len(re.findall(r"`([^`]+)`", paths)) for paths, _ in ROWS)
    assert {path for path in WHERE if path in KEYS} == path_keys()
    assert path_options() <= set(WHERE)


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function of a command line -> its one line of refusal; nothing was written into the working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def refusal(*arguments: str) -> str:
        code, message = _outcome(arguments)
        assert code == 2, message
        assert "\n" not in message
        assert list(Path.cwd().iterdir()) == []
        return mask(message)  # as it is printed

    return refusal


_DISK = "must be a path on a disk"
_VERBS = {"train": "train", "clustering": "cluster"}


@pytest.mark.parametrize("path", [path for path, kind in WHERE.items() if kind == "refused"])
def test_path_that_must_be_on_a_disk_refuses_a_uri_in_one_line(
    path: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    uri, experiment = "s3://bucket/some/path", tmp_path / "experiment.yaml"
    experiment.write_text("stages: [{name: a, synth: {identities: 2}}]")
    if path in KEYS:
        verb = _VERBS.get(path.partition(".")[0], path.partition(".")[0])
        required = {
            "prune": ("--out=x", "--embeddings=e"),
            "cluster": ("--out=x", "--embeddings=e"),
            "evaluate": ("--out=x", "--model=m"),
            "train": ("--preset=mini", "data.train=d", "train.epochs=1"),
        }[verb]
        kept = [each for each in required if each.strip("-").split("=")[0] != path.partition(".")[2]]
        message = refusal(verb, *kept, f"{path}={uri}")
    else:
        *verb_words, option = path.split()
        given = (f"{option}={uri}",) if option.startswith("-") else (uri,)
        if path == "checkpoint reshard --out":
            given = (str(experiment), *given)
        message = refusal(*verb_words, *given)
    assert path.split()[-1].strip("-") in message, message
    assert uri in message
    assert _DISK in message


@pytest.fixture(scope="module")
def missing(s3_server: Any) -> str:
    """The URI of a file that is not there, in a bucket that is."""
    from dataclasses import replace

    from pyarrow import fs

    store = replace(s3_server, bucket="missing-files")
    filesystem, root = fs.FileSystem.from_uri(f"{store.uri('')}&allow_bucket_creation=true")
    filesystem.create_dir(root)
    return store.uri("gone/file")


INPUTS = {
    "data.train": "plan --preset=mini data.train=URI",
    "embed.data": "embed --model=MODEL --data=URI --out=x",
    "prune.embeddings": "prune --embeddings=URI --out=x --keep=.5",
    "clustering.embeddings": "cluster --embeddings=URI --out=x",
    "evaluate.data": "evaluate --model=MODEL --pairs=PAIRS --data=URI --out=x",
    "evaluate.all_vs_all": "evaluate --model=MODEL --all-vs-all=URI --out=x",
    "evaluate.embeddings": "evaluate --embeddings=URI --pairs=PAIRS --data=d --out=x",
    "evaluate.pairs": "evaluate --model=MODEL --pairs=URI --data=s3://b/d --out=x",
    "evaluate.bin": "evaluate --model=MODEL --bin=URI --out=x",
    "evaluate.templates": "evaluate --model=MODEL --templates=URI --data=s3://b/d --protocol=templates --out=x",
    "embed.model": "embed --model=URI --data=SET --out=x",
    "evaluate.model": "evaluate --model=URI --bin=b --out=x",
    "export.model": "export --model=URI --onnx=m.onnx",
    "align.detector": "align p x --detector=URI",
    "convert.source": "convert URI x --from=rec",
    "check DIR": "check URI",
    "benchmark make DATASET": "benchmark make URI x",
    "bench embed --model": "bench embed --model=URI --data=SET",
    "bench embed --data": "bench embed --model=MODEL --data=URI",
    "bench convert --data": "bench convert --data=URI",
    "train --config": "train --config=URI",
    "plan --config": "plan -c URI",
    "plan --rates": "plan --rates=URI",
    "prune.head": "prune --embeddings=e --out=x --keep=.5 --method=diffprob --head=URI",
    "checkpoint show DIR": "checkpoint show URI",
    "checkpoint verify DIR": "checkpoint verify URI",
    "checkpoint export DIR": "checkpoint export URI --out=x",
    "checkpoint reshard DIR": "checkpoint reshard URI --out=x",
    "tune FILE": "tune URI",
    "run EXPERIMENT.yaml": "run URI",
    "compare RUN": "compare URI URI",
    "watch RUN": "watch URI",
    "doctor RUN": "doctor URI",
    "register RUN": "register URI",
}


@pytest.mark.parametrize("path", INPUTS)
def test_path_of_an_input_that_the_store_lacks_is_refused_with_the_uri_as_given(
    path: str, refusal: Callable[..., str], missing: str, tmp_path: Path, drawn: Path
) -> None:
    assert WHERE[path] == "read"
    save_small_model(tmp_path / "model")
    (tmp_path / "pairs.csv").write_text("path_a,path_b,is_same,fold\na,b,1,0\na,c,0,1\n")
    given = {"SET": str(drawn), "URI": missing, "MODEL": str(tmp_path / "model"), "PAIRS": str(tmp_path / "pairs.csv")}
    message = refusal(
        *(re.sub("SET|URI|MODEL|PAIRS", lambda name: given[name[0]], word) for word in INPUTS[path].split())
    )
    assert re.search(r"s3://\*\*\*@missing-files/gone(/file)?", message), message


@pytest.mark.parametrize("key", ["backbone.weights", "train.teacher"])
def test_model_of_training_that_the_store_lacks_is_refused_with_the_uri_as_given(key: str, missing: str) -> None:
    config = load("mini", overrides={key: missing})
    with pytest.raises(ValueError, match=r"s3://\*\*\*@missing-files/gone/file") as refused:
        check_distillation(config) if key == "train.teacher" else load_start(torch_module(), config)
    assert "\n" not in str(refused.value)


def torch_module() -> Any:
    from torch import nn

    return nn.Identity()
