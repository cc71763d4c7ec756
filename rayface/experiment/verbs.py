"""What an experiment knows of the verbs: where each leaves its result, how that is recognised, who takes it."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rayface.curate.prune.result import RESULT as PRUNED
from rayface.curate.prune.result import read_result
from rayface.embedding.embeddings import MANIFEST as EMBEDDED
from rayface.embedding.embeddings import missing_parts
from rayface.models.model_files import DESCRIPTION
from rayface.training.run_directory import RunDirectory

Kind = Literal["data", "embeddings", "model", "onnx", "numbers"]


class Command(Protocol):
    """A verb of the command line."""

    @property
    def options(self) -> Collection[str]:
        """Names of its options and arguments as the command line has them, with _ for -."""

    def arguments(self, options: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
        """The command line that says so."""

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """All options by name, the defaults too.

        Raises:
            ValueError: one line.
        """

    def call(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Do it, and return what its --json would print."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """Facts of a verb.

    Attributes:
        output: option or config key that names where the result goes.
        makes: what the result is to later stages.
        mark: of a result that is whole, something that changes when it does; None: it is not there.
        file: of the stage's folder, that is the result; "": the folder.
        goes_on: run again, it goes on where it was interrupted; else it begins anew, in an empty folder.
        ray: it works on Ray.
    """

    output: str
    makes: Kind
    mark: Callable[[Path], str | None]
    file: str = ""
    goes_on: bool = False
    ray: bool = False


@contextmanager
def _unless_gone(path: Path) -> Iterator[None]:
    """Pass over what is not there; a result that cannot be read now, by a disk that is away, is no missing one.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}: make it readable, or delete it") from error


def of_file(name: str) -> Callable[[Path], str | None]:
    """Mark a folder by a file in it."""

    def mark(folder: Path) -> str | None:
        with _unless_gone(folder / name), (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return None

    return mark


def _of_fields(name: str, *fields: str) -> Callable[[Path], str | None]:
    """Mark a folder by what a JSON file in it says."""

    def mark(folder: Path) -> str | None:
        text = None
        with _unless_gone(folder / name):
            text = (folder / name).read_bytes()
        try:
            said = json.loads(text or "")
            return hashlib.sha256(json.dumps([said[field] for field in fields]).encode()).hexdigest()
        except (ValueError, KeyError, TypeError):
            return None

    return mark


def _of_dataset(folder: Path) -> str | None:
    """Mark a dataset's folder by its manifest; its shards must be there too."""
    mark = of_file("dataset.json")(folder)
    if mark is None:
        return None
    with _unless_gone(folder):
        shards = json.loads((folder / "dataset.json").read_text()).get("shards", [])
        if all((folder / shard["path"]).stat().st_size == shard["num_bytes"] for shard in shards):
            return mark
    return None


# A job that finds all embedded writes its manifest anew, with other seconds: train.teacher_cache runs it.
_EMBEDDED = _of_fields(EMBEDDED, "model_sha256", "dataset_digest", "flip", "precision", "dtype", "num_rows")


def _of_embeddings(folder: Path) -> str | None:
    """Mark embeddings by their manifest; the files that it names must be there too."""
    mark = _EMBEDDED(folder)
    return None if mark is None or missing_parts(str(folder)) else mark


def _of_core_set(folder: Path) -> str | None:
    """Mark what prune left by its result; the files that this speaks of must be there too."""
    mark = of_file(PRUNED)(folder)
    return None if mark is None or read_result(folder) is None else mark


def _of_run(folder: Path) -> str | None:
    """Mark a run by its model, once it is finished."""
    with _unless_gone(folder):
        return _of_fields(DESCRIPTION, "sha256")(folder) if RunDirectory(folder).is_finished() else None
    return None


VERBS: dict[str, Verb] = {
    "synth": Verb(output="out", makes="data", mark=_of_dataset),
    "convert": Verb(output="out", makes="data", mark=_of_dataset),
    "embed": Verb(output="out", makes="embeddings", mark=_of_embeddings, goes_on=True, ray=True),
    "prune": Verb(output="out", makes="data", mark=_of_core_set, goes_on=True, ray=True),
    "train": Verb(
        output="train.output",
        makes="model",
        mark=_of_run,
        goes_on=True,
        ray=True,
    ),
    "evaluate": Verb(output="out", makes="numbers", mark=of_file("evaluation.json")),
    "export": Verb(output="onnx", makes="onnx", mark=of_file("model.onnx"), file="model.onnx"),
}

# Options and config keys that take the result of a stage, and of which kind; others take any path.
TAKES: dict[str, tuple[Kind, ...]] = {
    "data": ("data",),
    "data.train": ("data",),
    "evaluate.data": ("data",),
    "embeddings": ("embeddings",),
    "exclude": ("embeddings",),
    "train.teacher_cache": ("embeddings",),
    "model": ("model", "onnx"),
    "train.teacher": ("model", "onnx"),
    "backbone.weights": ("model",),
    "head": ("model",),
}

# Options that name something that is there already, where they name no stage.
PATHS = ("src", "data", "model", "pairs", "embeddings", "exclude", "head", "config")

# Config keys of a training that name what it is made of.
KEYS = ("data.train", "train.teacher", "backbone.weights", "evaluate.pairs", "evaluate.data")

# Options and keys of datasets: a directory, or several.
DATASETS = ("data", "data.train", "evaluate.data")

# Options that `rayface run` answers itself.
OWN = ("out", "onnx", "train.output", "json", "address", "debug", "resume", "help", "import")
