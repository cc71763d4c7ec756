"""Metadata of torch.distributed.checkpoint: a pickle, read without executing what else may be in it."""

from __future__ import annotations

import pathlib
import pickle
from typing import IO, Any, ClassVar, cast

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.serialization import _get_layout

# BytesStorageMetadata is left out: PyTorch unpickles such entries, and rayface's checkpoints hold tensors only.
_CLASSES = (Metadata, MetadataIndex, StorageMeta, TensorProperties, TensorStorageMetadata, ChunkStorageMetadata)
_ADMITTED: dict[tuple[str, str], Any] = {
    **{(each.__module__, each.__qualname__): each for each in (*_CLASSES, _StorageInfo, _MEM_FORMAT_ENCODING)},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    **{
        (module, name): pathlib.PurePosixPath
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath")
    },
}


# What Python and these classes raise for a pickle that is corrupt.
_BROKEN = (
    *(pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError),
    *(MemoryError, OverflowError, RuntimeError, SystemError),
)


class MetadataReader(FileSystemReader):
    """Reader of a checkpoint whose metadata can only describe tensors; it reads them once."""

    _metadata: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata.

        Raises:
            ValueError: it is no metadata of tensors; one line.
        """
        if self._metadata is None:
            path = self._get_metadata_path(kwargs.get("rank"))
            with self.fs.create_stream(path, "rb") as file:
                self._metadata = _read(cast(IO[bytes], file), str(path))
        self._metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return self._metadata


class _Unpickler(pickle._Unpickler):  # the one in Python, whose operations can be replaced
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the classes that describe tensors, or a dtype; nothing else is imported."""
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"{module}.{name} does not describe a tensor")

    def load_build(self) -> None:
        """Set the fields of an instance; pickle's own also sets attributes of classes, such as pathlib's."""
        state, inst = self.stack.pop(), self.stack[-1]
        if type(inst) is TensorProperties and type(state) is tuple:
            TensorProperties.__setstate__(inst, state)
        elif type(inst) in (*_CLASSES, _StorageInfo) and type(state) is dict:
            if any(type(name) is not str or name.startswith("_") for name in state):
                raise pickle.UnpicklingError(f"{type(inst).__name__} with other names than of fields")
            vars(inst).update(state)
        else:
            raise pickle.UnpicklingError(f"{type(inst).__name__} with a {type(state).__name__} as its state")

    dispatch[pickle.BUILD[0]] = load_build


def _read(file: IO[bytes], path: str) -> Metadata:
    try:
        found = _Unpickler(file).load()
        if not isinstance(found, Metadata):
            raise TypeError(f"{type(found).__name__} in place of the metadata")
        _check(found)
    except _BROKEN as error:
        raise ValueError(f"{path}: cannot be read: {error}: use another checkpoint") from None
    return found


def _check(metadata: Metadata) -> None:
    for name, tensor in metadata.state_dict_metadata.items():
        if not isinstance(tensor, TensorStorageMetadata):
            raise TypeError(f"{name!r} is no tensor")
    for place in (metadata.storage_data or {}).values():
        if "/" in place.relative_path or place.relative_path in ("", ".", ".."):
            raise ValueError(f"a tensor is in {place.relative_path!r}, not in a file of the checkpoint")
