"""Parts of one logical tensor for torch.distributed.checkpoint, in row ranges of any size."""

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


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

    first_row: int
    _chunks: list[ChunkStorageMetadata]
    _whole: torch.Size

    @staticmethod
    def of(local: torch.Tensor, first_row: int, num_rows: int) -> "RowShard":
        shard = torch.Tensor._make_subclass(RowShard, local.detach())
        offsets = torch.Size([first_row, *[0] * (local.dim() - 1)])
        shard.first_row = first_row
        shard._chunks = [ChunkStorageMetadata(offsets=offsets, sizes=local.shape)] if len(local) else []
        shard._whole = torch.Size([num_rows, *local.shape[1:]])
        return shard

    def over(self, local: torch.Tensor) -> "RowShard":
        """Return the same shard with other memory, of the shape of this rank's part."""
        return RowShard.of(local, self.first_row, self._whole[0])

    def size(self, dim: int | None = None) -> torch.Size | int:  # type: ignore[override]
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
