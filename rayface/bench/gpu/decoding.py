"""Part d: images a second of decoding on all cores, and of augmentation on the device.

rayface decodes with simplejpeg and OpenCV. Where these are missing, other libraries show what the cores can do.
"""

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.bench.gpu.case import Case, Kit, Measured
from rayface.bench.gpu.measure import median_ms
from rayface.data.images import augment
from rayface.machine import num_cpus

Image = NDArray[np.uint8]  # (height, width, 3) RGB
_SIZE, _QUALITY, _TASK = 112, 95, 64
_EXTRA = {"shift": 4, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
_NONE = dict.fromkeys(_EXTRA, 0)


@dataclass(frozen=True)
class Codec:
    """A library that writes and reads JPEGs."""

    encode: Callable[[Image], bytes]
    decode: Callable[[bytes], Image]


def _simplejpeg(library: Any) -> Codec:
    return Codec(lambda image: library.encode_jpeg(image, quality=_QUALITY), library.decode_jpeg)


def _opencv(library: Any) -> Codec:
    def encode(image: Image) -> bytes:
        bgr = np.ascontiguousarray(image[..., ::-1])
        return bytes(library.imencode(".jpg", bgr, [library.IMWRITE_JPEG_QUALITY, _QUALITY])[1])

    def decode(data: bytes) -> Image:
        bgr = library.imdecode(np.frombuffer(data, np.uint8), library.IMREAD_COLOR)
        return library.cvtColor(bgr, library.COLOR_BGR2RGB)

    return Codec(encode, decode)


def _pillow(library: Any) -> Codec:
    import io

    def encode(image: Image) -> bytes:
        stream = io.BytesIO()
        library.fromarray(image).save(stream, "JPEG", quality=_QUALITY)
        return stream.getvalue()

    return Codec(encode, lambda data: np.asarray(library.open(io.BytesIO(data)).convert("RGB")))


def _torchvision(library: Any) -> Codec:
    def encode(image: Image) -> bytes:
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return library.encode_jpeg(tensor, quality=_QUALITY).numpy().tobytes()

    def decode(data: bytes) -> Image:
        found = library.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return found.permute(1, 2, 0).numpy()

    return Codec(encode, decode)


# The module to import and what makes a codec of it, the ones that rayface uses first.
CODECS: dict[str, tuple[str, Callable[[Any], Codec]]] = {
    "simplejpeg": ("simplejpeg", _simplejpeg),
    "cv2": ("cv2", _opencv),
    "PIL": ("PIL.Image", _pillow),
    "torchvision": ("torchvision.io", _torchvision),
}


@dataclass(frozen=True, kw_only=True)
class DecodingRate(Measured):
    """Of drawn JPEGs of 112 x 112 pixels."""

    images_per_s: float
    threads: int
    kilobytes: float
    """Of an image."""


@dataclass(frozen=True, kw_only=True)
class AugmentationRate(Measured):
    """Of images in the host's pinned memory to normalised ones on the device."""

    images_per_s: float
    batch_size: int
    batch_ms: float


def installed() -> list[str]:
    """Return the libraries that are installed, the ones that rayface uses first."""
    return [name for name in CODECS if importlib.util.find_spec(name) is not None]


def cases(kit: Kit) -> Iterator[Case]:
    """Yield each installed library on all cores and on one, then augmentation."""
    names, count = installed(), 64 if kit.mini else 20_000
    if not names:
        yield Case(name="decode", run=_no_decoder)
    for name in names:
        yield Case(name=f"decode, {name}", run=partial(decoding_rate, name, count, num_cpus()), seconds=3)
    for name in names[:2]:
        run = partial(decoding_rate, name, max(1, count // 8), 1)
        yield Case(name=f"decode, {name}, one thread", run=run, seconds=3)
    batch = 16 if kit.mini else 512
    for title, options in (("mirrored", _NONE), ("all", _EXTRA)):
        yield Case(name=f"augment, {title}", run=partial(augmentation_rate, batch, kit.device, options), seconds=3)


def _no_decoder() -> Measured:
    return Measured(note=f"no decoder installed: none of {', '.join(CODECS)}")


def decoding_rate(name: str, count: int, threads: int) -> DecodingRate:
    """Decode drawn images in threads."""
    module, make = CODECS[name]
    codec = make(importlib.import_module(module))
    files = [codec.encode(image) for image in _drawn(min(count, 256))]
    todo = [files[k % len(files)] for k in range(count)]
    tasks = [todo[k : k + _TASK] for k in range(0, count, _TASK)]

    def work(task: list[bytes]) -> None:
        for data in task:
            codec.decode(data)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, tasks[:threads]))  # starts the threads
        start = time.perf_counter()
        list(pool.map(work, tasks))
        seconds = time.perf_counter() - start
    shape = codec.decode(files[0]).shape
    return DecodingRate(
        passed=shape == (_SIZE, _SIZE, 3),
        images_per_s=count / seconds,
        threads=threads,
        kilobytes=sum(map(len, files)) / len(files) / 1e3,
    )


def augmentation_rate(batch: int, device: str, options: dict[str, Any]) -> AugmentationRate:
    """Copy batches to the device and augment them there, as a training step does."""
    images = torch.from_numpy(np.stack(list(_drawn(min(batch, 64))))).repeat(-(-batch // 64), 1, 1, 1)[:batch]
    images = images.pin_memory() if device == "cuda" else images
    generator = torch.Generator().manual_seed(0)

    def work() -> None:
        there = images.to(device, non_blocking=True)
        found = augment(there, slice(0, len(images)), len(images), generator, flip=True, **options)
        found.contiguous(memory_format=torch.channels_last)

    milliseconds = median_ms(work, device, warm_up=3, repeats=9)
    return AugmentationRate(
        images_per_s=len(images) / milliseconds * 1e3, batch_size=len(images), batch_ms=milliseconds
    )


def _drawn(count: int) -> Iterator[Image]:
    """Yield smooth pictures with some grain, which compress about as faces do."""
    random = np.random.default_rng(0)
    for _ in range(count):
        coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 8, 8)))
        smooth = torch.nn.functional.interpolate(coarse, size=(_SIZE, _SIZE), mode="bicubic")[0].permute(1, 2, 0)
        grain = random.normal(0, 4, (_SIZE, _SIZE, 1))
        yield np.ascontiguousarray((smooth.numpy() + grain).clip(0, 255), np.uint8)
