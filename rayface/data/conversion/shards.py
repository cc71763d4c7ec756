"""Last pass of a conversion: write each shard from the pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayface.data.conversion.shard_plan import ShardPlan
from rayface.data.conversion.spill import Record, key_digest, read_records
from rayface.data.conversion.work_folder import WorkFolder, note_of, read_table, write_table
from rayface.data.manifest import ShardEntry
from rayface.data.writer import ShardFile, shard_name
from rayface.storage import DataError, Source, exists, join


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A written shard: its entry of the manifest, and the sum of its key digests, modulo 2^64."""

    number: int
    entry: ShardEntry
    digest: int


@dataclass(frozen=True, kw_only=True)
class WriteShard:
    """Writes shards by number; a shard depends only on the plan. Memory: a block, and the index of one shard.

    Attributes:
        measures: names of the measures of every image, columns of the shard's record.
    """

    plan: ShardPlan
    work: WorkFolder
    measures: tuple[str, ...] = ()

    def __call__(self, number: int) -> WrittenShard:
        """Write a shard unless it is complete and its digest recorded."""
        written = self._written(number)
        if written is not None:
            return written
        digest, measures = 0, bytearray()
        with ShardFile(join(self.work.out, shard_name(number))) as shard:
            for record in self._records(number):
                shard.add(record.key.decode(), int(self.plan.new_labels[record.label]), record.image)
                digest += key_digest(record.key)
                measures += record.measures
            entry, table = shard.finish(number)
        if entry.num_images != self.plan.counts[number]:
            raise DataError(
                f"{self.work.root}: pieces have {entry.num_images} of {self.plan.counts[number]} images of shard "
                f"{number}: delete the output folder and run again"
            )
        values = np.frombuffer(measures, np.float32).reshape(-1, len(self.measures) or 1)
        for column, name in enumerate(self.measures):
            table = table.append_column(name, pa.array(values[:, column]))
        note = {"entry": entry.model_dump(), "digest": digest % 2**64}
        write_table(self.work.shard(number), table, note)
        return WrittenShard(number=number, entry=entry, digest=digest % 2**64)

    def _written(self, number: int) -> WrittenShard | None:
        """Return a shard that was written before."""
        path = join(self.work.out, shard_name(number))
        if not exists(self.work.shard(number)) or not exists(path):
            return None
        note = note_of(read_table(self.work.shard(number)))
        entry = ShardEntry(**note["entry"])
        with Source(path) as file:
            return (
                WrittenShard(number=number, entry=entry, digest=note["digest"])
                if file.size == entry.num_bytes
                else None
            )

    def _records(self, number: int) -> Iterator[Record]:
        """Yield the records of a shard in their final order."""
        for block in self.plan.blocks(number):
            records: list[Record] = []
            for path, offset, num_bytes in block:
                with Source(path) as file:
                    data = file.read(offset, num_bytes)
                records += [record for record in read_records(data) if self.plan.new_labels[record.label] >= 0]
            records.sort()
            yield from records
