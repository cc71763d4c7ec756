"""Tar shards of faces, in one place to import from: open, scan, read and write datasets.

A dataset is a folder of WebDataset tars (KEY.jpg + KEY.cls) with dataset.json, index.parquet and identities.parquet.
"""

from .dataset import Dataset, Shard, open_dataset, refuse_corruption
from .random_access import read_samples
from .samples import Fault, Sample, SampleIndex, scan_shard
from .storage import DataError
from .writer import DEFAULT_SHARD_SIZE, ShardWriter, write_dataset

__all__ = [
    "DEFAULT_SHARD_SIZE",
    "DataError",
    "Dataset",
    "Fault",
    "Sample",
    "SampleIndex",
    "Shard",
    "ShardWriter",
    "open_dataset",
    "read_samples",
    "refuse_corruption",
    "scan_shard",
    "write_dataset",
]
