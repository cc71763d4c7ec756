"""Writes one set of images in the formats that `rayface convert` reads, for its benchmark."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayface.data.shards.samples import Sample
from rayface.data.sources.recordio import MAGIC
from rayface.data.targets.bin import write_pickle
from rayface.data.writer import write_dataset

Writer = Callable[[Path, Sequence[Sample]], Path]
"""Writes images into a new folder; returns the path that `convert` reads."""


def write_folder(folder: Path, samples: Sequence[Sample]) -> Path:
    for number, sample in enumerate(samples):
        own = folder / f"{sample.label:07d}"
        own.mkdir(exist_ok=True)
        (own / f"{number:08d}.jpg").write_bytes(sample.jpeg)
    return folder


def write_list(folder: Path, samples: Sequence[Sample]) -> Path:
    write_folder(folder, samples)
    paths = (f"{sample.label:07d}/{number:08d}.jpg,{sample.label}\n" for number, sample in enumerate(samples))
    (folder / "list.csv").write_text("".join(["path,label\n", *paths]))
    return folder / "list.csv"


def write_rec(folder: Path, samples: Sequence[Sample]) -> Path:
    with (folder / "train.rec").open("wb") as file:
        for number, sample in enumerate(samples):
            content = struct.pack("<IfQQ", 0, sample.label, number, 0) + sample.jpeg
            if MAGIC not in content:  # else it would have to be cut there
                file.write(MAGIC + struct.pack("<I", len(content)) + content + bytes(-len(content) % 4))
    return folder / "train.rec"


def write_zips(folder: Path, samples: Sequence[Sample]) -> Path:
    for first in range(0, len(samples), 4096):
        with zipfile.ZipFile(folder / f"0_{first // 4096}.zip", "w") as archive:
            for number, sample in enumerate(samples[first : first + 4096], first):
                archive.writestr(f"{sample.label:07d}/{number:08d}.jpg", sample.jpeg)
    return folder


def write_bin(folder: Path, samples: Sequence[Sample]) -> Path:
    with (folder / "pairs.bin").open("wb") as file:
        pairs = len(samples) // 2
        write_pickle(file, (sample.jpeg for sample in samples[: 2 * pairs]), [False] * pairs)
    return folder / "pairs.bin"


def write_tars(folder: Path, samples: Sequence[Sample]) -> Path:
    names = [str(label) for label in range(max(sample.label for sample in samples) + 1)]
    keyed = ((f"{number:08d}", sample.label, sample.jpeg) for number, sample in enumerate(samples))
    write_dataset(folder, keyed, name="bench", identities=names, image_size=None, shard_size=64 << 20)
    return folder


def write_parquet(folder: Path, samples: Sequence[Sample]) -> Path:
    images = [{"bytes": sample.jpeg, "path": f"{number:08d}.jpg"} for number, sample in enumerate(samples)]
    table = pa.table({"image": images, "label": [sample.label for sample in samples]})
    pq.write_table(table, folder / "train.parquet", row_group_size=1000)
    return folder


WRITERS: dict[str, Writer] = {
    "folder": write_folder,
    "rec": write_rec,
    "webface-zip": write_zips,
    "parquet": write_parquet,
    "webdataset": write_tars,
    "list": write_list,
    "bin": write_bin,
}
