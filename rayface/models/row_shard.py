"""Row shards of a logical tensor for torch.distributed.checkpoint, with row ranges of any size.

That module is imported when it asks for a shard: it takes 0.7 s of CPU time, and shards exist from the first step on.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem


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
    _local: torch.Size
    _whole: torch.Size

    @staticmethod
    def of(local: torch.Tensor, first_row: int, num_rows: int) -> "RowShard":
        shard = torch.Tensor._make_subclass(RowShard, local.detach())
        shard.first_row = first_row
        shard._local = local.shape
        shard._whole = torch.Size([num_rows, *local.shape[1:]])
        return shard

    def over(self, local: torch.Tensor) -> "RowShard":
        """Return the same shard over other memory, of the shape of this rank's part."""
        return RowShard.of(local, self.first_row, self._whole[0])

    def size(self, dim: int | None = None) -> torch.Size | int:  # type: ignore[override]
        """Return the size of the logical tensor, which DCP compares with the saved one."""
        return self._whole if dim is None else self._whole[dim]

    def __create_write_items__(self, fqn: str, value: object) -> "list[WriteItem]":
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        properties = TensorProperties.create_from_tensor(self)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self._whole),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> "list[ChunkStorageMetadata]":
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        offsets = torch.Size([self.first_row, *[0] * (len(self._local) - 1)])
        return [ChunkStorageMetadata(offsets=offsets, sizes=self._local)] if self._local[0] else []

    def __get_tensor_shard__(self, index: "MetadataIndex") -> torch.Tensor:
        return self.as_subclass(torch.Tensor)
