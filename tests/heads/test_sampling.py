"""Row sampling: every set equally likely, positives always in, cost of the sample."""

import itertools
import time

import pytest
import torch

from rayface.heads.sampling import keyed_generator, sample_rows, sample_without_replacement


@pytest.mark.parametrize(("population", "size"), [(6, 2), (6, 4), (7, 3), (5, 5), (5, 0)])
def test_every_subset_is_equally_likely(population: int, size: int) -> None:
    """Chi-square over all subsets, so inclusion and joint inclusion are uniform too."""
    trials = 3000
    generator = torch.Generator().manual_seed(1)
    counts = dict.fromkeys(itertools.combinations(range(population), size), 0)
    for _ in range(trials):
        counts[tuple(sample_without_replacement(population, size, generator).tolist())] += 1
    expected = trials / len(counts)
    chi = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = len(counts) - 1
    assert chi <= freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations


@pytest.mark.parametrize(("size", "positives"), [(5, [2, 3, 9]), (8, [0, 11]), (4, []), (2, [1, 4, 6])])
def test_positives_are_kept_and_negatives_uniform(size: int, positives: list[int]) -> None:
    """A row that is no target comes in with probability (size - P) / (n - P)."""
    rows, trials = 12, 3000
    generator = torch.Generator().manual_seed(2)
    counts = torch.zeros(rows)
    for _ in range(trials):
        chosen = sample_rows(rows, torch.tensor(positives, dtype=torch.int64), size, generator)
        assert len(chosen) == max(size, len(positives))
        assert torch.equal(chosen, torch.unique(chosen))
        counts[chosen] += 1
    chance = max(0, size - len(positives)) / (rows - len(positives))
    for row in range(rows):
        wanted = 1.0 if row in positives else chance
        assert abs(counts[row] / trials - wanted) <= 5 * (chance * (1 - chance) / trials) ** 0.5


def test_cost_is_that_of_the_sample() -> None:
    """Ten thousand of ten billion rows: neither time nor memory of the population."""
    start = time.perf_counter()
    chosen = sample_without_replacement(10**10, 10_000, torch.Generator().manual_seed(0))
    assert len(chosen) == 10_000
    assert time.perf_counter() - start < 2


def test_key_decides() -> None:
    """The same key, the same rows; another step or rank, others."""

    def draw(*key: int) -> list[int]:
        return sample_without_replacement(1000, 50, keyed_generator("cpu", *key)).tolist()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({tuple(draw(seed, step, rank)) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)}) == 8


def test_refuses_more_than_there_is() -> None:
    """A sample larger than its population cannot be."""
    with pytest.raises(ValueError, match="between 0 and the population of 3"):
        sample_without_replacement(3, 4, torch.Generator())
