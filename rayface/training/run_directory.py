"""Run directories: which one a run gets, and what must hold to go on in one."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from rayface import config as configs
from rayface.config import Config

RESULT = "result.json"
# Keys that decide what a step's batch is and what a checkpoint holds: a run keeps them for life.
_FOR_LIFE = [
    "data.train",
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
    found = [p for p in sorted(Path("runs").glob(f"{name}-*")) if not (p / RESULT).exists()]
    if not found:
        raise ValueError(f"--resume: no unfinished run {name}-* under runs/: name the run with train.output=DIR")
    return found[-1]


def claim(config: Config, resume: bool) -> Path:
    """The run directory: a new one, or with resume one that is not finished; never one that holds a run."""
    if config.train.output is None:
        return _next_free(config.name)
    run = Path(config.train.output).absolute()
    if (run / RESULT).exists():
        raise ValueError(f"train.output: {run}: holds a finished run: choose another directory")
    if resume:
        _check_unchanged(config_of(run), config)
        return run
    if run.exists() and any(run.iterdir()):
        raise ValueError(f"train.output: {run}: is not empty: go on with --resume, or choose another directory")
    _make(run)
    return run


def _next_free(name: str) -> Path:
    root = Path("runs").absolute()
    taken = [int(m[1]) for p in root.glob(f"{name}-*") if (m := re.fullmatch(rf"{re.escape(name)}-(\d+)", p.name))]
    for number in range(max(taken, default=0) + 1, 10**6):
        run = root / f"{name}-{number:03d}"
        with contextlib.suppress(FileExistsError):  # another run may take the same number at this moment
            _make(run, exist_ok=False)
            return run
    raise ValueError(f"train.output: no free name {name}-* under {root}: name a directory")


def _make(run: Path, exist_ok: bool = True) -> None:
    try:
        run.mkdir(parents=True, exist_ok=exist_ok)
        (run / "checkpoints").mkdir(exist_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise ValueError(
            f"train.output: {run}: cannot be written: {error.strerror}: choose another directory"
        ) from error


def _check_unchanged(old: Config, new: Config) -> None:
    before, now = configs.flat(old), configs.flat(new)
    for key in _FOR_LIFE:
        if before[key] != now[key]:
            raise ValueError(f"{key}: {now[key]!r}: the run was started with {before[key]!r}: must stay for --resume")
