"""Datasets of drawn faces: nobody's likeness, deterministic, and hard enough for training to be meaningful."""

import csv
import io
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from rayface.data.dataset import Dataset
from rayface.data.drawing import draw_face, sample_identity, sample_view
from rayface.data.writer import write_dataset
from rayface.machine import num_cpus
from rayface.pools import process_pool
from rayface.progress import phase

NUM_FOLDS = 10
_CHUNK = 64  # images per task
_WORTH_A_PROCESS = 512  # starting a process takes as long as drawing about that many images

Sample = tuple[str, int, bytes]


def synthesize(
    out: str | Path,
    *,
    identities: int = 200,
    images_per_identity: int = 20,
    seed: int = 0,
    image_size: int = 112,
    shard_size: int = 256 * 2**20,
    processes: int | None = None,
    pairs: int = 0,
) -> Dataset:
    """Draw `identities` people, `images_per_identity` times each, and write the images globally shuffled to `out`.

    The bytes depend on all arguments except `processes`. Different seeds give different people: draw an evaluation set
    with another seed and `pairs` > 0.

    Args:
        image_size: side in pixels; even, 16 to 256.
        shard_size: maximum bytes of a shard.
        processes: number of processes; None: one for each CPU available to this process.
        pairs: number of verification pairs in `out`/pairs.csv (path_a, path_b, is_same, fold), a multiple of 20: ten
            folds without a common person, half of the pairs of each of one person.

    Raises:
        ValueError: an argument out of range, or `out` is not empty.
    """
    _check(identities, images_per_identity, seed, image_size, processes, pairs)
    workers = processes or min(num_cpus(), 1 + identities * images_per_identity // _WORTH_A_PROCESS)
    rows = _pair_rows(identities, images_per_identity, seed, pairs) if pairs else []
    num_images = identities * images_per_identity
    return write_dataset(
        out,
        _with_progress(_samples(identities, images_per_identity, seed, image_size, workers), num_images),
        name=f"drawn-{identities}x{images_per_identity}-seed{seed}",
        identities=[f"identity-{number:06d}" for number in range(identities)],
        image_size=(image_size, image_size),
        layout="shuffled",
        licence="CC0-1.0",
        source="drawn by rayface synth",
        shard_size=shard_size,
        pairs=_csv(rows) if rows else None,
    )


def _check(
    identities: int, images_per_identity: int, seed: int, image_size: int, processes: int | None, pairs: int
) -> None:
    for field, value, low, high in (
        ("identities", identities, 1, 10**6),
        ("images_per_identity", images_per_identity, 1, 10**4),
        ("seed", seed, 0, 2**32 - 1),
        ("image_size", image_size, 16, 256),
        ("processes", 1 if processes is None else processes, 1, 1024),
        ("pairs", pairs, 0, 10**7),
    ):
        if not low <= value <= high:
            raise ValueError(f"{field} {value}: must lie between {low} and {high}")
    if image_size % 2:
        raise ValueError(f"image_size {image_size}: must be even; take {image_size + 1}")
    if pairs % (2 * NUM_FOLDS):
        raise ValueError(f"pairs {pairs}: must be a multiple of {2 * NUM_FOLDS}, for {NUM_FOLDS} balanced folds")


def _with_progress(samples: Iterator[Sample], num_images: int) -> Iterator[Sample]:
    """Yield `samples` as a phase, which begins with the first of them: when the folder is known to be free."""
    with phase("draw images", parts=num_images, rows=num_images) as current:
        for sample in samples:
            yield sample
            current.advance()


def _key(number: int, index: int) -> str:
    return f"{number:06d}_{index:04d}"


def _samples(identities: int, images: int, seed: int, size: int, workers: int) -> Iterator[Sample]:
    """Yield every sample once, in an order set by the seed."""
    order = np.random.default_rng(np.random.SeedSequence((seed, 0, 0, 2))).permutation(identities * images)
    tasks = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]
    if workers == 1:
        for task in tasks:
            yield from _draw(task, images, seed, size)
        return
    with process_pool(workers) as pool:
        yield from _in_order(pool, tasks, images, seed, size, ahead=4 * workers)


def _in_order(
    pool: Executor, tasks: list[np.ndarray], images: int, seed: int, size: int, ahead: int
) -> Iterator[Sample]:
    """Yield the samples of the tasks in order, with at most `ahead` tasks in flight."""
    waiting: deque[Future[list[Sample]]] = deque()
    for task in tasks:
        waiting.append(pool.submit(_draw, task, images, seed, size))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


def _draw(task: np.ndarray, images: int, seed: int, size: int) -> list[Sample]:
    """Draw and encode the samples numbered in `task`."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # threads slow down images this small, and other processes need the CPUs
    try:
        samples = []
        for number, index in zip(*divmod(task, images), strict=True):
            view = sample_view(seed, int(number), int(index))
            image = draw_face(sample_identity(seed, int(number)), view, size)
            jpeg = simplejpeg.encode_jpeg(image, view.camera.quality, "RGB", "420")
            samples.append((_key(number, index), int(number), jpeg))
        return samples
    finally:
        cv2.setNumThreads(threads)


def _pair_rows(identities: int, images: int, seed: int, pairs: int) -> list[tuple[str, str, int, int]]:
    """Return the rows of pairs.csv, fold by fold: first pairs of one person, then of two; none twice."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, 0, 0, 3)))
    each = pairs // (2 * NUM_FOLDS)
    rows = []
    for fold, people in enumerate(np.array_split(rng.permutation(identities), NUM_FOLDS)):
        same = len(people) * images * (images - 1) // 2
        different = len(people) * (len(people) - 1) // 2 * images**2
        if min(same, different) < 2 * each:  # twice as many, so that few draws below repeat a pair
            raise ValueError(
                f"pairs {pairs}: too many for {identities} identities with {images} images each in {NUM_FOLDS} folds; "
                "draw more identities or fewer pairs"
            )
        for is_same in (1, 0):
            rows += [(a, b, is_same, fold) for a, b in _distinct_pairs(rng, people, images, each, bool(is_same))]
    return rows


def _distinct_pairs(
    rng: np.random.Generator, people: np.ndarray, images: int, count: int, same: bool
) -> list[tuple[str, str]]:
    """Return member names of `count` pairs of images of one person, or of two."""
    found: dict[tuple[str, str], None] = {}
    while len(found) < count:
        first, second = rng.choice(people, 2, replace=False)
        i, j = rng.choice(images, 2, replace=False) if same else rng.integers(images, size=2)
        a, b = sorted((f"{_key(first, i)}.jpg", f"{_key(first if same else second, j)}.jpg"))
        found[a, b] = None
    return list(found)


def _csv(rows: list[tuple[str, str, int, int]]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("path_a", "path_b", "is_same", "fold"))
    writer.writerows(rows)
    return file.getvalue().encode()
