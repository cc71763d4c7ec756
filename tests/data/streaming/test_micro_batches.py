"""A rank's part of the global batch, cut into micro batches."""

import pytest

from rayface.config import TrainConfig
from rayface.data.streaming.micro_batches import check_pieces, micro_batches
from rayface.data.streaming.sample_order import rank_rows


@pytest.mark.parametrize(("size", "limit"), [(1, None), (2, 5), (3, 2), (5, 2), (5, None), (7, 3)])
def test_micro_batches_of_any_split_cover_every_row_once(size, limit):
    ranks = [micro_batches(23, rank, size, limit) for rank in range(size)]
    assert len({len(pieces) for pieces in ranks}) == 1
    for rank, pieces in enumerate(ranks):
        rows = rank_rows(23, rank, size)
        assert [row for p in pieces for row in range(23)[p.rows]] == list(range(rows.stop - rows.start))
        assert sum(p.share for p in pieces) == pytest.approx(1)
        for number, piece in enumerate(pieces):
            assert piece.counts == [r[number].rows.stop - r[number].rows.start for r in ranks]
            assert all(0 < count <= (limit or 23) for count in piece.counts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 2, "num_workers": 3}, "train.num_workers: 3: must not exceed train.batch_size=2"),
        ({"batch_size": 5, "num_workers": 3}, "train.batch_size: 5: must leave each of 3 workers two images at once"),
        ({"batch_size": 9, "max_batch_per_worker": 2}, "train.batch_size: 9: must leave each of 1 workers two images"),
    ],
)
def test_check_pieces_with_less_than_two_images_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_pieces(TrainConfig(**settings))
