"""The class pool: what a write changes, and that an undo takes all of it back."""

import torch

from rayface.heads.class_pool import ClassPool


def units(*shape: int) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def test_write_of_new_and_known_identities_fills_the_slots_in_turn() -> None:
    pool, rows = ClassPool(units(2, 3, 4)), units(5, 4)
    written = pool.write(rows, [7, 8, 7, 7, 8])
    assert torch.equal(pool.rows[0, 0], rows[3])
    assert torch.equal(pool.rows[1, 0], rows[2])
    assert torch.equal(pool.rows[:, 1], torch.stack([rows[1], rows[4]]))
    assert written.second.tolist() == [0, 1]


def test_undo_of_a_write_that_replaced_identities_leaves_the_pool_as_it_was() -> None:
    pool = ClassPool(units(2, 3, 4))
    second = pool.write(units(3, 4), [1, 2, 3]).second
    assert (second.dtype, second.tolist()) == (torch.int64, [])
    pool.keep()
    before, links = pool.rows.clone(), {name: t.clone() for name, t in pool.columns.tensors().items()}
    written = pool.write(units(6, 4), [2, 4, 5, 4, 6, 1])
    assert written.second.tolist() == [0]  # of 4; 6 and 1 are new to their columns
    assert not torch.equal(pool.rows, before)
    pool.undo(written)
    assert torch.equal(pool.rows, before)
    assert all(torch.equal(t, links[name]) for name, t in pool.columns.tensors().items())
    assert [pool.columns.column_of(identity) for identity in range(1, 5)] == [0, 1, 2, -1]


def test_cosines_are_to_slot_0_and_to_slot_1_of_the_identities_that_were_known() -> None:
    pool, rows = ClassPool(units(2, 3, 4)), units(3, 4)
    pool.write(rows[:2], [1, 2])
    written = pool.write(rows[2:], [2])
    first, second = pool.cosines(units(5, 4), written)
    assert torch.equal(first, units(5, 4) @ pool.rows[0].T)
    assert torch.equal(second[:, [0, 2]], first[:, [0, 2]])
    torch.testing.assert_close(second[:, 1], units(5, 4) @ rows[2])
