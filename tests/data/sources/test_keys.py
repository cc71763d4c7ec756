"""Keys of converted images are clean, and unique in the simplest form."""

import pyarrow as pa
import pytest

from rayface.data.shards.tar import is_safe_name
from rayface.data.sources.keys import ColumnValues, clean_key, flat_key, keys_with_part, numbered_keys


def test_clean_key_of_any_name_is_a_relative_path_without_dots() -> None:
    assert [clean_key(key) for key in ("../../a", "/x/./y.1", "..", "b\n")] == ["a", "x/y_1", "_", "b_"]


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        (r"\\srv\a\1.jpg", "srv/a/1_jpg"),
        (r"\xc9milie/1", "xc9milie/1"),
        (r"C:\a\..\1", "C:/a/1"),
        (r"a/..\..\b", "a/b"),
        ("\\", "_"),
        ("\\\x00/.", "_"),
    ],
)
def test_clean_key_of_a_name_with_backslashes_is_a_safe_member(key: str, wanted: str) -> None:
    assert clean_key(key) == wanted
    assert is_safe_name(clean_key(key))


def test_flat_key_of_a_path_has_no_folders() -> None:
    assert [flat_key(name) for name in ("a/../b", "ü/1", "a-b_c+=@")] == ["a____b", "ü_1", "a-b_c+=@"]


def test_numbered_keys_that_are_equal_get_the_free_numbers() -> None:
    assert list(numbered_keys(["a", "b", "a", "a-2", "a"])) == ["a", "b", "a-3", "a-2", "a-4"]
    columns = [pa.chunked_array([["a"], ["b"]]), pa.chunked_array([["a"]])]
    assert list(numbered_keys(ColumnValues(columns))) == ["a", "b", "a-2"]


@pytest.mark.parametrize(
    ("listed", "unique"),
    [
        ([["a", "b"], ["c"]], ["a", "b", "c"]),
        ([["a", "b"], ["a"]], ["p_1/a", "p_1/b", "q/a"]),
        ([["a", "../a"], ["a"]], ["p_1/a-0", "p_1/a-1", "q/a-2"]),
        ([["a/b", "a\\b"], ["c"]], ["p_1/a/b-0", "p_1/a/b-1", "q/c-2"]),
    ],
)
def test_keys_with_part_take_the_simplest_unique_form(listed: list[list[str]], unique: list[str]) -> None:
    columns = [pa.chunked_array([keys]) for keys in listed]
    assert list(keys_with_part(["p.1", "q"], columns)) == unique
