"""The state of a run on disk: tensors by torch.distributed.checkpoint, numbers in progress.json beside them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

PROGRESS = "progress.json"


class RowShard(torch.Tensor):
    """A rank's rows of one logical tensor, in class ranges of any size; shares memory with `local`.

    DTensor's Shard(0) fixes the sizes of the parts; this speaks DCP's protocol (for which it has to be a
    tensor) for parts of any size, so that a checkpoint holds one (C, ...) tensor and loads on any number of
    ranks.

    Args:
        local: (rows, ...), the rank's part; loading writes into it.
        first_row: where the part begins.
        num_rows: rows of the whole, C.
    """

    _chunks: list[ChunkStorageMetadata]
    _whole: torch.Size

    @staticmethod
    def of(local: torch.Tensor, first_row: int, num_rows: int) -> "RowShard":
        shard = torch.Tensor._make_subclass(RowShard, local.detach())
        offsets = torch.Size([first_row, *[0] * (local.dim() - 1)])
        shard._chunks = [ChunkStorageMetadata(offsets=offsets, sizes=local.shape)] if len(local) else []
        shard._whole = torch.Size([num_rows, *local.shape[1:]])
        return shard

    def size(self, dim: int | None = None) -> Any:
        """Of the whole, as DCP compares it with what was saved."""
        return self._whole if dim is None else self._whole[dim]

    def __create_write_items__(self, fqn: str, value: object) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self._whole),
            )
            for chunk in self._chunks
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return self._chunks

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


State = dict[str, torch.Tensor]


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def all_in(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(p.parent for p in (run / "checkpoints").glob(f"step_*/{PROGRESS}"))


def save(run: Path, state: State, progress: dict[str, Any], *, keep: int) -> Path:
    """Write a checkpoint of all ranks under a temporary name, then give it its own; remove old ones.

    Runs DCP's collectives on the default process group, if there is one; every rank must call it.

    Args:
        state: replicated tensors and RowShards; replicated ones are written once.
        progress: JSON values; holds "step".
        keep: newest checkpoints to keep.
    """
    folder = folder_of(run, progress["step"])
    temporary = folder.with_name(f".{folder.name}.tmp")
    rank = dist.get_rank() if dist.is_initialized() else 0
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    _barrier()
    dcp.save(dict(state), checkpoint_id=temporary, no_dist=not dist.is_initialized())
    if rank == 0:
        _write_synced(temporary / PROGRESS, json.dumps(progress, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        for old in all_in(run)[:-keep]:
            shutil.rmtree(old)
    _barrier()
    return folder


def load(folder: Path, state: State) -> dict[str, Any]:
    """Fill the tensors of `state` from a checkpoint, written by any number of ranks; returns its progress."""
    dcp.load(dict(state), checkpoint_id=folder, no_dist=not dist.is_initialized())
    return dict(json.loads((folder / PROGRESS).read_text()))


def empty_like_saved(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of the shapes that a checkpoint has under `prefix`, for state that does not exist before loading."""
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name: torch.empty(saved.size, dtype=saved.properties.dtype)
        for name, saved in metadata.items()
        if name.startswith(prefix) and isinstance(saved, TensorStorageMetadata)
    }


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's tensors under flat names, "optimizer.PARAMETER.KEY"."""
    return {
        f"optimizer.{number}.{key}": value
        for number, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put tensors named as by `optimizer_state` back."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        _, number, key = name.split(".", 2)
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            # Fused optimizers walk through memory: a buffer must be laid out as its parameter (channels_last).
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
