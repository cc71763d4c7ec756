"""Local folder of a job's journal: the job's output, or a folder on this machine if the output is a URI."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
import pyarrow as pa

from rayface.credentials import mask
from rayface.files import write_file
from rayface.storage import (
    RemotePath,
    exists,
    is_local,
    is_temporary,
    join,
    list_files,
    make_folder,
    one_line,
    read_bytes,
    split,
    write_bytes,
)

JOURNAL = "journal"
SETTINGS = "tracking.json"  # where its journals are delivered
READER_FOLDERS = ("tensorboard", "wandb")  # beside the journals: written from them for other programs
_WRITTEN = ("tensorboard/*", "wandb/offline-run-*/**/*")
_log = logging.getLogger(__name__)


@contextmanager
def spool(root: str) -> Iterator[Path]:
    """Provide the local folder for the journal of a job whose output is `root`: `root` itself if it is local.

    For a URI, the journal is uploaded to `root`/journal on exit, also after an error, and downloaded when the job is
    resumed. Until then, and after a crash, it stays in a persistent folder on this machine.
    """
    if is_local(root):
        yield Path(root)
        return
    folder, kept = _lasting_folder(root), join(root, JOURNAL)
    _fetch(kept, folder / JOURNAL)
    try:
        yield folder
    finally:
        _store(folder, root)


def _lasting_folder(root: str) -> Path:
    """Return this user's folder for a URI; without a writable home, a new temporary folder that is kept."""
    name = f"{split(root)[1]}-{hashlib.sha256(mask(root).encode()).hexdigest()[:8]}"
    folder = platformdirs.user_state_path("rayface") / "jobs" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="rayface-job-")) / name
    return folder


def _fetch(kept: str, folder: Path) -> None:
    """Download the stored journal, unless the local one is longer."""
    if not exists(kept):
        return
    files = [file for file in list_files(kept, "journal") if not is_temporary(file.name)]
    stored = sum(file.size for file in files if file.name.endswith(".jsonl"))
    if stored <= sum(path.stat().st_size for path in folder.glob("*.jsonl")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        write_file(folder / file.name, read_bytes(join(kept, file.name)))


def _store(folder: Path, root: str) -> None:
    """Upload journals and what was written of them to the job's output; on failure keep all here, with a warning."""
    kept = join(root, JOURNAL)
    journals = [path for path in sorted((folder / JOURNAL).glob("*")) if path.suffix in (".json", ".jsonl")]
    written = [path for pattern in _WRITTEN for path in sorted(folder.glob(pattern)) if path.is_file()]
    try:
        _delete_superseded(folder, root)
        for path in journals + written:
            name = path.relative_to(folder).as_posix()
            make_folder(split(join(root, name))[0])
            write_bytes(join(root, name), path.read_bytes())
        for name in (JOURNAL, *(pattern.partition("/")[0] for pattern in _WRITTEN)):
            shutil.rmtree(folder / name, ignore_errors=True)
        with suppress(OSError):  # results of an unfinished job stay
            folder.rmdir()
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        why, here = mask(one_line(error)), folder / JOURNAL
        _log.warning("%s: cannot be written (%s): the journal is kept in %s", mask(kept), why, here)


def _delete_superseded(folder: Path, root: str) -> None:
    """Delete earlier offline runs of Weights & Biases in the store whose records the local one of the same id has."""
    for run in folder.glob("wandb/offline-run-*"):
        kept = RemotePath(join(root, "wandb"))
        for other in kept.iterdir():
            if other.name != run.name and other.name.endswith(f"-{run.name.rpartition('-')[2]}"):
                other.remove_tree()
