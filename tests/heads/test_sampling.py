"""Row sampling: every set equally likely, positives always in, cost of the sample."""

import itertools

import pytest
import torch

from rayface.heads.sampling import keyed_generator, sample_rows, sample_without_replacement


@pytest.mark.parametrize(("population", "size"), [(6, 2), (6, 4), (7, 3), (5, 5), (5, 0)])
def test_sample_without_replacement_draws_every_subset_equally_often(population: int, size: int) -> None:
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
def test_sample_rows_with_positives_keeps_them_and_draws_others_uniformly(size: int, positives: list[int]) -> None:
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


def test_sample_of_a_huge_population_draws_as_many_numbers_as_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand of ten billion rows."""
    drawn, draw = [], torch.randint

    def counted(high: int, size: tuple[int], **arguments) -> torch.Tensor:
        drawn.append(size[0])
        return draw(high, size, **arguments)

    monkeypatch.setattr(torch, "randint", counted)
    chosen = sample_without_replacement(10**10, 10_000, torch.Generator().manual_seed(0))
    assert len(chosen) == 10_000
    assert sum(drawn) < 12_000


def test_keyed_generator_with_another_key_draws_other_rows() -> None:

    def draw(*key: int) -> list[int]:
        return sample_without_replacement(1000, 50, keyed_generator("cpu", *key)).tolist()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({tuple(draw(seed, step, rank)) for seed in (0, 1) for step in (0, 1) for rank in (0, 1)}) == 8


def test_sample_larger_than_its_population_raises_one_line() -> None:
    with pytest.raises(ValueError, match="between 0 and the population of 3"):
        sample_without_replacement(3, 4, torch.Generator())
