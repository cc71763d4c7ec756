"""Write a dataset as parquet files that Hugging Face's `datasets` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayface.data.dataset import Dataset
from rayface.data.output_folder import new_folder
from rayface.data.shards.members import image_name
from rayface.data.shards.samples import Fault
from rayface.data.targets.samples import Written, read_rows
from rayface.storage import atomic_stream, join

_FILE = 32_768  # images
_GROUP = 1000  # images
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(dataset: Dataset, out: str) -> Written:
    """Write OUT/train-00000-of-00005.parquet and so on, 32,768 images each: image {bytes, path} and label.

    Labels are a ClassLabel if the dataset has names of identities. Memory: 1,000 images.

    Raises:
        DataError: `out` is not empty or cannot be written.
    """
    faults: list[Fault] = []
    schema = _schema(dataset)
    keys = (key for batch in dataset.key_batches() for key in batch.to_pylist())
    starts = range(0, dataset.num_images, _FILE)
    num_images = 0
    names = [f"train-{number:05d}-of-{len(starts):05d}.parquet" for number in range(len(starts))]
    with new_folder(out, names, key="convert.out") as root:
        for name, start in zip(names, starts, strict=True):
            with atomic_stream(join(root, name)) as stream, pq.ParquetWriter(stream, schema) as writer:
                for rows in _groups(dataset, start, min(start + _FILE, dataset.num_images), keys, faults):
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    num_images += len(rows)
    return Written(num_images=num_images, num_files=len(starts), faults=tuple(faults))


def _groups(
    dataset: Dataset, first: int, last: int, keys: Iterator[str], faults: list[Fault]
) -> Iterator[list[dict[str, object]]]:
    """Yield the rows of each row group; add images that cannot be read to `faults`."""
    rows: list[dict[str, object]] = []
    labels = dataset.index.label[first:last].tolist()
    for label, sample in zip(labels, read_rows(dataset, np.arange(first, last)), strict=True):
        key = next(keys)
        if isinstance(sample, Fault):
            faults.append(sample)
            continue
        rows.append({"image": {"bytes": sample.jpeg, "path": image_name(key, sample.jpeg)}, "label": label})
        if len(rows) == _GROUP:
            yield rows
            rows = []
    if rows:
        yield rows


def _schema(dataset: Dataset) -> pa.Schema:
    label: dict[str, object] = {"dtype": "int64", "_type": "Value"}
    if dataset.identities:
        label = {"names": list(dataset.identities), "_type": "ClassLabel"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    return pa.schema([("image", _IMAGE), ("label", pa.int64())], metadata={"huggingface": json.dumps(about)})
