"""Several dataset directories as one: names, keys, index and digest."""

import pytest

from rayface.data.joint import distinct_names


@pytest.mark.parametrize(
    ("roots", "names"),
    [
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/faces", "/y/faces"], ["x/faces", "y/faces"]),
        (["s3://ID:secret@one/faces?region=x", "s3://ID:secret@two/faces?region=x"], ["one/faces", "two/faces"]),
        (["s3://one/faces?endpoint_override=a", "s3://one/faces?endpoint_override=b"], ["0", "1"]),
        (["/a", "/x/a"], ["0", "1"]),
    ],
)
def test_distinct_names_of_directories_are_the_shortest_that_differ(roots: list[str], names: list[str]) -> None:
    assert distinct_names(roots) == names
