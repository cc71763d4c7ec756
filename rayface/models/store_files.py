"""Files of torch.distributed.checkpoint in an object store, through pyarrow.fs."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, cast

from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from rayface.models.checkpoint_metadata import MetadataReader
from rayface.models.digests import Digests
from rayface.storage import AnyPath, RemotePath, Source, locate, rename, retried, windowed

_WINDOW = 8 << 20  # bytes of a request in which tensors are read together
_written = 0  # bytes that this process has written of checkpoints; the watchdog sees progress by it


def bytes_written() -> int:
    """Return how many bytes this process has written of checkpoints to object stores."""
    return _written


class StoreWriter(FileSystemWriter):
    """Write a rank's part of a checkpoint; a failing upload is repeated from the start of the part.

    Args:
        folder: folder of the checkpoint.
    """

    def __init__(self, folder: RemotePath) -> None:
        super().__init__(".", sync_files=False)
        self.digests: Digests = {}
        """Size and sha256 of every object that this rank has written, by name."""
        self.fs, self.path = cast(Any, _StoreFiles(self.digests)), cast(Any, folder)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the tensors of this rank."""
        write = super().write_data
        return retried(str(self.path), lambda: write(plan, planner), "cannot be written")

    def finish(self, metadata: Any, results: list[list[WriteResult]]) -> None:
        """Write the metadata."""
        finish = super().finish
        retried(str(self.path), lambda: finish(metadata, results), "cannot be written")

    def storage_meta(self) -> StorageMeta:
        """Return no location: the metadata is stored, and a checkpoint may be moved."""
        return StorageMeta()


class StoreReader(MetadataReader):
    """Read tensors of a checkpoint by ranges; small tensors that lie together by one request."""

    def __init__(self, folder: RemotePath) -> None:
        super().__init__(".")
        self.fs, self.path = cast(Any, _StoreFiles({})), cast(Any, folder)

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        if sinfo.length > _WINDOW:
            return super()._slice_file(file, sinfo)
        return io.BytesIO(file.fetch(sinfo.offset, sinfo.length))


def reader_of(folder: AnyPath) -> MetadataReader:
    """Return the reader of a checkpoint on a disk or in an object store."""
    return StoreReader(folder) if isinstance(folder, RemotePath) else MetadataReader(folder)


class _StoreFiles(FileSystemBase):
    """DCP's operations on files; digests of what is written are kept in `digests`."""

    def __init__(self, digests: Digests) -> None:
        self._digests = digests

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if mode == "rb":
            with _PartReader(path) as reader:
                yield reader
            return
        filesystem, inside = locate(path.uri)
        with filesystem.open_output_stream(inside, compression=None) as stream:
            writer = _PartWriter(cast(BinaryIO, stream))
            try:
                yield writer
            except RuntimeError:
                if writer.failure is not None:
                    raise writer.failure from None  # torch.save hides it behind an error of its own
                raise
        self._digests[path.name] = {"bytes": writer.tell(), "sha256": writer.sha256.hexdigest()}

    def concat_path(self, path: Any, suffix: str) -> Any:
        return path / suffix

    def rename(self, path: Any, new_path: Any) -> None:
        filesystem, inside = locate(path.uri)
        rename(filesystem, inside, locate(new_path.uri)[1])
        self._digests[new_path.name] = self._digests.pop(path.name)

    def init_path(self, path: object) -> Any:
        return path

    def mkdir(self, path: object) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return isinstance(checkpoint_id, RemotePath)

    def exists(self, path: Any) -> bool:
        return bool(path.is_file())

    def rm_file(self, path: Any) -> None:
        path.unlink(missing_ok=True)


class _PartWriter(io.RawIOBase):
    """An output stream that counts and digests; it has no file descriptor."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._size, self.sha256 = stream, 0, hashlib.sha256()
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        global _written
        view = memoryview(data).cast("B")
        try:
            self._stream.write(view)
        except OSError as error:
            self.failure = error
            raise
        self.sha256.update(view)
        self._size += len(view)
        _written += len(view)
        return len(view)

    def tell(self) -> int:
        return self._size


class _PartReader(io.BufferedReader):
    """A part of a checkpoint; `fetch(offset, count)` reads neighbours together."""

    def __init__(self, path: RemotePath) -> None:
        self._source = Source(path.uri)
        self.fetch = windowed(self._source, _WINDOW)
        super().__init__(cast(Any, path.open()), _WINDOW)

    def close(self) -> None:
        self._source.close()
        super().close()
