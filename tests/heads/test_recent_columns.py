"""The least-recently-used map from identities to columns, beside a plain list."""

import random

import pytest
import torch

from rayface.heads.recent_columns import RecentColumns, Use


class PlainColumns:
    """The map as a list of [identity, column, next slot], least recently used first."""

    def __init__(self, num_columns: int) -> None:
        self.num_columns, self.entries = num_columns, []

    def use(self, identity: int) -> Use:
        for entry in self.entries:
            if entry[0] == identity:
                self.entries.remove(entry)
                self.entries.append([identity, entry[1], 1 - entry[2]])
                return Use(entry[1], entry[2], True)
        full = len(self.entries) == self.num_columns
        column = self.entries.pop(0)[1] if full else len(self.entries)
        self.entries.append([identity, column, 1])
        return Use(column, 0, False)

    def column_of(self, identity: int) -> int:
        return next((column for other, column, _ in self.entries if other == identity), -1)


def random_uses(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(20), k=count)


def assert_equal(ours: RecentColumns, plain: PlainColumns) -> None:
    assert [ours.column_of(i) for i in range(20)] == [plain.column_of(i) for i in range(20)]


def test_recent_columns_of_random_uses_equal_a_plain_list_with_and_without_undo() -> None:
    ours, plain = RecentColumns(6), PlainColumns(6)
    for number in range(60):
        if number % 3:
            tensors = {name: tensor.clone() for name, tensor in ours.tensors().items()}
            for identity in random_uses(number % 17, -number):
                ours.use(identity)
            ours.undo()
            assert all(torch.equal(tensor, tensors[name]) for name, tensor in ours.tensors().items())
        uses = random_uses(number % 7, number)
        assert [ours.use(identity) for identity in uses] == [plain.use(identity) for identity in uses]
        ours.commit()
        assert_equal(ours, plain)


def test_recent_columns_with_one_column_replace_it_and_undo_that() -> None:
    ours = RecentColumns(1)
    assert ours.use(4) == Use(0, 0, False)
    ours.commit()
    assert [ours.use(4), ours.use(5), ours.use(5)] == [Use(0, 1, True), Use(0, 0, False), Use(0, 1, True)]
    assert (ours.column_of(4), ours.column_of(5)) == (-1, 0)
    ours.undo()
    assert (ours.column_of(4), ours.column_of(5)) == (0, -1)
    assert ours.use(4) == Use(0, 1, True)


@pytest.mark.parametrize("before", [40, 3])  # all columns in use, and some free
def test_recent_columns_filled_by_their_tensors_continue_as_the_original(before: int) -> None:
    first, second = RecentColumns(6), RecentColumns(6)
    for identity in random_uses(before, 1):
        first.use(identity)
    second.use(19)
    for name, tensor in second.tensors().items():
        tensor.copy_(first.tensors()[name])
    second.refresh()
    columns = [first.column_of(identity) for identity in range(-1, 20)]
    assert [second.column_of(identity) for identity in range(-1, 20)] == columns
    assert columns[0] == -1
    second.undo()  # of what was before
    uses = [*reversed(random_uses(before, 1)), *random_uses(40, 2)]
    assert [first.use(identity) for identity in uses] == [second.use(identity) for identity in uses]
