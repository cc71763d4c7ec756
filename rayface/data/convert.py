"""Convert face sets of other shapes into dataset directories."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from rayface.machine import num_cpus

from .dataset import Dataset
from .samples import Fault
from .storage import DataError, read_bytes
from .writer import DEFAULT_SHARD_SIZE, ShardWriter

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_AHEAD = 64  # images in memory while they wait for their place in a shard

Progress = Callable[[int, int], None]  # (images done, images in all)


def convert_folder(
    src: str | Path,
    out: str | Path,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    layout: str = "shuffled",
    seed: int = 0,
    image_size: int = 112,
    quality: int = 95,
    name: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Convert a folder with one folder of images for each identity, into shards shuffled as a whole.

    JPEGs of image_size x image_size pixels are copied byte for byte; all other images are resized to it, not cropped
    (area where they shrink), and encoded with `quality`. Images that cannot be read are skipped and are the faults of
    the dataset returned. Symbolic links to folders, and to files outside `src`, are not followed.

    The first pass lists paths, the second reads images in their final order: memory is the list of paths and 64 images.
    Raises DataError where there is no image, or `out` is not empty; ValueError for settings out of range.
    """
    if layout not in ("shuffled", "by_identity"):
        raise ValueError(f"layout {layout!r}: must be shuffled or by_identity")
    if image_size < 1 or not 1 <= quality <= 100:
        raise ValueError(f"image_size {image_size}, quality {quality}: must be at least 1, and from 1 to 100")
    root = Path(src).expanduser().resolve()
    identities, paths, labels, faults = _list_images(root)
    keys = unique_keys(paths)
    order = np.arange(len(paths))
    if layout == "shuffled":
        order = np.random.default_rng(seed).permutation(len(paths))

    def load(number: int) -> bytes | Fault:
        return _load(root, paths[number], image_size, quality)

    out = Path(out) if "://" not in str(out) else out
    with ShardWriter(
        out,
        name=name or str(out).rstrip("/").rpartition("/")[2],
        identities=identities,
        image_size=(image_size, image_size),
        layout=layout,
        source=f"folder {root.name}",
        shard_size=shard_size,
    ) as writer:
        for done, (number, jpeg) in enumerate(_ordered(load, order.tolist()), 1):
            if isinstance(jpeg, Fault):
                faults.append(jpeg)
            else:
                writer.add(keys[number], labels[number], jpeg)
            if progress:
                progress(done, len(paths))
        if not writer.num_images:
            raise DataError(f"{root}: none of {len(paths)} images can be read; the first: {faults[0]}")
        return dataclasses.replace(writer.finish(), faults=tuple(faults))


def _ordered(load: Callable[[int], bytes | Fault], numbers: Sequence[int]) -> Iterator[tuple[int, bytes | Fault]]:
    """Yield (number, load(number)) in order, loaded by threads at most _AHEAD images ahead (OpenCV frees the GIL)."""
    waiting: deque[tuple[int, Future[bytes | Fault]]] = deque()
    with ThreadPoolExecutor(num_cpus()) as pool:
        for number in itertools.chain(numbers, itertools.repeat(-1, _AHEAD)):
            if number >= 0:
                waiting.append((number, pool.submit(load, number)))
            if waiting and (number < 0 or len(waiting) >= _AHEAD):
                first, future = waiting.popleft()
                yield first, future.result()


def _list_images(root: Path) -> tuple[list[str], list[str], list[int], list[Fault]]:
    """Return identities in the order of their names, image paths below `root`, a label for each, and refused links."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of identities")
    identities: list[str] = []
    paths: list[str] = []
    labels: list[int] = []
    faults: list[Fault] = []
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_symlink() and entry.is_dir():
            faults.append(_fault(root, entry.name, "symbolic link to a folder, not followed"))
        elif entry.is_dir():
            found = list(_walk(root, entry.name, faults))
            if found:
                labels += [len(identities)] * len(found)
                identities.append(_printable(entry.name))
                paths += found
        elif entry.name.lower().endswith(SUFFIXES):
            faults.append(_fault(root, entry.name, "image outside of an identity's folder"))
    if not paths:
        kinds = " ".join(SUFFIXES)
        raise DataError(f"{root}: no images ({kinds}) in folders below it; there must be one folder for each identity")
    return identities, paths, labels, faults


def _walk(root: Path, folder: str, faults: list[Fault]) -> Iterator[str]:
    """Yield image paths below root/folder, relative to root, in the order of their names."""
    for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
        path = f"{folder}/{entry.name}"
        if entry.is_symlink():
            if entry.is_dir():
                faults.append(_fault(root, path, "symbolic link to a folder, not followed"))
                continue
            if not Path(entry.path).resolve().is_relative_to(root):
                faults.append(_fault(root, path, "symbolic link that leads out of the folder, not followed"))
                continue
        if entry.is_dir():
            yield from _walk(root, path, faults)
        elif entry.name.lower().endswith(SUFFIXES):
            yield path


def _fault(root: Path, path: str, reason: str) -> Fault:
    return Fault(shard=str(root), member=_printable(path), offset=0, reason=reason, kind="image")


def _printable(text: str) -> str:
    """Names that are not valid UTF-8 reach Python with surrogates, which no parquet or tar file can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def unique_keys(paths: Sequence[str]) -> list[str]:
    """Return a key for every relative image path: flat, without dots (webdataset cuts keys there), unique.

    `ada/x.1.jpg` becomes `ada_x_1`; of paths that become the same, the later ones get -2, -3 and so on.
    """
    seen: set[str] = set()
    keys = []
    for path in paths:
        stem = path.rpartition(".")[0]
        base = key = "".join(c if c.isalnum() or c in "-_+=@" else "_" for c in stem)
        number = 1
        while key in seen:
            number += 1
            key = f"{base}-{number}"
        seen.add(key)
        keys.append(key)
    return keys


def _load(root: Path, path: str, size: int, quality: int) -> bytes | Fault:
    """Return an image as JPEG bytes of size x size pixels, or why it cannot be."""
    try:
        data = read_bytes(str(root / path))
    except DataError as error:
        return _fault(root, path, str(error).removeprefix(f"{root / path}: "))
    try:
        return data if _is_ready(data, size) else _encode(data, size, quality)
    except (ValueError, cv2.error) as error:
        return _fault(root, path, f"cannot be read: {' '.join(str(error).split())}")


def _is_ready(data: bytes, size: int) -> bool:
    """Tell whether the bytes are a JPEG of the right size that decodes; ValueError where it is damaged."""
    if data[:2] != b"\xff\xd8":
        return False
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    if (height, width) != (size, size) or colorspace not in ("YCbCr", "Gray", "RGB"):
        return False
    simplejpeg.decode_jpeg(data)
    return True


def _encode(data: bytes, size: int, quality: int) -> bytes:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise ValueError("not an image that OpenCV can decode" if data else "the file is empty")
    if image.shape[:2] != (size, size):
        shrinks = min(image.shape[:2]) >= size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    done, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("OpenCV cannot encode it as JPEG")
    return encoded.tobytes()


CONVERTERS: dict[str, Callable[..., Dataset]] = {"folder": convert_folder}
