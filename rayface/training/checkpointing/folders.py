"""Folders of checkpoints: how one is written, put aside and deleted, on a disk and in an object store.

On a disk a checkpoint is written under a temporary name and renamed. An object store has no rename of folders: every
rank writes its part under the final name, and digests.json, written last, makes it a checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from rayface.files import write_text
from rayface.models.digests import DIGESTS, Digests, digests_of, write_digests, write_synced
from rayface.models.run_files import CHECKPOINTS, PROGRESS
from rayface.storage import AnyPath, RemotePath, sync_folder

Group = dist.ProcessGroup | None
METADATA = ".metadata"  # DCP's file
DESCRIBING = (METADATA, PROGRESS)
"""Files that describe a checkpoint: they are small, and hold no tensors."""


def folder_of(run: AnyPath, step: int) -> AnyPath:
    """Return the folder of a run's checkpoint."""
    return run / CHECKPOINTS / f"step_{step:08d}"


class DiskFolder:
    """A checkpoint that is being written to a disk that all ranks share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._temporary = folder.with_name(f".{folder.name}.tmp")

    def begin(self) -> None:
        """Delete what killed runs left, and create the folder; rank 0 only."""
        for stale in self._temporary.parent.glob(".step_*.tmp"):  # only one write runs at a time
            shutil.rmtree(stale)
        self._temporary.mkdir(parents=True)

    def write(self, state: Mapping[str, torch.Tensor], group: Group) -> None:
        """Write this rank's part; every rank must call it."""
        import torch.distributed.checkpoint as dcp

        dcp.save(dict(state), checkpoint_id=self._temporary, process_group=group, no_dist=group is None)

    def own_digests(self, rank: int, progress: str) -> Digests:
        """Return digests of the files that this rank wrote; DCP names files by rank and has synced them."""
        names = [path.name for path in self._temporary.glob(f"__{rank}_*")]
        if rank == 0:
            write_synced(self._temporary / PROGRESS, progress)
            names += DESCRIBING
        return digests_of(self._temporary, names)

    def publish(self, digests: Digests) -> None:
        """Make it a checkpoint; rank 0 only, after all ranks have written."""
        write_digests(self._temporary, digests)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self._temporary, self.folder)
        sync_folder(str(self.folder.parent))

    def abandon(self) -> None:
        """Delete the files, which frees their part of a full disk."""
        shutil.rmtree(self._temporary, ignore_errors=True)


class StoreFolder:
    """A checkpoint that is being written to an object store; an unfinished one is deleted when the next begins."""

    def __init__(self, folder: RemotePath) -> None:
        self.folder = folder
        self._digests: Digests = {}

    def begin(self) -> None:
        """Delete unfinished checkpoints, and an earlier one of this step; rank 0 only."""
        manifests: dict[str, bool] = {}
        for name in self.folder.parent.files():
            step, _, file = name.partition("/")
            manifests[step] = manifests.get(step, False) or file.endswith(DIGESTS)  # of one put aside, too
        for step, has_manifest in manifests.items():
            if step == self.folder.name or (step.startswith("step_") and not has_manifest):
                delete(self.folder.with_name(step))

    def write(self, state: Mapping[str, torch.Tensor], group: Group) -> None:
        """Write this rank's part; every rank must call it."""
        import torch.distributed.checkpoint as dcp

        from rayface.models.store_files import StoreWriter

        writer = StoreWriter(self.folder)
        dcp.save(dict(state), storage_writer=writer, process_group=group, no_dist=group is None)
        self._digests = writer.digests

    def own_digests(self, rank: int, progress: str) -> Digests:
        """Return digests of the objects that this rank wrote."""
        if rank == 0:
            content = progress.encode()
            write_text(self.folder / PROGRESS, progress)
            self._digests[PROGRESS] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return self._digests

    def publish(self, digests: Digests) -> None:
        """Make it a checkpoint; rank 0 only, after all ranks have written."""
        write_text(self.folder / DIGESTS, json.dumps({"files": digests}, indent=1))

    def abandon(self) -> None:
        """Leave the objects, which are not a checkpoint: the store may not answer, and the next write deletes them."""


NewFolder = DiskFolder | StoreFolder


def new_folder(run: AnyPath, step: int) -> NewFolder:
    """Return the folder to write a run's checkpoint to."""
    folder = folder_of(run, step)
    return StoreFolder(folder) if isinstance(folder, RemotePath) else DiskFolder(folder)


def put_aside(folder: AnyPath, word: str) -> AnyPath:
    """Make a checkpoint count no longer, but keep its files; `word` becomes part of its name, or of its manifest's."""
    if isinstance(folder, RemotePath):
        aside = folder / f"{word}_{DIGESTS}"
        write_text(aside, (folder / DIGESTS).read_text() if (folder / DIGESTS).is_file() else "{}")
        (folder / DIGESTS).unlink(missing_ok=True)
        return aside
    renamed = folder.with_name(f"{word}_{folder.name}")
    shutil.rmtree(renamed, ignore_errors=True)
    return folder.replace(renamed)


def delete(folder: AnyPath) -> None:
    """Delete a checkpoint so that a crash in the middle leaves nothing that looks like one."""
    if isinstance(folder, RemotePath):
        (folder / DIGESTS).unlink(missing_ok=True)
        folder.remove_tree()
    else:
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.tmp")))
