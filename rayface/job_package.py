"""What a job of a cluster needs: its command, the local files that it names, and some environment variables."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayface.credentials import is_secret_name, mask
from rayface.fork_server import ADDRESS as FORK_SERVER
from rayface.tuning.shipped import shipped_file

# Settings of what a job uses. Those of storage and of the cluster itself belong to the nodes, as the fork server does.
_FORWARDED = re.compile(
    rf"(?!{FORK_SERVER}$)(RAYFACE|MLFLOW|OPTUNA|NCCL|GLOO|TORCH|PYTORCH|CUBLAS|CUDNN|TRITON|OMP)_\w+"
    "|CUDA_(LAUNCH_BLOCKING|DEVICE_MAX_CONNECTIONS)"  # not CUDA_VISIBLE_DEVICES, which Ray sets on each node
)
_MAX_BYTES = 20 << 20  # of what an argument names; every node downloads the files before the job starts


@dataclass(frozen=True, kw_only=True)
class Package:
    """What is sent to the cluster.

    Attributes:
        entrypoint: the command that the cluster runs.
        files: local files by their path in the job's working directory.
        environment: environment variables of the job.
        kept_back: names of environment variables that may hold secrets and are not sent.
    """

    entrypoint: str
    files: Mapping[str, Path]
    environment: Mapping[str, str]
    kept_back: Sequence[str]


def package(
    arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str], python: str = "python"
) -> Package:
    """Return what must be sent so that the cluster can run `rayface ARGUMENTS`; nothing is read or sent.

    Files that the arguments name by a relative path, the modules and packages of --import, and a sweep file that comes
    with rayface are sent and keep their paths. Paths of other things must be absolute, on a disk that all nodes share,
    or URIs.

    Args:
        arguments: verb and its arguments.
        folder: folder that relative paths start from.
        python: Python of the nodes.

    Raises:
        ValueError: an argument with a password, or a local path that the cluster cannot read; one line.
    """
    if not arguments:
        raise ValueError("submit: must be followed by a verb, for example: rayface submit train --preset debug")
    for argument in arguments:
        if mask(argument) != argument:
            raise ValueError(
                f"{mask(argument)}: has a password, which Ray's dashboard would show: set it in the environment "
                "of the cluster's nodes"
            )
    sent = {name: value for name, value in environment.items() if _FORWARDED.fullmatch(name)}
    secret = sorted(name for name, value in sent.items() if is_secret_name(name) or mask(value) != value)
    return Package(
        entrypoint=shlex.join([python, "-m", "rayface.cli", *arguments]),
        files=dict(_files(arguments, folder)),
        environment={name: value for name, value in sent.items() if name not in secret},
        kept_back=secret,
    )


def _files(arguments: Sequence[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the local files that the arguments name, by their paths in the job's working directory."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        name = value if equals else argument
        path = folder / name
        if before == "--import" or option == "--import":
            yield from _sent(argument, _modules(folder, name), folder)
        elif not name or Path(name).is_absolute() or "://" in name:
            continue
        elif os.path.isfile(path):  # Path.is_file raises where a value is too long for a name
            yield from _sent(argument, [path], folder)
        elif os.path.isdir(path) and (equals or "/" in name):  # a bare word may be a verb or a name
            raise ValueError(
                f"{argument}: is a folder of this machine: must be a path on a disk that all nodes share, or a URI"
            )
        elif arguments[0] == "tune" and not equals and (shipped := shipped_file(Path(name))):
            yield name, shipped


def _modules(folder: Path, name: str) -> list[Path]:
    """Return the files of a module or of the package that it is in; none if it is not in the folder.

    Of a folder that is no package, which may hold anything, the module alone.
    """
    top = folder / name.partition(".")[0]
    if not top.name.isidentifier() or top.parent != folder:
        return []
    if not (top / "__init__.py").is_file():
        module = folder / f"{name.replace('.', '/')}.py"
        return [module] if module.is_file() else []
    real = folder.resolve()
    files = (path for path in top.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    return sorted(path for path in files if path.resolve().is_relative_to(real))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _sent(argument: str, paths: Sequence[Path], folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield files by their paths in the job's working directory.

    Raises:
        ValueError: they are outside the folder, or too large to be sent.
    """
    num_bytes = sum(path.stat().st_size for path in paths)
    if num_bytes > _MAX_BYTES:
        raise ValueError(
            f"{argument}: has {num_bytes:,} bytes: must have at most {_MAX_BYTES:,} to be sent: put it on "
            "a disk that all nodes share, or on an object store"
        )
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{argument}: is outside {folder}: must be in it to be sent, or an absolute path")
        yield Path(os.path.relpath(path, folder)).as_posix(), path
