"""Layout of the global batch, and the collectives without a process group; with one, see test_margin_loss."""

import pytest
import torch

from rayface.heads.collectives import Collectives, Layout


def test_layout_of_uneven_counts_finds_rank_and_row_of_every_row() -> None:
    layout = Layout((3, 0, 2), rank=2)
    assert layout.own == slice(3, 5)
    assert not layout.even
    assert [layout.owner(row) for row in range(5)] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    with pytest.raises(IndexError):
        layout.owner(5)


def test_layout_of_uneven_counts_places_rows_in_the_padded_batch() -> None:
    """Every rank's part is padded to the largest."""
    assert Layout((3, 1, 2), rank=0).places(torch.device("cpu")).tolist() == [0, 1, 2, 3, 6, 7]
    assert Layout((2, 2), rank=1).even
    assert Layout((2, 2), rank=1).places(torch.device("cpu")).tolist() == [0, 1, 2, 3]


def test_collectives_without_a_process_group_return_their_input() -> None:
    alone = Collectives()
    layout = alone.layout(4, None)
    values = torch.arange(8.0).view(4, 2)
    assert (alone.size, alone.rank, layout.counts) == (1, 0, (4,))
    assert alone.gather(values, layout) is values
    assert alone.sum_own(values, layout) is values
    assert torch.equal(alone.sum_(values.clone()), values)
    assert torch.equal(alone.max_(values.clone()), values)


def test_gather_without_a_process_group_makes_rows_contiguous_as_with_one() -> None:
    alone, columns = Collectives(), torch.arange(8.0).view(2, 4).T
    layout = alone.layout(4, None)
    for rows in (alone.gather(columns, layout), alone.gather_labelled(columns, torch.arange(4), layout)[0]):
        assert rows.is_contiguous()
        assert torch.equal(rows, columns)


@pytest.mark.parametrize("counts", [[4, 4], [3], []])
def test_layout_with_counts_of_other_ranks_or_rows_raises_one_line(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^counts .* must be the rows of 1 ranks, 4 of rank 0$"):
        Collectives().layout(4, counts)


def test_layout_without_a_row_on_any_rank_raises_one_line_and_with_one_on_another_does_not(monkeypatch) -> None:
    alone = Collectives()
    with pytest.raises(ValueError, match=r"^batch of 0 rows: must have at least one row on one of the ranks"):
        alone.layout(0, None)
    monkeypatch.setattr(alone, "size", 2)
    assert alone.layout(0, [0, 3]).counts == (0, 3)
