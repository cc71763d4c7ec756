"""Sampling of the classes of a step: positives plus uniformly random negatives, in O(sample) time and memory."""

import hashlib

import torch
from torch import Tensor


def keyed_generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a generator that depends only on the key, such as (seed, step, rank).

    A CPU and a GPU draw different numbers from it, and so do models of GPUs above some 40,000 at a time.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def sample_without_replacement(population: int, size: int, generator: torch.Generator) -> Tensor:
    """Return a uniformly random subset of range(population), sorted int64 (size,), in O(size) memory.

    Drawing with replacement is symmetric in the numbers: given the count of distinct ones, every set of that size is
    equally likely. Dropping a uniformly random surplus keeps that property.
    """
    device = generator.device
    if not 0 <= size <= population:
        raise ValueError(f"sample size {size} must be between 0 and the population of {population}")
    if 2 * size > population:
        kept = torch.ones(population, dtype=torch.bool, device=device)
        kept[sample_without_replacement(population, population - size, generator)] = False
        return kept.nonzero().squeeze(1)
    distinct = torch.empty(0, dtype=torch.int64, device=device)
    while distinct.numel() < size:
        # a draw is new with probability > 1/2, so few rounds are enough
        missing = size - distinct.numel()
        drawn = torch.randint(population, (missing + missing // 8 + 16,), generator=generator, device=device)
        distinct = torch.unique(torch.cat([distinct, drawn]))
    surplus = distinct.numel() - size
    if surplus:
        dropped = torch.randperm(distinct.numel(), generator=generator, device=device)[:surplus]
        kept = torch.ones(distinct.numel(), dtype=torch.bool, device=device)
        kept[dropped] = False
        distinct = distinct[kept]
    return distinct


def sample_rows(num_rows: int, positives: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return the rows a step uses: all positives, filled up with random others to `size` rows.

    Args:
        num_rows: rows of this rank's class range.
        positives: (P,) int64, sorted and distinct rows that are targets of the batch.
        size: wanted number of rows; more positives than that are all kept, alone.

    Returns:
        sorted int64 rows, (max(P, size),).
    """
    num_positives = positives.numel()
    if num_positives >= size:
        return positives
    drawn = sample_without_replacement(num_rows - num_positives, size - num_positives, generator)
    # the j-th negative row: j plus the number of positives at or below it
    gaps = positives - torch.arange(num_positives, device=positives.device)
    negatives = drawn + torch.searchsorted(gaps, drawn, right=True)
    return torch.cat([positives, negatives]).sort().values
