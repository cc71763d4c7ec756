"""A teacher's embeddings of the training data, as arrays in the order of the dataset."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rayface.storage import DataError
from rayface.training import teacher_cache
from rayface.training.teacher_cache import BY_CLASS, BY_SAMPLE, _mean, _order, by_class, by_sample
from tests.keyed_dataset import embed_keyed, keyed_dataset


def test_order_of_parts_in_any_order_puts_targets_where_the_dataset_has_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = keyed_dataset(tmp_path, monkeypatch)
    embedded = embed_keyed(dataset, tmp_path / "embeddings", monkeypatch)
    parts = sorted(path.name for path in embedded.glob("*.parquet"))
    out = np.zeros((12, 2), np.float16)
    _order(embedded, {"parts": [{"path": name} for name in parts[::-1]]}, dataset, out)
    assert out[:, 0].tolist() == list(range(12))


def test_mean_of_classes_leaves_out_corrupt_samples_and_empty_classes() -> None:
    samples = np.array([[1, 0], [0, 1], [np.nan, np.nan], [0, 3]], np.float16)
    out = np.zeros((3, 2), np.float16)
    _mean(samples, np.array([0, 0, 0, 1]), out)
    assert np.allclose(out[0], [0.5**0.5, 0.5**0.5], atol=1e-3)
    assert out[1].tolist() == [0, 1]
    assert np.isnan(out[2]).all()


def test_means_of_classes_are_made_anew_for_other_labels_only(tmp_path: Path) -> None:
    np.save(tmp_path / BY_SAMPLE, np.array([[1, 0], [0, 1], [0, -1]], np.float16))
    found = []
    for labels in ([0, 1, 1], [0, 1, 1], [1, 0, 1]):
        dataset = SimpleNamespace(index=SimpleNamespace(label=np.array(labels, np.int32)), num_classes=2)
        teacher_cache._fill_by_class(tmp_path, dataset, 2)  # type: ignore[arg-type]
        found.append(((tmp_path / BY_CLASS).stat().st_ino, by_class(tmp_path, 2)[0].tolist()))
    assert found[0] == found[1]
    assert found[2] == (found[2][0], [0, 1])


@pytest.mark.parametrize(("name", "read"), [(BY_SAMPLE, by_sample), (BY_CLASS, by_class)])
def test_cache_of_another_length_is_refused_in_one_line(tmp_path: Path, name: str, read: object) -> None:
    np.save(tmp_path / name, np.zeros((5, 2), np.float16))
    assert read(tmp_path, 5).shape == (5, 2)  # type: ignore[operator]
    with pytest.raises(DataError, match=r"^train.teacher_cache: .* has 5 rows, the data 6: delete the file") as caught:
        read(tmp_path, 6)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_mean_of_classes_in_any_order_gives_directions() -> None:
    samples = np.array([[1, 0], [0, 1], [np.nan, np.nan], [0, -1]], np.float16)
    out = np.empty((4, 2), np.float16)
    teacher_cache._mean(samples, np.array([2, 2, 2, 0]), out)
    np.testing.assert_allclose(out[[2, 0]], [[math.sqrt(0.5)] * 2, [0, -1]], atol=1e-3)
    assert np.isnan(out[[1, 3]]).all()
