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
        _store(folder / JOURNAL, kept)


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


def _store(folder: Path, kept: str) -> None:
    """Upload a journal to the job's output; on failure keep it here, with a warning."""
    paths = [path for path in sorted(folder.glob("*")) if path.suffix in (".json", ".jsonl")]
    try:
        if paths:
            make_folder(kept)
        for path in paths:
            write_bytes(join(kept, path.name), path.read_bytes())
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # work files of an unfinished job stay
            folder.parent.rmdir()
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        _log.warning("%s: cannot be written (%s): the journal is kept in %s", mask(kept), mask(one_line(error)), folder)
