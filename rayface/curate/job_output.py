"""Output of a curation job: a folder on a disk, or one in an object store, in which results appear at the end."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayface.curate.work_files import WorkPath
from rayface.files import remove_folder
from rayface.job_folder import exclusive_job_folder
from rayface.storage import AnyPath, DataError, RemotePath, is_local, join, path_of, split, upload
from rayface.tracking.spool import JOURNAL, READER_FOLDERS, spool

WORK = ".work"  # folder of the work files, which are deleted when the job is finished

_JOB = "job"  # file in WORK of a store: the name of the copies on the nodes
_KEPT = {JOURNAL, *READER_FOLDERS}  # of a folder that is spooled: `spool` stores them


@dataclass(frozen=True, kw_only=True)
class JobOutput:
    """The output folder of a job, which this process owns.

    Attributes:
        root: path or URI of the folder.
        folder: local folder of results that are not published yet: `root` if that is local.
        work: folder of the work files.
    """

    root: str
    folder: Path
    work: WorkPath

    @property
    def path(self) -> AnyPath:
        """The folder as a path, to look for results in."""
        return path_of(self.root)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return split(self.root)[1]

    def finish(self, result: str) -> None:
        """Upload the results if the output is a URI, the file `result` last, and delete all work files.

        Inside the job's Ray session, whose nodes have copies of them.
        """
        if not is_local(self.root):
            names = self._results()
            for name in [*(name for name in names if name != result), *(name for name in names if name == result)]:
                upload(self.folder / name, join(self.root, name))
            _clear(self.folder)
        self.work.delete()

    def abandon(self, job_file: str) -> None:
        """Delete work files, journals and `job_file`, so that another job may use the folder; after the tracking."""
        self.work.delete()
        for name in _KEPT:
            remove_folder(self.folder / name)
            remove_folder(self.path / name)
        (self.path / job_file).unlink(missing_ok=True)

    def _results(self) -> list[str]:
        files = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return sorted(str(each) for each in files if each.parts[0] not in _KEPT and not each.parts[0].startswith("."))


@contextmanager
def job_output(
    root: str, job: Mapping[str, object], job_file: str, *, key: str, beside: Collection[str] = ()
) -> Iterator[JobOutput]:
    """Own the output of a job inside the context, see `exclusive_job_folder`.

    Of a URI, the work files are in the store, too: an interrupted job resumes on any node.

    Raises:
        DataError: the folder holds another job or foreign files, or another process owns it; one line.
    """
    with exclusive_job_folder(root, job, job_file, key=key, beside=beside), spool(root) as folder:
        work = path_of(root) / WORK
        if isinstance(work, RemotePath):
            _clear(folder)  # results that were not published
            yield JobOutput(root=root, folder=folder, work=WorkPath(root=work, job=_job_of(work)))
        else:
            yield JobOutput(root=root, folder=folder, work=WorkPath(root=work))


def _job_of(work: RemotePath) -> str:
    """Return the name under which nodes keep copies of the work files, of this job only."""
    file = work / _JOB
    if not file.exists():
        file.upload(uuid.uuid4().hex.encode())
    name = file.read_text()
    if not re.fullmatch("[0-9a-f]{32}", name):  # nodes delete the folder of this name
        raise DataError(f"{file}: is corrupt: delete {work} and run again")
    return name


def _clear(folder: Path) -> None:
    """Delete everything but the journal and what is written from it."""
    for path in folder.iterdir():
        if path.name in _KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
