"""Write a dataset as one folder of images for each identity."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from rayface.data.dataset import Dataset
from rayface.data.output_folder import new_folder
from rayface.data.shards.members import image_name
from rayface.data.shards.samples import Fault
from rayface.data.sources.keys import flat_key, numbered_keys
from rayface.data.targets.samples import Written, identity_of, read_rows
from rayface.storage import DataError, on_disk

_UNSAFE = re.compile(r'[\x00-\x1f/\\:*?"<>|]')
_LONGEST = 200  # bytes of a name; file systems allow 255


def write_folder(dataset: Dataset, out: str) -> Written:
    """Write every image as OUT/IDENTITY/KEY.jpg, or by its format, with its bytes unchanged.

    Names that a file system does not allow are changed; of equal ones, the later ones get -2, -3 and so on.

    Raises:
        DataError: `out` is not empty, not on a local disk, or cannot be written.
    """
    names = [file_name(identity_of(dataset, label)) for label in range(dataset.num_classes)]
    folders = list(numbered_keys(names))
    with new_folder(str(on_disk(out, "convert.out")), set(folders), key="convert.out") as root:
        try:
            return _write(dataset, root, folders)
        except OSError as error:
            reason = f"cannot be written: {error.strerror}: choose another folder"
            raise DataError(f"convert.out: {root}: {reason}") from None


def _write(dataset: Dataset, root: str, folders: Sequence[str]) -> Written:
    """Write the images into `folders`, by label."""
    faults: list[Fault] = []
    keys = (key for batch in dataset.key_batches() for key in batch.to_pylist())
    num_images = 0
    for label in np.unique(dataset.index.label).tolist():
        os.mkdir(os.path.join(root, folders[label]))
    rows = np.arange(dataset.num_images)
    for key, label, sample in zip(keys, dataset.index.label.tolist(), read_rows(dataset, rows), strict=True):
        if isinstance(sample, Fault):
            faults.append(sample)
            continue
        _write_new(os.path.join(root, folders[label]), file_name(flat_key(key)), sample.jpeg)
        num_images += 1
    return Written(num_images=num_images, num_files=num_images, faults=tuple(faults))


def file_name(text: str) -> str:
    """Return a name that every file system allows, and that is neither hidden nor leads out of its folder."""
    name = _UNSAFE.sub("_", unicodedata.normalize("NFC", text)).strip(". ") or "_"
    return name.encode()[:_LONGEST].decode("utf-8", "ignore")


def _write_new(folder: str, key: str, image: bytes) -> None:
    """Write an image into a file that does not exist yet, numbered if it does."""
    path, number = os.path.join(folder, image_name(key, image)), 1
    while os.path.exists(path):
        number += 1
        path = os.path.join(folder, image_name(f"{key}-{number}", image))
    with open(path, "xb") as file:
        file.write(image)
