"""Run directories: which one a run gets, and what must hold to go on in one."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayface import config as configs
from rayface.config import Config
from rayface.credentials import masked
from rayface.files import exclusive_folder, next_numbered_folder, numbered_folders
from rayface.storage import DataError, on_disk

OUTCOME = "outcome.json"  # written last: the workers are done; the driver makes result.json of it
RESULT = "result.json"
_MODEL = ("model.safetensors", "model.json")
DATA = "data.json"  # digest and counts of the training data
# Keys that decide what a step's batch is and what a checkpoint holds: a run keeps them for life.
_FOR_LIFE = [
    "data.join",
    "data.image_size",
    "data.chunk_images",
    "data.window_images",
    "backbone.name",
    "backbone.embedding_size",
    "backbone.width",
    "head.name",
    "optim.name",
    "train.batch_size",
    "train.seed",
]


def resolve(preset: str | None, file: Path | None, overrides: Sequence[str], *, resume: bool) -> Config:
    """The config of a run: preset, file and overrides; with resume, the run's own config comes first.

    Raises:
        ValueError: bad input; one line.
    """
    if not resume:
        return configs.load(preset, file, overrides)
    given = configs.load(preset, file, overrides)
    run = Path(given.train.output) if given.train.output else newest_unfinished(given.name)
    base = config_of(run) if preset is None and file is None else given
    return configs.with_overrides(base, [*overrides, f"train.output={run}"])


def config_of(run: Path) -> Config:
    """The config that a run was started with.

    Raises:
        ValueError: when the directory is not a run's.
    """
    if not (run / "config.yaml").is_file():
        raise ValueError(f"train.output: {run}: is not a run directory (no config.yaml): name one that was trained in")
    return configs.load(file=run / "config.yaml")


def newest_unfinished(name: str) -> Path:
    """The last run of a name under runs/ that has no result.

    Raises:
        ValueError: when there is none.
    """
    found = [path for _, path in sorted(numbered_folders(_root(), name).items()) if not is_finished(path)]
    if not found:
        raise ValueError(f"--resume: no unfinished run {name}-* under runs/: name the run with train.output=DIR")
    return found[-1]


def is_finished(run: Path) -> bool:
    """Whether a run has its result and the model that this speaks of."""
    return all((run / name).exists() for name in (RESULT, *_MODEL))


def check_output(config: Config, resume: bool) -> None:
    """Refuse, without making anything, an output that cannot be a run's: it holds one, or is not empty.

    Raises:
        ValueError: one line.
    """
    if config.train.output is None:
        return
    run = on_disk(config.train.output, "train.output").absolute()
    if run.exists() and not run.is_dir():
        raise ValueError(f"train.output: {run}: is a file: choose another directory")
    if is_finished(run):
        raise ValueError(
            f"train.output: {run}: holds a finished run: choose another directory; to train its model further, start a "
            f"new run with backbone.weights={run}"
        )
    if resume:
        _check_unchanged(config_of(run), config)
    elif run.exists() and any(run.iterdir()):
        raise ValueError(f"train.output: {run}: is not empty: go on with --resume, or choose another directory")


@contextlib.contextmanager
def exclusive_run_directory(config: Config, resume: bool) -> Iterator[Path]:
    """Own the run directory, made if missing, while inside; one that holds another run is refused.

    Raises:
        ValueError: one line; also when another driver is at work in it.
    """
    check_output(config, resume)
    run = _make_numbered(config.name) if config.train.output is None else Path(config.train.output).absolute()
    with exclusive_folder(run, f"train.output: {run}"):
        (run / "checkpoints").mkdir(exist_ok=True)
        if not all((run / name).exists() for name in _MODEL):
            for name in (OUTCOME, RESULT):  # what they say is finished is gone: it is made anew of the last checkpoint
                (run / name).unlink(missing_ok=True)
        yield run


def _root() -> Path:
    return Path("runs").absolute()


def _make_numbered(name: str) -> Path:
    while True:
        run = next_numbered_folder(_root(), name)
        try:
            run.mkdir(parents=True)
        except FileExistsError:  # another run took the number at this moment
            continue
        except OSError as error:
            raise DataError(
                f"train.output: {run}: cannot be written: {error.strerror}: choose another directory"
            ) from error
        return run


def check_data(run: Path, facts: dict[str, Any]) -> None:
    """Hold the data against what the run was started with, wherever it lies now.

    Raises:
        ValueError: when it has changed: the plan of the samples, and so the run, would be another one.
    """
    path = run / DATA
    if not path.exists():
        return
    before = json.loads(path.read_text())
    for key, value in facts.items():
        if before.get(key) != value:
            raise ValueError(
                f"data.train: {key} is {value}, the run was started with {before.get(key)}: must stay for --resume: "
                "start a new run on changed data"
            )


def _check_unchanged(old: Config, new: Config) -> None:
    before, now = masked(configs.flat(old)), masked(configs.flat(new))
    for key in _FOR_LIFE:
        if before[key] != now[key]:
            raise ValueError(f"{key}: {now[key]!r}: the run was started with {before[key]!r}: must stay for --resume")
