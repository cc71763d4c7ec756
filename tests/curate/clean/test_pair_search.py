"""Pairs above a cosine equal those of a plain matrix product, for any tiles, axes and type of products."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rayface.curate.clean import pair_search
from rayface.curate.clean.pair_search import Apart, Pairs, PairSearch, Tile, concatenated, leading_axes, tiles
from rayface.curate.clean.stacked_rows import stack, write_rows
from rayface.curate.work_files import WorkPath
from rayface.precision import full_float32


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Products in each of the types, in blocks that do not divide the rows."""
    monkeypatch.setattr(pair_search, "product_dtype", lambda device: request.param)
    monkeypatch.setattr(pair_search, "_BLOCKS", {"cpu": (70, 150)})
    monkeypatch.setattr(pair_search, "_CHUNK", 90)
    return request.param


def drawn(rows: int, size: int, seed: int = 0) -> NDArray[Any]:
    """Rows of falling variance, of any norm, a tenth of them near another one."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, size)) / np.arange(1, size + 1) ** 0.5
    values[-rows // 10 :] = (
        values[: rows // 10 + (rows % 10 > 0)]
        + 0.2 * values[rows // 5 : rows // 5 + rows // 10 + 1][: rows // 10 + (rows % 10 > 0)]
    )
    return (values * random.choice([0.1, 1, 30], (rows, 1))).astype(np.float32)


def exact(left: NDArray[Any], right: NDArray[Any], above: float) -> list[tuple[int, int]]:
    a, b = (
        side.astype(np.float64) / np.linalg.norm(side.astype(np.float64), axis=1, keepdims=True)
        for side in (left, right)
    )
    return [(i, j) for i, j in np.argwhere(a @ b.T > above).tolist()]


def as_list(found: Pairs) -> list[tuple[int, int]]:
    return list(zip(found[0].tolist(), found[1].tolist(), strict=True))


def search(left: Any, right: Any, above: float, **more: Any) -> Pairs:
    find = PairSearch("x", left, right, above, limit=10**6, **more)
    work = tiles(len(left), None if right is None else len(right), left.shape[1], 1)
    return concatenated(find(tile) for tile in work)


@pytest.mark.parametrize("with_axes", [False, True])
@pytest.mark.parametrize("above", [0.9, 0.3, -0.05])
def test_search_with_any_axes_finds_the_pairs_of_a_plain_product(
    product: torch.dtype, above: float, with_axes: bool
) -> None:
    left, right = drawn(250, 128), drawn(170, 128, seed=1)
    axes = np.linalg.svd(left, full_matrices=False)[2].T[:, :31].astype(np.float32).copy() if with_axes else None
    found = search(left, right, above, axes=axes)
    assert as_list(found) == exact(left, right, above)
    own = search(left, None, above, axes=axes)
    assert as_list(own) == [(i, j) for i, j in exact(left, left, above) if i < j]
    assert (own[2] > above).all()


def test_search_whose_roundings_all_lower_a_cosine_finds_the_pair(product: torch.dtype) -> None:
    value = 2**-5 * (1 + 2**-8 - 2**-12)  # bfloat16 rounds it down to 2^-5
    rest = (1 - 1013 * value**2) ** 0.5
    pair = np.array([[value] * 1013 + [rest, 0], [value] * 1013 + [0, rest]], np.float32)
    rounded = torch.from_numpy(pair).bfloat16()
    error = 1013 * value**2 - float((rounded @ rounded.T)[0, 1])
    assert 2**-7 < error < 2**-6
    assert as_list(search(pair, None, 0.9964)) == [(0, 1)] == [e for e in exact(pair, pair, 0.9964) if e[0] < e[1]]


@pytest.mark.usefixtures("tf32_products")
def test_search_adds_products_in_float32_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: the bounds of the rounding errors count on it."""
    matmul, above, settings, devices = torch.backends.cuda.matmul, pair_search._above, [], []

    def as_on_a_gpu(device: torch.device) -> AbstractContextManager[None]:
        devices.append(device)
        return full_float32(torch.device("cuda"))

    def noted(*given: Any) -> Any:
        settings.append((matmul.fp32_precision, matmul.allow_bf16_reduced_precision_reduction))
        return above(*given)

    monkeypatch.setattr(pair_search, "_above", noted)
    monkeypatch.setattr(pair_search, "full_float32", as_on_a_gpu)
    PairSearch("x", drawn(20, 8), None, 0.5, limit=1000)(Tile(0, 20, 0, 20))
    assert (settings, devices) == ([("ieee", False)], [torch.device("cpu")])
    assert matmul.fp32_precision == "tf32"
    assert matmul.allow_bf16_reduced_precision_reduction


