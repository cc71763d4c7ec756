"""Row shards of a logical tensor for torch.distributed.checkpoint, with row ranges of any size."""

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class RowShard(torch.Tensor):
    """A rank's rows of a logical tensor, with a class range of any size; shares memory with `local`.

    DTensor's Shard(0) fixes the sizes of the shards. This class implements DCP's protocol, which requires a tensor
    subclass, for shards of any size, so a checkpoint holds one (C, ...) tensor and loads on any number of ranks.

    Args:
        local: (rows, ...), this rank's rows; loading writes into it.
        first_row: index of the first row.
        num_rows: number of rows of the logical tensor, C.
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
        """Return the same shard over other memory, of the shape of this rank's part."""
        return RowShard.of(local, self.first_row, self._whole[0])

    def size(self, dim: int | None = None) -> torch.Size | int:  # type: ignore[override]
        """Return the size of the logical tensor, which DCP compares with the saved one."""
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
