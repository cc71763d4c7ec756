"""Results that are not there, results that cannot be read, and records that are none."""

from pathlib import Path

import pytest

from rayface.experiment.record import Record
from rayface.experiment.verbs import VERBS, of_file


def test_a_result_that_cannot_be_read_is_not_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "model.json").mkdir()  # as a disk that is away: open fails, and not since there is none
    for mark in (of_file("model.json"), VERBS["train"].mark):
        (tmp_path / "result.json").touch()
        with pytest.raises(ValueError, match=r"model.json: cannot be read: Is a directory"):
            mark(tmp_path)
        assert mark(tmp_path / "nowhere") is None
        assert mark(tmp_path / "result.json") is None
    (tmp_path / "model.json").rmdir()
    for text in ("[]", "{}", "{"):
        (tmp_path / "model.json").write_text(text)
        assert VERBS["train"].mark(tmp_path) is None


@pytest.mark.parametrize("text", ["[]", '{"stages": []}', "{}", "{"])
def test_a_record_that_is_none_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(ValueError, match=r"experiment.json: cannot be read: .*delete it"):
        Record(tmp_path)
