"""Tables beside a converted dataset: every lost image, and measures of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rayface.data.conversion.work_folder import WorkFolder, note_of, read_table
from rayface.storage import atomic_stream, join

LOST = "lost.parquet"
MEASURES = "measures.parquet"
_LOST_SCHEMA = pa.schema([("key", pa.string()), ("kind", pa.string()), ("fault", pa.string())])


def write_lost(work: WorkFolder, num_units: int) -> None:
    """Write lost.parquet, key, kind and fault of every image that could not be read, if there is any."""

    def tables() -> Iterator[pa.Table]:
        for number in range(num_units):
            if lost := note_of(read_table(work.spilled(number)))["lost"]:
                yield pa.table(list(map(list, zip(*lost, strict=True))), schema=_LOST_SCHEMA)

    if any(True for _ in tables()):
        with atomic_stream(join(work.out, LOST)) as stream, pq.ParquetWriter(stream, _LOST_SCHEMA) as writer:
            for table in tables():
                writer.write_table(table)


def write_measures(work: WorkFolder, num_shards: int, measures: Sequence[str]) -> None:
    """Write measures.parquet, key, label and measures of every image in the order of the shards, if there are any."""
    if not measures:
        return
    types = [("key", pa.string()), ("label", pa.int32()), *((name, pa.float32()) for name in measures)]
    schema = pa.schema(types)
    with atomic_stream(join(work.out, MEASURES)) as stream, pq.ParquetWriter(stream, schema) as writer:
        for number in range(num_shards):
            table = read_table(work.shard(number)).select(schema.names)
            writer.write_table(table.replace_schema_metadata(None))
