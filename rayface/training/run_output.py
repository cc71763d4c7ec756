"""The run directory of a run, and the conditions to resume a run in it."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rayface import config as configs
from rayface.config import Config
from rayface.credentials import masked
from rayface.data.dataset import Dataset
from rayface.files import next_numbered_folder, numbered_folders
from rayface.storage import DataError, path_of, record_servers, require_known_servers, require_lasting
from rayface.tracking.uris import check_stored_uri
from rayface.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

Resume = bool | Literal["auto"]
"""Whether to resume an interrupted job; "auto": if there is one."""


def resolve(preset: str | None, file: Path | None, overrides: Sequence[str], *, resume: Resume) -> Config:
    """Return the config of a run: preset, file and overrides; for a resume, the run's own config comes first.

    Args:
        resume: "auto": whether train.output holds a run.

    Raises:
        ValueError: bad input; one line.
    """
    given = configs.load(preset, file, overrides)
    if not (_has_begun(given.train.output) if resume == "auto" else resume):
        return given
    if given.train.output:
        run = RunDirectory(path_of(given.train.output))
    else:
        run = newest_unfinished(given.name if preset or file else None)
        logger.info("resuming %s", run)
    record_servers(configs.flat(given))
    base = run.read_config() if preset is None and file is None else given
    base = replace(base, cluster=given.cluster)  # what is stored names none, unless it is from outside
    resumed = configs.with_overrides(base, [*overrides, f"train.output={run}"])
    require_known_servers(configs.flat(resumed), run)
    if given.tracking.uri is None:
        check_stored_uri(resumed.tracking, run)
    return resumed


def _has_begun(output: str | None) -> bool:
    """Return whether train.output holds a run, finished or not, which --resume auto resumes.

    Raises:
        ValueError: it is not set.
    """
    if output is None:
        raise ValueError("train.output: must be set with --resume auto: a repeated command finds its run by it")
    return RunDirectory(path_of(output)).has_started()


def newest_unfinished(name: str | None) -> RunDirectory:
    """Return the unfinished run under runs/ that was started last; with a name, only of those with this name.

    Raises:
        ValueError: there is none.
    """
    paths = numbered_folders(_root(), name).values() if name else _root().glob("*")
    runs = [run for run in map(RunDirectory, paths) if run.has_started() and not run.is_finished()]
    if not runs:
        text = f"no unfinished run {name or ''}{'-' * bool(name)}* under runs/ to resume"
        raise ValueError(f"train.output: {text}: name the run with train.output=DIR")
    return max(runs, key=lambda run: run.config_file.stat().st_mtime)


def check_output(config: Config, resume: bool) -> None:
    """Refuse an output that holds another run or is not empty; nothing is created.

    Raises:
        ValueError: one line.
    """
    if config.train.output is None:
        if resume:
            raise ValueError("train.output: is not set: must name the run to resume")
        require_lasting(_root(), "train.output: is not set, and its default, runs/,")
        return
    path = path_of(config.train.output).absolute()
    if isinstance(path, Path):
        require_lasting(path, f"train.output: {path}")
    run = RunDirectory(path)
    if path.is_file():
        raise ValueError(f"train.output: {run}: is a file: choose another directory")
    if run.is_finished():
        raise ValueError(
            f"train.output: {run}: holds a finished run: choose another directory; to train its model further, start a "
            f"new run with backbone.weights={run}"
        )
    if resume:
        _check_unchanged(run.read_config(), config)
    elif path.exists() and not run.is_unused():
        if run.is_owned():
            raise ValueError(f"train.output: {run}: another process trains there: choose another directory")
        raise ValueError(
            f"train.output: {run}: is not empty: resume its run with --resume, or choose another directory"
        )


@contextlib.contextmanager
def exclusive_run_directory(config: Config, resume: bool) -> Iterator[RunDirectory]:
    """Own the run directory, created if missing, inside the context; a directory with another run is refused.

    Raises:
        ValueError: one line; also if another driver owns it.
    """
    check_output(config, resume)
    if not resume:
        record_servers(configs.flat(config))
    path = _make_numbered(config.name) if config.train.output is None else path_of(config.train.output).absolute()
    run = RunDirectory(path)
    with run.exclusive():
        run.checkpoints.mkdir(exist_ok=True)
        if not run.has_model():
            run.delete_results()  # the model is missing: recreate all from the last checkpoint
        yield run


def _make_numbered(name: str) -> Path:
    while True:
        run = next_numbered_folder(_root(), name)
        try:
            run.mkdir(parents=True)
        except FileExistsError:  # another run took the number concurrently
            continue
        except OSError as error:
            text = f"train.output: {run}: cannot be written: {error.strerror}: choose another directory"
            raise DataError(text) from error
        return run


def _root() -> Path:
    return Path("runs").absolute()


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts of the training data that must not change on a resume."""

    digest: str
    num_images: int
    num_classes: int
    join: str | None

    @classmethod
    def of(cls, dataset: Dataset) -> "DataFacts":
        """Return the facts of a dataset."""
        images, classes = len(dataset.index), dataset.num_classes
        return cls(digest=dataset.digest, num_images=images, num_classes=classes, join=dataset.join)


def check_data(run: RunDirectory, facts: DataFacts) -> None:
    """Refuse training data other than the run was started with; its location may change.

    Raises:
        ValueError: the data has changed, which would change the order of the samples.
    """
    before = run.read_data_facts()
    if before is None:
        return
    for key, value in asdict(facts).items():
        if before.get(key) != value:
            raise ValueError(
                f"data.train: {key} is {value}, the run was started with {before.get(key)}: must not change on a "
                "resume: start a new run on changed data"
            )


def _check_unchanged(old: Config, new: Config) -> None:
    before, now = masked(configs.flat(old)), masked(configs.flat(new))
    for key in sorted(configs.FIXED):
        if before[key] != now[key]:
            raise ValueError(
                f"{key}: {now[key]!r}: the run was started with {before[key]!r}: must not change on a resume"
            )
