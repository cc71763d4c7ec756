"""webdataset's DataLoader as its documentation shows it, to compare with."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

_STARTED_BATCHES = 2  # of a DataLoader's worker


@contextmanager
def webdataset_batches(
    paths: Sequence[str], *, batch_size: int, workers: int, num_batches: int
) -> Iterator[Iterator[torch.Tensor]]:
    """Give `num_batches` batches of images in [0, 1], float32 (B, 3, h, w), after those that the workers start with.

    The workers' streams end after all batches are read, at the end of the context: a worker that is stopped while it
    hands over a batch may abort (PyTorch 2.13).
    """
    import webdataset

    first = _STARTED_BATCHES * workers + 1
    each = -(-(first + num_batches) // workers) + _STARTED_BATCHES
    images = (
        webdataset.WebDataset(list(paths), shardshuffle=False, empty_check=False)
        .repeat()
        .shuffle(1000)
        .decode("torchrgb")
        .to_tuple("jpg;jpeg;png", "cls")
        .with_epoch(each * batch_size)
    )
    loader = torch.utils.data.DataLoader(
        images, batch_size=batch_size, num_workers=workers, multiprocessing_context="spawn"
    )
    batches = iter(loader)
    for _ in range(first):
        next(batches)
    yield (own for own, _ in itertools.islice(batches, num_batches))
    for _ in batches:
        pass