def test_search_of_a_pair_exactly_at_the_threshold_does_not_find_it(product: torch.dtype) -> None:
    pair = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, -0.5]], np.float32)  # cosine .5, without rounding
    assert as_list(search(pair, None, 0.5)) == []
    assert as_list(search(pair, None, np.nextafter(0.5, 0))) == [(0, 1)]


def test_search_of_one_pair_more_than_the_limit_is_refused() -> None:
    values = np.ones((3, 4), np.float32)
    assert len(PairSearch("x", values, None, 0.5, limit=3)(Tile(0, 3, 0, 3))[0]) == 3
    with pytest.raises(ValueError, match=r"^x 0.5: more than 2 pairs"):
        PairSearch("x", values, None, 0.5, limit=2)(Tile(0, 3, 0, 3))


def test_leading_products_of_rows_that_lie_in_the_axes_are_never_below_the_whole_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though float32 leaves nothing of the other components: their squares are the difference of two sums near 1."""
    monkeypatch.setattr(pair_search, "product_dtype", lambda device: torch.float32)
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.standard_normal((128, 31)))[0].astype(np.float32)
    values = (random.standard_normal((200, 31)) @ axes.T).astype(np.float32)
    lead = pair_search._operand(values, 0, 200, axes, "cpu").lead.double().numpy()
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    assert (lead @ lead.T >= unit @ unit.T).all()


def test_tiles_of_a_matrix_with_itself_cover_each_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_search, "_LEAST_PAIRS", 2**17)
    monkeypatch.setattr(pair_search, "_CHUNK", 128)
    for left, right in ((2500, None), (2500, 700), (3, 2000), (1, None)):
        seen = np.zeros((left, right or left), int)
        for tile in tiles(left, right, 512, 2**20):
            seen[tile.first : tile.last, tile.first_right : tile.last_right] += 1
        assert (seen[np.triu_indices(left, 1)] if right is None else seen == 1).all()
        assert seen.max() == 1


def test_tiles_of_webface42m_are_few_and_bounded() -> None:
    for rows in (2_059_906, 42_474_557):
        work = tiles(rows, None, 512, 64 * 2**20)
        assert len(work) < 6000
        assert max(tile.last - tile.first for tile in work) * 512 * 2 <= 64 * 2**20


def test_leading_axes_are_fewer_where_few_components_matter() -> None:
    random = np.random.default_rng(0)
    flat = random.standard_normal((3000, 512)).astype(np.float32)
    steep = flat * np.r_[np.ones(60), np.full(452, 0.05)].astype(np.float32)
    axes = leading_axes(steep, None, 0.8)
    assert axes is not None
    assert axes.shape == (512, 63)
    assert leading_axes(flat, None, 0.1) is None


def test_search_of_one_identity_or_known_duplicates_finds_no_pair(product: torch.dtype) -> None:
    values = drawn(600, 64)
    bounds = np.r_[0, 5, 300, 450, 451, 600]
    known = np.sort(np.array([1 * 5 + 2, 0 * 5 + 4]))
    found = search(values, None, 0.2, apart=Apart(bounds, known))
    own = np.searchsorted(bounds, np.arange(600), side="right") - 1
    wanted = [
        (i, j)
        for i, j in exact(values, values, 0.2)
        if i < j and own[i] != own[j] and (own[i], own[j]) not in ((1, 2), (0, 4))
    ]
    assert as_list(found) == wanted


def test_search_with_a_zero_center_pairs_it_with_none(product: torch.dtype) -> None:
    values = drawn(100, 32)
    values[7] = 0
    assert 7 not in np.r_[search(values, None, 0.2)[:2]]


def test_search_over_files_finds_what_it_finds_in_memory(tmp_path: Path) -> None:
    values = drawn(300, 16)
    for k, rows in enumerate(np.split(values, [50, 190])):
        write_rows(WorkPath(root=tmp_path / f"{k}.npy"), rows)
    files = stack([WorkPath(root=path) for path in sorted(tmp_path.iterdir())])
    in_memory, in_files = search(values, None, 0.6), search(files, None, 0.6)
    assert all((a == b).all() for a, b in zip(in_memory, in_files, strict=True))
    assert len(in_memory[0])
    one = PairSearch("x", files, None, 0.6, limit=10**6)(Tile(0, 300, 0, 300))
    assert as_list(one) == as_list(in_memory)
