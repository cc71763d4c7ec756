"""Mapping parts in threads."""

import pytest

from rayface.data.conversion.mapping import map_in_threads
from tests.conftest import ProgressRecorder


def test_map_in_threads_yields_every_result_and_counts_parts(recorder: ProgressRecorder) -> None:
    assert sorted(map_in_threads(lambda n: n * n, range(5), "square", rows=5)) == [0, 1, 4, 9, 16]
    assert recorder.advances == [("square", n, 5) for n in range(1, 6)]
    assert list(map_in_threads(lambda n: n, [], "none")) == []


def test_map_in_threads_raises_the_error_of_a_part() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_threads(lambda n: 1 // n, [1, 0], "divide"))
