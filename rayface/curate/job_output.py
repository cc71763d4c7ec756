"""Output of a curation job: a folder on a disk, or one in an object store, with the work in a folder of this node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayface.credentials import masked
from rayface.files import write_text
from rayface.job_folder import exclusive_job_folder
from rayface.ray_tasks import tasks_on_this_node
from rayface.storage import AnyPath, is_local, join, path_of, split, upload
from rayface.tracking.spool import JOURNAL, READER_FOLDERS, spool

WORK = ".work"  # folder of the work files, which are deleted when the job is finished

_KEPT = {JOURNAL, *READER_FOLDERS}  # of a folder that is spooled: `spool` stores them


@dataclass(frozen=True, kw_only=True)
class JobOutput:
    """The output folder of a job, which this process owns.

    Attributes:
        root: path or URI of the folder.
        folder: local folder of the work files and of results that are not published yet: `root` if that is local.
    """

    root: str
    folder: Path

    @property
    def path(self) -> AnyPath:
        """The folder as a path, to look for results in."""
        return path_of(self.root)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return split(self.root)[1]

    def finish(self, result: str) -> None:
        """Upload the results if the output is a URI, the file `result` last, and delete all work files."""
        if not is_local(self.root):
            names = self._results()
            for name in [*(name for name in names if name != result), *(name for name in names if name == result)]:
                upload(self.folder / name, join(self.root, name))
        self.delete_work()

    def delete_work(self) -> None:
        """Delete the work files."""
        if is_local(self.root):
            shutil.rmtree(self.folder / WORK, ignore_errors=True)
        else:
            _clear(self.folder)

    def _results(self) -> list[str]:
        files = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return sorted(str(each) for each in files if each.parts[0] not in _KEPT and not each.parts[0].startswith("."))


@contextmanager
def job_output(
    root: str, job: Mapping[str, object], job_file: str, *, key: str, beside: Collection[str] = ()
) -> Iterator[JobOutput]:
    """Own the output of a job inside the context, see `exclusive_job_folder`.

    Of a URI, the work files lie in a folder of this user on this node, from which the job is resumed on the same node,
    and all tasks run on this node; on another node the work starts over.

    Raises:
        DataError: the folder holds another job or foreign files, or another process owns it; one line.
    """
    with exclusive_job_folder(root, job, job_file, key=key, beside=beside), spool(root) as folder:
        if is_local(root):
            yield JobOutput(root=root, folder=folder)
            return
        _keep_only(folder, job, folder / job_file)
        with tasks_on_this_node(f"{key}: {root}"):
            yield JobOutput(root=root, folder=folder)


def _keep_only(folder: Path, job: Mapping[str, object], mark: Path) -> None:
    """Delete what an earlier job with the same output has left, unless it was this job."""
    text = json.dumps(masked(dict(job)), sort_keys=True)
    if mark.exists() and mark.read_text() == text:
        return
    _clear(folder)
    write_text(mark, text)


def _clear(folder: Path) -> None:
    """Delete everything but the journal and what is written from it."""
    for path in folder.iterdir():
        if path.name in _KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
